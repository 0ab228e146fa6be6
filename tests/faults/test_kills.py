"""Killed at random moments, autolabel and a download end as if nothing had been.

Training has the same in ``tests/engine/test_processes.py``.
"""

import hashlib
import os
import random
import signal
import time
from pathlib import Path

import psis_d2

import pytest

from file_server import FileServer
from run_processes import Run
from saved_models import save_model
from tiny_data import write_tiny_data

CONTENT = random.Random(0).randbytes(3_000_000)
SHA = hashlib.sha256(CONTENT).hexdigest()
NAME = "m_00000000.pth"
MANY = pytest.param(50, marks=pytest.mark.faults)


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


@pytest.mark.parametrize("kills", [6, MANY])
def test_a_download_gives_the_same_bytes(tmp_path, kills):
    draw, cache = random.Random(2), tmp_path / "cache"
    with FileServer({"/m.pth": CONTENT}, pause=0.02) as server:
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
