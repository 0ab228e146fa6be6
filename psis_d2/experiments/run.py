"""Run experiments: their command lines in order, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from psis_d2.errors import UserError
from psis_d2.experiments.commands import SMOKE, Line

SMOKE_IMAGES = (160, 16)
"""Training and validation images of a trial: enough for 100 shape priors and for ten shots."""


class StepFailed(UserError):
    """A command of an experiment has ended with a status, and has said why."""

    def __init__(self, sentence: str, status: int):
        super().__init__(sentence)
        self.status = status


def run_lines(lines: Sequence[Line], *, smoke: bool = False) -> None:
    """Run command lines. One that has left its files is skipped, a stopped training goes on.

    Args:
        lines: see :func:`psis_d2.experiments.commands.command_lines`.
        smoke: they are a trial, which makes its own small data.

    Raises:
        StepFailed: one of them has ended with another status than 0.
    """
    env = dict(os.environ)
    if smoke:
        env["DETECTRON2_DATASETS"] = _small_shapes()
    for number, line in enumerate(lines, start=1):
        if is_done(line):
            print(f"[{number}/{len(lines)}] there already: {line}", flush=True)
            continue
        words = list(line.words)
        if line.trains and Path(line.output, "last_checkpoint").is_file():
            words.insert(1, "--resume")
        print(f"[{number}/{len(lines)}] {line}", flush=True)
        status = subprocess.run([sys.executable, "-m", "psis_d2", *words], env=env).returncode
        if status:
            raise StepFailed(
                f"Step {number} of {len(lines)} has ended with status {status} ({line}); what it "
                "said stands above, and the same command goes on here.",
                status if status > 0 else 1,
            )


def is_done(line: Line) -> bool:
    """Whether a command has left what it leaves when it ends well."""
    return bool(line.done) and all(Path(path).exists() for path in line.done)


def _small_shapes() -> str:
    """A folder for ``DETECTRON2_DATASETS`` with a few images of PartialShapes."""
    from psis_d2.data.datasets.partial_shapes import generate

    folder = Path(SMOKE, "datasets")
    generate(str(folder / "partial_shapes"), *SMOKE_IMAGES, progress=False)
    return str(folder.absolute())
