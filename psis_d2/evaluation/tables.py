"""Result dictionaries as text."""

import math
from collections.abc import Mapping

from psis_d2.evaluation.ground_truth import GroundTruth

from tabulate import tabulate

_KINDS = {
    "bbox": "boxes",
    "segm": "masks",
    "boundary": "masks by Boundary IoU",
    "segm_overlapped": "masks of overlapped objects",
    "gtbox": "masks in given boxes",
    "gtbox_overlapped": "masks of overlapped objects in given boxes",
}


def format_results(results: Mapping) -> str:
    """A table of what the evaluators return, one row a task; all numbers in percent.

    Args:
        results: {task: {metric: value}}, or {data set: {task: {metric: value}}}.
    """
    if any(isinstance(value, Mapping) for task in results.values() for value in task.values()):
        return "\n\n".join(f"{name}\n{format_results(part)}" for name, part in results.items())
    if not results:
        return "(no results)"
    tables = {}
    for task, metrics in results.items():
        kind, _, group = task.rpartition("_")
        row = [_KINDS.get(kind, kind), group, *(_cell(k, v) for k, v in metrics.items())]
        tables.setdefault(tuple(metrics), []).append(row)
    return "\n\n".join(
        tabulate(
            rows,
            headers=["measured", "categories", *metrics],
            tablefmt="pipe",
            colalign=("left", "left", *("right",) * len(metrics)),
            disable_numparse=True,
        )
        for metrics, rows in tables.items()
    )


def flatten(results: Mapping) -> dict[str, float]:
    """{task: {metric: value}} as {"task/metric": value}, over any number of levels."""
    flat = {}
    for name, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}/{key}": number for key, number in flatten(value).items()})
        else:
            flat[name] = value
    return flat


def category_rows(
    truth: GroundTruth, seen_ids: list[int], measured: Mapping[str, list[float]]
) -> list[dict]:
    """One dict a category: its names, its split, its number of instances and its metrics.

    Args:
        truth: the ground truth.
        seen_ids: contiguous ids of the seen categories.
        measured: {metric: value by contiguous id}.
    """
    instances, masked = (count.tolist() for count in truth.counts())
    return [
        {
            "name": name,
            "id": truth.json_ids[i],
            "split": "seen" if i in seen_ids else "unseen",
            "instances": instances[i],
            "with_mask": masked[i],
            **{metric: values[i] for metric, values in measured.items()},
        }
        for i, name in enumerate(truth.class_names)
    ]


def format_rows(rows: list[dict]) -> str:
    """A table of what :func:`category_rows` returns."""
    return tabulate(
        [[_cell(key, value) for key, value in row.items()] for row in rows],
        headers=list(rows[0]),
        tablefmt="pipe",
        colalign=["left" if isinstance(value, str) else "right" for value in rows[0].values()],
        disable_numparse=True,
    )


def _cell(name: str, value) -> str:
    if isinstance(value, float) and name != "N":
        return "nan" if math.isnan(value) else f"{value:.2f}"
    return f"{value:.0f}" if name == "N" else str(value)
