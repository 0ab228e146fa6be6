"""A table of runs as CSV: one line a run, every figure a column, at full precision."""

import csv
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from psis_d2.files import written_at_once

from .rows import Run

FACTS = ("config", "seed", "commit", "machine", "date", "minutes", "psis_d2", "torch", "options")
_changing = threading.Lock()


def read_runs(path: Path) -> list[Run]:
    """The runs of a table, in its order; none if there is no such file.

    A column ``task/metric`` is a figure; an empty cell was not measured, nan is undefined.
    """
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return [_parse(line) for line in csv.DictReader(file)]


def write_runs(path: Path, runs: Sequence[Run]) -> None:
    """Write a table of runs, by config and seed, so that what is added changes few lines."""
    runs = sorted(runs, key=lambda run: (run.config, -1 if run.seed is None else run.seed))
    figures = [_figures(run) for run in runs]
    columns = sorted({name for of_run in figures for name in of_run}, key=_order)
    with written_at_once(str(path)) as file:
        table = csv.DictWriter(file, [*FACTS, *columns], lineterminator="\n")
        table.writeheader()
        for run, of_run in zip(runs, figures, strict=True):
            facts = {name: getattr(run, name) for name in FACTS}
            # repr of a float, which the csv module writes, reads back as the same float.
            table.writerow(facts | of_run)


def put_run(path: Path, run: Run) -> None:
    """Add a run to a table, in place of one with its config and seed. Threads may do so at once."""
    with _changing:
        others = [r for r in read_runs(path) if (r.config, r.seed) != (run.config, run.seed)]
        write_runs(path, [*others, run])


def forget_runs(path: Path, configs: Sequence[str]) -> None:
    """Take the runs of some configs out of a table."""
    with _changing:
        write_runs(path, [run for run in read_runs(path) if run.config not in configs])


def _figures(run: Run) -> dict[str, float]:
    return {f"{t}/{m}": value for t, metrics in run.results.items() for m, value in metrics.items()}


def _order(column: str) -> tuple:
    """Tasks side by side, detected boxes first, as they were measured; unknown ones behind."""
    task, metric = column.split("/")
    shrunk, kind = task.startswith("shrunk_"), task.removeprefix("shrunk_").rpartition("_")[0]
    kinds = ("bbox", "segm", "segm_overlapped", "gtbox", "gtbox_overlapped")
    groups = ("seen", "unseen", "all")
    metrics = ("IoU", "AP", "AP50", "AP75", "APs", "APm", "APl", "N")
    return (
        shrunk,
        kinds.index(kind) if kind in kinds else len(kinds),
        groups.index(group) if (group := task.rpartition("_")[2]) in groups else len(groups),
        metrics.index(metric) if metric in metrics else len(metrics),
        column,
    )


def _parse(line: dict[str, str]) -> Run:
    results = {}
    for column, cell in line.items():
        if column not in FACTS and cell != "":
            task, metric = column.split("/")
            results.setdefault(task, {})[metric] = float(cell)
    run = Run(**{name: line[name] for name in FACTS}, results=results)
    return replace(
        run,
        seed=int(run.seed) if run.seed else None,
        minutes=float(run.minutes) if run.minutes else None,
    )
