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
from psis_d2.data.coco import register_coco_json
from psis_d2.errors import UserError
from psis_d2.evaluation import box_fill_results

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..measure import ROOT, device_name
from .page import render_page, render_section
from .picture import results_picture
from .rows import Row, Run, Yardstick, expected_results
from .runs import put_run, read_runs
from .trials import with_trials

FILLED = "box_fill"
"""The row of a model that fills every box, which needs no training."""
DETECTOR = "detector"
"""The row of the detector that all others start from."""


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
    first = {name: place for place, name in enumerate(yardstick.order)}

    def place(name: str) -> tuple:
        return (name == yardstick.last, first.get(name, len(first)), name)

    names = only or sorted(found, key=place)
    return {name: found[name] for name in names}


def title_of(config: Path) -> str:
    """A row's title: the first comment line of its config."""
    return config.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").rstrip(".")


def rows_of(yardstick: Yardstick) -> list[Row]:
    """The rows of the page with the runs that are kept, from files of the repository alone."""
    titles = {FILLED: "Whole box filled, no model"}
    titles |= {name: title_of(config) for name, config in configs_of(yardstick).items()}
    if yardstick.detector:
        titles[DETECTOR] = "The detector that all rows start from"
    of_config = {name: [] for name in titles}
    for run in read_runs(yardstick.runs_file):
        of_config.get(run.config, []).append(run)
    return [Row(name, titles[name], runs) for name, runs in of_config.items()]


def page_of(yardsticks: Sequence[Yardstick]) -> str:
    """The page of some yardsticks in this order, of files of the repository alone."""
    sections = [
        render_section(
            yardstick,
            rows_of(yardstick),
            picture=yardstick.picture,
            remarks=with_trials(
                yardstick.remarks_file.read_text(encoding="utf-8"), yardstick.trials_file
            ),
        )
        for yardstick in yardsticks
        if read_runs(yardstick.runs_file)
    ]
    return render_page(sections)


def write_page(yardsticks: Sequence[Yardstick], page: Path) -> None:
    """Write the page and its pictures, which lie in ``docs`` beside it."""
    for yardstick in yardsticks:
        if not yardstick.picture:
            continue
        picture = page.parent / yardstick.picture
        picture.parent.mkdir(parents=True, exist_ok=True)
        results_picture(rows_of(yardstick)).savefig(picture, dpi=110)
    page.write_text(page_of(yardsticks), encoding="utf-8")


