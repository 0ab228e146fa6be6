"""One number of many runs: how it grows with categories or images.

Figures of MaskX R-CNN (3), CPMask (6), ShapeMask (8), ShapeProp (6) and Zhao et al. (8).
"""

import csv
import json
import math
import os
from collections.abc import Sequence

from psis_d2.data.splits import resolve_seen_classes
from psis_d2.errors import UserError, did_you_mean
from psis_d2.evaluation.ground_truth import GroundTruth
from psis_d2.evaluation.tables import flatten

COLUMNS = ("series", "results")
METRIC = "segm_unseen/AP"


def read_runs(path: str) -> list[dict]:
    """The list of runs: a CSV with a head.

    ``series`` is the line in the plot that a run belongs to, ``results`` its ``results.json``,
    relative to the list. ``split`` is its ``PSIS.SEEN_CLASSES``, ``x`` a number; one of the two
    must be there.

    Raises:
        UserError: the list or a run of it cannot be used.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            runs = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Cannot read the list of runs {path} ({reason}).") from error
    if not runs:
        raise UserError(f"{path} lists no runs; write a head and a line for each run.")
    lacking = [name for name in COLUMNS if name not in runs[0]]
    if not {"split", "x"} & set(runs[0]):
        lacking.append("split (or x)")
    if lacking:
        raise UserError(f"{path} has no column {', '.join(lacking)}; add it to its first line.")
    for line, run in enumerate(runs, start=2):
        if not run["series"] or not run["results"] or not (run.get("split") or run.get("x")):
            raise UserError(f"Line {line} of {path} lacks series, results, or both split and x.")
        run["results"] = os.path.join(os.path.dirname(path), run["results"])
    return runs


def curve_rows(
    runs: Sequence[dict],
    *,
    metric: str = METRIC,
    truth: GroundTruth | None = None,
    relative_to: str = "",
) -> list[dict]:
    """What runs have reached.

    Args:
        runs: see :func:`read_runs`.
        metric: ``task/metric`` of their results.
        truth: the training annotations: x is then, as in MaskX R-CNN's Fig. 3, the mean number of
            objects of a seen category. None: x is the run's ``x``, else the number of seen
            categories, of COCO.
        relative_to: a series that the others are compared with, run by run of the same split (or
            x): values are then its relative change in percent.

    Returns:
        A row a run, those of `relative_to` left out: ``series``, ``split``, ``seen`` (categories,
        nan if no split is given), ``x``, ``value``; with `relative_to` also ``baseline`` and
        ``increase``. In the order of series and x.

    Raises:
        UserError: a result is missing, a split does not fit, or a run has no counterpart.
    """
    rows = [_row(run, metric, truth) for run in runs]
    if relative_to:
        series = sorted({row["series"] for row in rows})
        if relative_to not in series:
            raise UserError(
                f"No run is of the series '{relative_to}'{did_you_mean(relative_to, series)}; "
                f"there are {', '.join(series)}."
            )
        base = {_place(row): row["value"] for row in rows if row["series"] == relative_to}
        rows = [row for row in rows if row["series"] != relative_to]
        for row in rows:
            if not base.get(_place(row)):
                raise UserError(
                    f"The run of {row['series']} at {_place(row)} has no counterpart in the series "
                    f"'{relative_to}' to be compared with, or one of 0; add it to the list."
                )
            row["baseline"] = base[_place(row)]
            row["increase"] = 100 * (row["value"] / row["baseline"] - 1)
    return sorted(rows, key=lambda row: (row["series"], row["x"], row["split"]))


def spoken_metric(metric: str) -> str:
    """``segm_unseen/AP`` as an axis says it: mask AP, unseen categories."""
    task, _, name = metric.partition("/")
    kind, _, group = task.partition("_")
    kinds = {"segm": "mask", "bbox": "box", "boundary": "boundary"}
    if kind not in kinds or not group or not name or "_" in group:
        return metric.replace("/", " ")
    return f"{kinds[kind]} {name}, {group} categories"


def _place(row: dict) -> str:
    return row["split"] or f"{row['x']:g}"


def _row(run: dict, metric: str, truth: GroundTruth | None) -> dict:
    split = run.get("split") or ""
    seen = None
    if split:
        key = f"The split of {run['results']}"
        seen = resolve_seen_classes(split, _class_names(truth), key=key)
    if truth is not None and seen is not None:
        instances = truth.counts()[0]
        x = float(instances[seen].mean())
    elif run.get("x"):
        x = _number(run["x"], f"x of {run['results']}")
    else:
        x = float(len(seen))
    return {
        "series": run["series"],
        "split": split,
        "seen": float("nan") if seen is None else len(seen),
        "x": x,
        "value": _read_metric(run["results"], metric),
    }


def _class_names(truth: GroundTruth | None) -> Sequence[str]:
    if truth is not None:
        return truth.class_names
    from detectron2.data import MetadataCatalog

    return MetadataCatalog.get("coco_2017_train").thing_classes


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{what} is '{text}'; give a number.")
    return value


def _read_metric(path: str, metric: str) -> float:
    try:
        with open(path, encoding="utf-8") as file:
            results = flatten(json.load(file))
    except (OSError, ValueError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"Cannot read the results {path} ({reason}); give the results.json of an evaluation."
        ) from error
    if results.get(metric) is None:
        raise UserError(
            f"{path} has no {metric}{did_you_mean(metric, results)}; name one of its numbers."
        )
    return float(results[metric])
