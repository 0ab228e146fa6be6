"""Figures with a curve: the runs of a figure as a list, and what psis-d2 analyze curve makes of it.

``plot`` of a figure in the registry has ``x``, one of :data:`X_AXES`; ``y``, a task and a metric of
``results.json`` such as ``segm_unseen/AP``; ``log``, whether x is logarithmic; and ``relative_to``,
the row that the others are compared with at the same split.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable

from psis_d2.errors import UserError
from psis_d2.experiments.commands import OUTPUT, SMOKE, results_folder, smoke_split
from psis_d2.experiments.registry import Experiment, Table, papers
from psis_d2.files import written_at_once

MASKS, CATEGORIES, SHARE = (
    "masks a seen category",
    "seen categories",
    "share of the training images",
)
X_AXES = (MASKS, CATEGORIES, SHARE)


def draw_plots(experiments: Iterable[Experiment], smoke: bool = False) -> None:
    """Draw the figures that experiments belong to, of all their runs that are done.

    ``runs.csv``, ``figure.csv`` and ``figure.png`` are written beside the figure's runs.

    Args:
        experiments: those that were run.
        smoke: they were run as a trial.
    """
    wanted = {"/".join(x.id.split("/")[:2]) for x in experiments}
    for table in (table for paper in papers() for table in paper.tables):
        if table.plot and table.id in wanted:
            folder = f"{SMOKE if smoke else OUTPUT}/{table.id}"
            runs = done_runs(table, folder, smoke)
            try:
                draw_plot(table, runs, folder, smoke)
            except UserError as error:
                print(f"{table.name} is not drawn: {error}")
                continue
            missing = len(table.experiments) - len(runs)
            told = f" ({missing} runs are not done)" if missing else ""
            print(f"{table.name}: {folder}/figure.png and .csv{told}")


def done_runs(table: Table, folder: str, smoke: bool = False) -> list[dict]:
    """The runs of a figure that have a value, for :func:`psis_d2.analysis.curve.read_runs`.

    Args:
        table: the figure.
        folder: of the list, which the paths of results are relative to.
        smoke: whether the runs are a trial's.
    """
    task, metric = table.plot["y"].split("/")
    runs = []
    for x in table.experiments:
        if not x.steps or (smoke and not x.quick):
            continue
        path = os.path.join(results_folder(x, smoke), "results.json")
        if not os.path.isfile(path):
            continue
        with open(path, encoding="utf-8") as file:
            if json.load(file).get(task, {}).get(metric) is None:
                continue
        run = {"series": x.row, "split": smoke_split(x.split) if smoke else x.split, "x": ""}
        if table.plot["x"] == SHARE:
            run |= {"split": "", "x": x.value}
        runs.append({**run, "results": os.path.relpath(path, folder)})
    return runs


def draw_plot(table: Table, runs: list[dict], folder: str, smoke: bool = False) -> None:
    """Write the list of runs, the figure's numbers and its picture.

    Raises:
        UserError: there are too few runs, or they cannot be compared.
    """
    from psis_d2.analysis.curve import curve_rows, read_runs, spoken_metric
    from psis_d2.analysis.plots import plot_curve, save_figure
    from psis_d2.analysis.saved import read_truth
    from psis_d2.analysis.tables import write_csv

    relative = table.plot.get("relative_to")
    base = next((x.row for x in table.experiments if x.row_id.endswith(f"/{relative}")), "")
    if base:
        known = {run["split"] for run in runs if run["series"] == base}
        runs = [run for run in runs if run["split"] in known]
    if not runs:
        raise UserError("no run of it is done.")
    if smoke and table.plot["x"] == CATEGORIES:  # which are PartialShapes' own
        runs = [run | {"x": len(seen_names(run["split"])), "split": ""} for run in runs]
    with written_at_once(f"{folder}/runs.csv") as file:
        writer = csv.DictWriter(file, runs[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(runs)
    rows = curve_rows(
        read_runs(f"{folder}/runs.csv"),
        metric=table.plot["y"],
        truth=read_truth(_training_json(smoke)) if table.plot["x"] == MASKS else None,
        relative_to=base,
    )
    if not rows:
        raise UserError("only the runs that others are compared with are done.")
    y_label = spoken_metric(table.plot["y"])
    y_label = f"change of {y_label} from {base} (%)" if base else y_label
    figure = plot_curve(rows, table.plot["x"], y_label, log=table.plot.get("log", False))
    write_csv(f"{folder}/figure.csv", rows)
    save_figure(f"{folder}/figure.png", figure)


def seen_names(split: str) -> list[str]:
    """Names of the seen categories of a split of PartialShapes."""
    from psis_d2.data.splits import NAMED_SPLITS, resolve_seen_classes

    names = [name for side in ("shapes", "shapes-swapped") for name in NAMED_SPLITS[side]]
    return [names[i] for i in resolve_seen_classes(split, names)]


def _training_json(smoke: bool) -> str:
    if smoke:
        return f"{SMOKE}/datasets/partial_shapes/annotations/instances_train.json"
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    return f"{root}/coco/annotations/instances_train2017.json"