@dataclass(frozen=True)
class Bench:
    """Trains and evaluates the configs of a yardstick.

    Args:
        yardstick: whose configs.
        output: folder for the outputs of the runs.
        threads: of one run.
        data: folder of the yardstick's data files.
    """

    yardstick: Yardstick
    output: Path
    threads: int = 1
    data: Path | None = None

    def register_data(self) -> None:
        """Give the yardstick's data files their names, in this process.

        Raises:
            UserError: it has some, and no folder was given.
        """
        for name, *paths in self._data_files():
            if name not in DatasetCatalog:
                register_coco_json(name, *paths)

    def _data_files(self) -> list[list[str]]:
        files = self.yardstick.data_files
        if files and self.data is None:
            raise UserError(
                f"{self.yardstick.heading} is no data set that can be made here; name the folder "
                f"that holds {files[0][1]} by --data."
            )
        return [[name, *(str(self.data / path) for path in paths)] for name, *paths in files]

    @property
    def _home(self) -> Path:
        """Folder of the detector and its feature maps."""
        return self.output.parent / (self.yardstick.home or self.output.name)

    def run(self, name: str, seed: int | None) -> Run:
        """Train and evaluate a row with a seed, unless its figures are kept already.

        A row that is not trained has none, whatever `seed` says.
        """
        seed = None if name in self.yardstick.untrained else seed
        if kept := self._kept(name, seed):
            return kept
        folder = self._folder(name, seed)
        shutil.rmtree(folder, ignore_errors=True)
        start = time.time()
        options = [] if seed is None else ["SEED", str(seed)]
        words = [*options, *self._weights(name, seed), *self._labels(name, seed)]
        trains = name not in self.yardstick.untrained and not self.yardstick.models
        flags = [] if trains else ["--eval-only"]
        config = configs_of(self.yardstick, [name])[name]
        results = self._train_net(config, folder, words, flags)
        done = self._done(name, seed, start, options, results)
        put_run(self.yardstick.runs_file, done)
        return done

    def train_detector(self) -> None:
        """Train what all rows start from, unless its weights are there."""
        config, folder = self.yardstick.detector, self._home / DETECTOR
        if not config or (folder / "model_final.pth").exists():
            return
        start = time.time()
        options = ["TEST.BOXES", "detected"]
        results = self._train_net(ROOT / config, folder, options)
        put_run(self.yardstick.runs_file, self._done(DETECTOR, None, start, options, results))

    def _weights(self, name: str, seed: int | None) -> list[str]:
        """What a row starts from: the detector, and the maps of its frozen backbone; or a model."""
        if not self.yardstick.detector:
            return []
        model = self._home / DETECTOR / "model_final.pth"
        if name in self.yardstick.untrained:
            return ["MODEL.WEIGHTS", str(model)]
        if self.yardstick.models:
            model = self.output.parent / self.yardstick.models / f"{name}-{seed}/model_final.pth"
            if not model.exists():
                raise UserError(f"{model} is not there; train it by {self.yardstick.models} first.")
            return ["MODEL.WEIGHTS", str(model)]
        return ["MODEL.WEIGHTS", str(model), "PSIS.KEEP_FEATURES", str(self._home / "features")]

    def _labels(self, name: str, seed: int | None) -> list[str]:
        """The masks that a row trains on where there are no others, drawn now by another row."""
        other = dict(self.yardstick.labeled).get(name)
        if other is None or self.yardstick.models:
            return []
        self.run(other, seed)
        teacher, data = self._folder(other, seed), MetadataCatalog.get(self.yardstick.train_set)
        model, masks = teacher / "model_final.pth", teacher / "masks.json"
        if not model.exists():
            raise UserError(f"{model} is not there; train the row first (--fresh --only {other}).")
        words = [str(model), "--config-file", str(teacher / "config.yaml")]
        words += ["--images", data.image_root, "--boxes", data.json_file]
        words += ["--all", "--output", str(masks)]  # true masks do not take part
        command = [sys.executable, "-m", "psis_d2", "autolabel", *words]
        self._in_own_process(command, teacher / "autolabel.txt")
        return ["PSIS.MISSING_MASKS", str(masks)]

    def _done(
        self, name: str, seed: int | None, start: float, options: list[str], results: dict
    ) -> Run:
        return Run(
            config=name,
            seed=seed,
            commit=commit(),
            machine=machine(),
            date=datetime.date.today().isoformat(),
            minutes=(time.time() - start) / 60,
            psis_d2=psis_d2.__version__,
            torch=torch.__version__,
            options=" ".join([*self.yardstick.measured, *options]),
            results=results,
        )

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
        config = configs_of(self.yardstick, [name])[name]
        results = self._train_net(config, folder, [*weights, *options], ["--eval-only"])
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

    def _folder(self, name: str, seed: int | None) -> Path:
        return self.output / (name if seed is None else f"{name}-{seed}")

    def _train_net(
        self, config: Path, folder: Path, options: list[str], flags: Sequence[str] = ()
    ) -> dict:
        """Run ``train_net.py`` with its output in a folder; its results, None made nan."""
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "train_net.py", "--config-file", str(config), *flags]
        command += ["OUTPUT_DIR", str(folder), "TEST.EXPECTED_RESULTS", "[]"]
        if files := self._data_files():
            command += ["PSIS.DATA_FILES", json.dumps(files)]
        command += [*self.yardstick.options, *self.yardstick.measured, *options]
        self._in_own_process(command, folder / "stdout.txt")
        results = json.loads((folder / "results.json").read_text())
        return {
            task: {m: float("nan") if value is None else value for m, value in metrics.items()}
            for task, metrics in results.items()
        }

    def _in_own_process(self, command: list[str], output: Path) -> None:
        with open(output, "w") as log:
            status = subprocess.run(
                command,
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
            )
        if status.returncode:
            raise RuntimeError(f"a run failed; its output is {output}")


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
