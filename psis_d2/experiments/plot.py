"""Figures with a curve: the results of a figure's runs as CSV and picture.

``plot`` of a figure in the registry has ``x``, one of :data:`X_AXES`; ``y``, a task and a metric of
``results.json`` such as ``segm_unseen/AP``; ``log``, whether x is logarithmic; and ``relative_to``,
the row whose value at the same split 100 % are: y is then the relative increase over it.
"""

from __future__ import annotations

import csv
import functools
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from psis_d2.experiments.commands import OUTPUT, SMOKE, results_folder, smoke_split
from psis_d2.experiments.registry import Experiment, Table, papers
from psis_d2.files import written_at_once

X_AXES = ("seen categories", "share of the training images", "masks a seen category")


@dataclass(frozen=True)
class Point:
    """A run of a figure.

    Attributes:
        series: the row's name.
        split: the seen categories.
        x, y: y is nan where the metric cannot be measured.
    """

    series: str
    split: str
    x: float
    y: float


def draw_plots(experiments: Iterable[Experiment], smoke: bool = False) -> list[str]:
    """Draw the figures that experiments belong to, of all their runs that are done.

    Args:
        experiments: those that were run.
        smoke: they were run as a trial.

    Returns:
        The CSV and PNG files, which are beside the figure's runs.
    """
    wanted = {"/".join(x.id.split("/")[:2]) for x in experiments}
    written = []
    for table in (table for paper in papers() for table in paper.tables):
        if table.plot and table.id in wanted:
            points = collect(table, smoke)
            path = f"{SMOKE if smoke else OUTPUT}/{table.id}/figure"
            written += write_figure(table, points, path)
            missing = len(table.experiments) - len(points)
            told = f" ({missing} runs are not done)" if missing else ""
            print(f"{table.name}: {path}.png and .csv{told}")
    return written


def collect(table: Table, smoke: bool = False) -> list[Point]:
    """The points of a figure, of the runs that have results."""
    task, metric = table.plot["y"].split("/")
    values = {}
    for x in table.experiments:
        path = os.path.join(results_folder(x, smoke), "results.json") if _runs(x, smoke) else ""
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                value = json.load(file).get(task, {}).get(metric)
            values[x.id] = math.nan if value is None else value
    points = []
    relative = table.plot.get("relative_to")
    for x in table.experiments:
        if x.id not in values:
            continue
        y = values[x.id]
        if relative:
            base = values.get(f"{table.id}/{relative}{x.id.removeprefix(x.row_id)}", math.nan)
            y = 100 * (y / base - 1) if base > 0 else math.nan
        points.append(Point(x.row, x.split, _x_of(table.plot["x"], x, smoke), y))
    return points


def write_figure(table: Table, points: Sequence[Point], path: str) -> list[str]:
    """Write ``path.csv`` and ``path.png``."""
    from matplotlib.figure import Figure

    y_name = table.plot["y"].replace("/", " ")
    if relative := table.plot.get("relative_to"):
        y_name = f"{y_name}, relative increase over {relative} (%)"
    with written_at_once(f"{path}.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["series", "split", table.plot["x"], y_name])
        writer.writerows((p.series, p.split, f"{p.x:g}", f"{p.y:.4f}") for p in points)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for place, series in enumerate(dict.fromkeys(p.series for p in points)):
        mine = sorted((p for p in points if p.series == series), key=lambda p: p.x)
        # Several runs at one place, as random splits have them, are dots without a line.
        several = table.plot["x"] == "masks a seen category"
        style = "" if several else "-"
        mark = "osD^v"[place % 5]
        axes.plot([p.x for p in mine], [p.y for p in mine], mark + style, label=series, alpha=0.8)
    if table.plot.get("log"):
        axes.set_xscale("log")
    axes.set_xlabel(table.plot["x"])
    axes.set_ylabel(y_name)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    if points:
        axes.legend(frameon=False)
    with written_at_once(f"{path}.png", binary=True) as file:
        figure.savefig(file, dpi=110, format="png")
    return [f"{path}.csv", f"{path}.png"]


def _runs(x: Experiment, smoke: bool) -> bool:
    return bool(x.steps) and (bool(x.quick) or not smoke)


def _x_of(kind: str, x: Experiment, smoke: bool) -> float:
    if kind == "share of the training images":
        return float(x.value)
    seen = seen_names(smoke_split(x.split) if smoke else x.split, smoke)
    if kind == "seen categories":
        return len(seen)
    counts = masks_of(_training_json(smoke))
    return sum(counts.get(name, 0) for name in seen) / len(seen)


def seen_names(split: str, smoke: bool = False) -> list[str]:
    """Names of the seen categories of a split of COCO or, in a trial, of PartialShapes."""
    from psis_d2.data.splits import NAMED_SPLITS, resolve_seen_classes

    sides = ("shapes", "shapes-swapped") if smoke else ("voc", "nonvoc")
    names = [name for side in sides for name in NAMED_SPLITS[side]]
    return [names[i] for i in resolve_seen_classes(split, names)]


def _training_json(smoke: bool) -> str:
    if smoke:
        return f"{SMOKE}/datasets/partial_shapes/annotations/instances_train.json"
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    return f"{root}/coco/annotations/instances_train2017.json"


@functools.cache
def masks_of(json_file: str) -> dict[str, int]:
    """Number of masks of every category in a COCO-format json, crowds left out, by name."""
    with open(json_file, encoding="utf-8") as file:
        content = json.load(file)
    names = {category["id"]: category["name"] for category in content["categories"]}
    counts = dict.fromkeys(names.values(), 0)
    for annotation in content["annotations"]:
        if annotation.get("segmentation") and not annotation.get("iscrowd"):
            counts[names[annotation["category_id"]]] += 1
    return counts
