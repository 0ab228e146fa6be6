"""The work of a yardstick: train what is missing, keep the figures, write the page."""

import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psis_d2
from psis_d2.data import get_class_names, resolve_seen_classes
from psis_d2.errors import UserError
from psis_d2.evaluation import box_fill_results

import torch

from ..measure import ROOT, device_name
from .page import render_page
from .picture import results_picture
from .rows import Row, Run, Yardstick, expected_results
from .runs import put_run, read_runs

FILLED = "box_fill"
"""The row of a model that fills every box, which needs no training."""


def configs_of(yardstick: Yardstick, only: Sequence[str] = ()) -> dict[str, Path]:
    """Row name -> config file, in the table's order: by name, the upper bound last.

    Raises:
        UserError: one of `only` has no config.
    """
    pattern = Path(yardstick.configs)
    before, after = pattern.name.split("*")
    found = {
        path.name.removeprefix(before).removesuffix(after): path
        for path in sorted((ROOT / pattern.parent).glob(pattern.name))
        if not path.name.startswith("Base")
    }
    if unknown := [name for name in only if name not in found]:
        raise UserError(
            f"There is no {yardstick.configs} for {', '.join(unknown)}; choose among "
            f"{', '.join(sorted(found))}."
        )
    names = only or sorted(found, key=lambda name: (name == yardstick.last, name))
    return {name: found[name] for name in names}


def title_of(config: Path) -> str:
    """A row's title: the first comment line of its config."""
    return config.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").rstrip(".")


def rows_of(yardstick: Yardstick) -> list[Row]:
    """The rows of the page with the runs that are kept, from files of the repository alone."""
    titles = {FILLED: "Whole box filled, no model"}
    titles |= {name: title_of(config) for name, config in configs_of(yardstick).items()}
    of_config = {name: [] for name in titles}
    for run in read_runs(yardstick.runs_file):
        of_config.get(run.config, []).append(run)
    return [Row(name, titles[name], runs) for name, runs in of_config.items()]


def page_of(yardstick: Yardstick, rows: Sequence[Row], picture: str) -> str:
    """The page of some rows; `picture` is where it finds its picture."""
    remarks = yardstick.remarks_file.read_text(encoding="utf-8")
    return render_page(yardstick, rows, picture=picture, remarks=remarks)


def write_page(yardstick: Yardstick, rows: Sequence[Row], page: Path, picture: Path) -> None:
    """Write the page and its picture."""
    results_picture(rows).savefig(picture, dpi=110)
    text = page_of(yardstick, rows, os.path.relpath(picture, page.parent))
    page.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Bench:
    """Trains and evaluates the configs of a yardstick.

    Args:
        yardstick: whose configs.
        output: folder for the outputs of the runs.
        threads: of one run.
    """

    yardstick: Yardstick
    output: Path
    threads: int = 1

    def run(self, name: str, seed: int) -> Run:
        """Train and evaluate a row with a seed, unless its figures are kept already."""
        if kept := self._kept(name, seed):
            return kept
        shutil.rmtree(self._folder(name, seed), ignore_errors=True)
        start = time.time()
        options = ["SEED", str(seed)]
        results = self._train_net(name, self._folder(name, seed), options)
        done = Run(
            config=name,
            seed=seed,
            commit=commit(),
            machine=machine(),
            date=datetime.date.today().isoformat(),
            minutes=(time.time() - start) / 60,
            psis_d2=psis_d2.__version__,
            torch=torch.__version__,
            options=" ".join([*_MEASURED, *options]),
            results=results,
        )
        put_run(self.yardstick.runs_file, done)
        return done

    def measure_again(self, name: str, seed: int, options: list[str]) -> Run:
        """Evaluate a run's model with other options; tasks that are new join its figures.

        Raises:
            UserError: the model is not in the output folder.
        """
        model = self._folder(name, seed) / "model_final.pth"
        if not model.exists():
            raise UserError(f"{model} is not there; train the row first (--fresh --only {name}).")
        done = self.run(name, seed)
        weights = ["MODEL.WEIGHTS", str(model)]
        folder = self._folder(name, seed) / "again"
        results = self._train_net(name, folder, [*weights, *options], ["--eval-only"])
        done = replace(
            done,
            results={**results, **done.results},
            options=f"{done.options}; {' '.join(options)}",
        )
        put_run(self.yardstick.runs_file, done)
        return done

    def fill_boxes(self) -> None:
        """Measure filled boxes, which depend on the data set alone, unless they are kept."""
        if self._kept(FILLED, None):
            return
        name = self.yardstick.test_set
        classes = get_class_names(name)
        seen = resolve_seen_classes(self.yardstick.split, classes, dataset_name=name)
        results = box_fill_results(name, seen, self.yardstick.overlap)
        put_run(self.yardstick.runs_file, Run(FILLED, results=results))

    def _kept(self, name: str, seed: int | None) -> Run | None:
        runs = read_runs(self.yardstick.runs_file)
        return next((run for run in runs if (run.config, run.seed) == (name, seed)), None)

    def _folder(self, name: str, seed: int) -> Path:
        return self.output / f"{name}-{seed}"

    def _train_net(
        self, name: str, folder: Path, options: list[str], flags: Sequence[str] = ()
    ) -> dict:
        """Run ``train_net.py`` with its output in a folder; its results, None made nan."""
        config = configs_of(self.yardstick, [name])[name]
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "train_net.py", "--config-file", str(config), *flags]
        command += ["OUTPUT_DIR", str(folder), "TEST.EXPECTED_RESULTS", "[]", *_MEASURED, *options]
        with open(folder / "stdout.txt", "w") as log:
            status = subprocess.run(
                command,
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
            )
        if status.returncode:
            raise RuntimeError(f"{config.name} failed; the output is {folder}/stdout.txt")
        results = json.loads((folder / "results.json").read_text())
        return {
            task: {m: float("nan") if value is None else value for m, value in metrics.items()}
            for task, metrics in results.items()
        }


_MEASURED = ["TEST.BOXES", "both"]


def commit() -> str:
    """The commit that is checked out, marked if the tree differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout

    changed = git("status", "--porcelain", "--untracked-files=no").splitlines()
    # Tables of runs change while others are made.
    changed = [line for line in changed if not line.endswith(".csv")]
    short = git("rev-parse", "--short", "HEAD").strip() or "unknown"
    return short + (" + changes" if changed else "")


def machine() -> str:
    """The processor or GPU of this machine, in words."""
    if torch.cuda.is_available():
        return device_name("cuda")
    return f"{device_name('cpu')}, {os.cpu_count()} cores"


def write_expected(config: Path, row: Row) -> None:
    """Put a row's measured results into its config as ``TEST.EXPECTED_RESULTS``.

    Raises:
        UserError: the config has other ``TEST`` keys in the way.
    """
    text = config.read_text(encoding="utf-8")
    lines = ["TEST:"]
    lines.append("  EXPECTED_RESULTS:  # [task, metric, mean of RESULTS.md's seeds, tolerance]")
    lines += [f"    - {json.dumps(entry)}" for entry in expected_results(row)]
    block = "\n".join(lines) + "\n"
    text = re.sub(r"^TEST:\n  EXPECTED_RESULTS:.*\n(    - .*\n)*", "", text, flags=re.MULTILINE)
    if "\nTEST:" in text:
        raise UserError(f"{config} has other TEST keys; put EXPECTED_RESULTS in by hand.")
    text = text.replace("OUTPUT_DIR:", f"{block}OUTPUT_DIR:", 1)
    config.write_text(text, encoding="utf-8")
