"""Killed at random moments, training, autolabel and a download end as if nothing had been."""

import hashlib
import itertools
import json
import operator
import os
import random
import shutil
import signal
import time
from pathlib import Path

import psis_d2
from psis_d2.engine.checkpoint import read_checkpoint

import pytest
import torch

from file_server import FileServer
from run_processes import Run, train
from saved_models import save_model
from tiny_data import command_line, write_tiny_data

CONTENT = random.Random(0).randbytes(3_000_000)
SHA = hashlib.sha256(CONTENT).hexdigest()
NAME = "m_00000000.pth"
MANY = pytest.param(50, marks=pytest.mark.faults)


# A run of seven checkpoints and two evaluations, on a model of a few MB.
TRAINING = ("SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 1, "TEST.EVAL_PERIOD", 4)
TRAINING += ("SEED", 3, "DATALOADER.NUM_WORKERS", 0, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
TRAINING += ("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16)
TRAINING += ("TEST.DETECTIONS_PER_IMAGE", 5)
# What it writes: a kill follows a change of one of these by a moment, or follows nothing.
WRITTEN = (
    "model_*",
    "inference/*/*",
    "config.yaml*",
    "last_checkpoint*",
    "metrics.json",
    "log.txt",
)
WRITTEN += ("events.*", "results.json*", "run.lock", "")
A_FEW = 3


def stamps(folder: Path, pattern: str) -> set[tuple]:
    """Names, sizes and times of a folder's files."""
    found = set()
    for path in folder.glob(pattern):
        try:
            stat = path.stat()
        except FileNotFoundError:  # renamed meanwhile
            continue
        found.add((path.name, stat.st_size, stat.st_mtime_ns))
    return found


def killed_while_writing(run: Run, folder: Path, pattern: str, draw: random.Random) -> bool:
    """Kill a run as it writes some file; False if it has ended well before."""
    if not pattern:
        return killed(run, draw.uniform(0, 5))
    changes = draw.choice((1, 1, 2, 3))
    known = stamps(folder, pattern)
    while run.process.is_alive() and changes:
        if (now := stamps(folder, pattern)) != known:
            known, changes = now, changes - 1
        time.sleep(0.001)
    return killed(run, draw.uniform(0, 0.05))


def state_of(folder: Path) -> dict:
    """What training has left: weights, what the optimizer keeps, results and predictions."""
    content = read_checkpoint(str(folder / "model_final.pth"))
    kept = content["trainer"]["_trainer"]["optimizer"]["state"]
    tensors = {f"{i} {key}": x for i, state in kept.items() for key, x in state.items()}
    assert len(tensors) > 50
    best = read_checkpoint(str(folder / "model_best.pth"))
    files = {path.name: path.read_bytes() for path in (folder / "inference").rglob("*.json")}
    assert len(files) == 4
    results = {"results": (folder / "results.json").read_bytes(), "iteration": content["iteration"]}
    return {**tensors, **content["model"], **files, **results, "best": best["iteration"]}


def assert_same_end(folder: Path, whole: dict) -> None:
    """Every bit is that of the uninterrupted run, and nothing unfinished lies about."""
    parts = state_of(folder)
    assert parts.keys() == whole.keys()
    for name, value in whole.items():
        same = torch.equal if isinstance(value, torch.Tensor) else operator.eq
        assert same(parts[name], value), name
    left = [path.name for path in folder.rglob("*") if path.suffix == ".part"]
    assert left == []
    for line in (folder / "metrics.json").read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize("kills", [A_FEW, MANY])
def test_training_ends_in_the_same_bits(tmp_path, kills):
    data, log = write_tiny_data(tmp_path / "data"), tmp_path / "log"
    finish(train, command_line(data, tmp_path / "out", *TRAINING, config="agnostic_shapes"), log)
    (tmp_path / "out").rename(tmp_path / "whole")
    whole, draw = state_of(tmp_path / "whole"), random.Random(3)
    done, patterns = dict.fromkeys(WRITTEN, 0), itertools.cycle(WRITTEN)
    # of one name, which the checkpoints hold
    folder = tmp_path / "out"
    line = ["--resume", *command_line(data, folder, *TRAINING, config="agnostic_shapes")]
    while sum(done.values()) < kills:
        with Run(line, log) as run:
            pattern = next(patterns)
            was_killed = killed_while_writing(run, folder, pattern, draw)
        done[pattern] += was_killed
        if not was_killed:
            assert_same_end(folder, whole)
            shutil.rmtree(folder)
    finish(train, line, log)
    assert_same_end(folder, whole)
    print("kills after a change of", done)


def label(job: dict) -> None:
    """Autolabel as a process of its own."""
    from psis_d2.inference.autolabel import autolabel

    predictor = psis_d2.Predictor(job["weights"], device="cpu")
    autolabel(predictor, job["images"], job["output"], boxes=job["json"], progress=False)


def download(job: dict) -> None:
    """A download of the model zoo as a process of its own."""
    from psis_d2.model_zoo.download import fetch

    os.environ["PSIS_D2_CACHE"] = job["cache"]
    fetch([job["url"]], file_name=NAME, sha256=SHA, size=len(CONTENT))


def killed(run: Run, after: float) -> bool:
    """Kill a run so many seconds later, unless it has ended well by then."""
    run.process.join(after)
    if run.process.is_alive():
        os.kill(run.pid, signal.SIGKILL)
    status = run.status()
    assert status in (0, -signal.SIGKILL), run.text()[-3000:]
    return status != 0


def finish(target, job: dict, log: Path) -> float:
    """Let it end by itself; how long that took, in seconds."""
    start = time.monotonic()
    with Run(job, log, target) as run:
        assert run.status(300) == 0, run.text()[-3000:]
    return time.monotonic() - start


@pytest.mark.parametrize("kills", [MANY])
def test_autolabel_gives_the_same_bytes(tmp_path, kills):
    data = write_tiny_data(tmp_path / "data", images=24)
    weights = save_model(tmp_path)
    job = {**data, "weights": weights, "output": str(tmp_path / "whole.json")}
    seconds = finish(label, job, tmp_path / "log")
    whole, draw = (tmp_path / "whole.json").read_bytes(), random.Random(1)
    count = number = 0
    while count < kills:
        output = tmp_path / f"{number}.json"
        job["output"], number = str(output), number + 1
        ended = False
        while count < kills and not ended:
            with Run(job, tmp_path / "log", label) as run:
                ended = not killed(run, draw.uniform(0, seconds))
            count += not ended
            assert not output.exists() or output.read_bytes() == whole
        if not ended:
            finish(label, job, tmp_path / "log")
        assert output.read_bytes() == whole
        assert not Path(f"{output}.unfinished").exists()
        assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("kills", [A_FEW, MANY])
def test_a_download_gives_the_same_bytes(tmp_path, kills):
    draw, cache = random.Random(2), tmp_path / "cache"
    with FileServer({"/m.pth": CONTENT}, pause=0.01) as server:
        job = {"cache": str(cache), "url": server.url("/m.pth")}
        seconds = finish(download, job, tmp_path / "log")
        (cache / NAME).unlink()
        count = 0
        while count < kills:
            with Run(job, tmp_path / "log", download) as run:
                was_killed = killed(run, draw.uniform(0, seconds))
            count += was_killed
            # under its name it is whole, and removed to be downloaded again
            assert not (cache / NAME).exists() or (cache / NAME).read_bytes() == CONTENT
            if not was_killed:
                (cache / NAME).unlink()
        finish(download, job, tmp_path / "log")
        assert (cache / NAME).read_bytes() == CONTENT
        assert {path.name for path in cache.iterdir() if path.suffix != ".lock"} == {NAME}
        assert any(asked for _, asked in server.requests)  # it went on where it had stopped
