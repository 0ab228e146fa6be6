"""Runs that are killed, stopped, starved and interrupted, as processes of their own.

Killed at random moments they are in ``tests/faults/test_kills.py``.
"""

import json
import os
import resource
import signal

import psis_d2  # noqa: F401
from psis_d2.engine.checkpoint import read_checkpoint

import pytest

from run_processes import Run, command, none_alive
from tiny_data import command_line, write_tiny_data

QUICK = "agnostic_shapes"
ENDLESS = ("SOLVER.MAX_ITER", 100_000, "SOLVER.CHECKPOINT_PERIOD", 2, "DATASETS.TEST", "[]")
ENDLESS += ("SEED", 3, "DATALOADER.NUM_WORKERS", 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_data(tmp_path_factory.mktemp("tiny"))


def newest(folder):
    return folder / (folder / "last_checkpoint").read_text()


def trains(folder):
    """Whether a run has trained for two iterations, and said so."""
    return (folder / "last_checkpoint").exists


def begin(data, folder, *opts, processes=1, **options) -> Run:
    line = command_line(data, folder / "out", *ENDLESS, *opts, config=QUICK)
    if processes > 1:
        line = ["--num-cpu-processes", str(processes), *line]
    return Run(line, folder / "log", **options)


@pytest.mark.parametrize(
    ("signum", "status", "processes"),
    [(signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 1), (signal.SIGINT, 130, 2)],
)
def test_a_signal_to_the_group_ends_with_a_checkpoint(data, tmp_path, signum, status, processes):
    with begin(data, tmp_path, processes=processes) as run:
        run.wait_for(trains(tmp_path / "out"))
        family = run.family()
        os.killpg(run.pid, signum)
        assert run.status() == status, run.text()[-3000:]
        assert none_alive(family, 20)
        assert run.errors() == []
        content = read_checkpoint(str(newest(tmp_path / "out")))
        assert content["iteration"] >= 1
        assert f"after iteration {content['iteration']}; --resume goes on" in run.text()


def test_ranks_do_not_outlive_their_parent(data, tmp_path):
    with begin(data, tmp_path, processes=2) as run:
        run.wait_for(trains(tmp_path / "out"))
        family = run.family()
        assert len(family) >= 4  # two ranks, their workers
        os.kill(run.pid, signal.SIGKILL)
        assert none_alive(family, 20)


@pytest.mark.parametrize(
    ("which", "signum"),
    [(1, signal.SIGKILL), pytest.param(0, signal.SIGTERM, marks=pytest.mark.slow)],
)
def test_a_rank_ends_the_others(data, tmp_path, which, signum):
    with begin(data, tmp_path, processes=2) as run:
        run.wait_for(trains(tmp_path / "out"))
        family = run.family()
        ranks = [pid for pid in family if "spawn_main" in command(pid)][:2]
        os.kill(ranks[which], signum)
        status = run.status()
        assert none_alive(family, 20)
        if signum == signal.SIGTERM:
            assert status == 143
            assert read_checkpoint(str(newest(tmp_path / "out")))["iteration"] >= 1
        else:
            assert status == 1
            (sentence,) = run.errors()
            assert f"Process 1 of 2 (pid {ranks[1]}) was killed by SIGKILL" in sentence


def test_a_killed_worker_is_named(data, tmp_path):
    with begin(data, tmp_path) as run:
        run.wait_for(trains(tmp_path / "out"))
        (worker,) = [pid for pid in run.family() if "resource_tracker" not in command(pid)]
        os.kill(worker, signal.SIGKILL)
        assert run.status() == 2, run.text()[-3000:]
        (sentence,) = run.errors()
        # PyTorch may see that it is gone before it hears why
        ends = ("was killed by a signal (Killed)", "has ended unexpectedly")
        assert any(f"worker process {worker} {end}" in sentence for end in ends)


def test_one_run_in_a_folder(data, tmp_path):
    with begin(data, tmp_path) as run:
        run.wait_for(trains(tmp_path / "out"))
        with Run(
            command_line(data, tmp_path / "out", config=QUICK), tmp_path / "second.log"
        ) as second:
            assert second.status() == 2
            (sentence,) = second.errors()
            assert f"is in use by process {run.pid} on " in sentence
        os.kill(run.pid, signal.SIGKILL)
        run.status()
    # what a killed run left is no lock
    line = command_line(
        data, tmp_path / "out", "DATASETS.TEST", "[]", "DATALOADER.NUM_WORKERS", 0, config=QUICK
    )
    with Run(line, tmp_path / "third.log") as third:
        assert third.status(120) == 0, third.text()[-3000:]
    assert not (tmp_path / "out" / "run.lock").exists()


def test_too_few_open_files(data, tmp_path):
    with begin(data, tmp_path, limits={resource.RLIMIT_NOFILE: 70}) as run:
        assert run.status(120) == 2
        (sentence,) = run.errors()
        assert "allows 70 open files, and 1 workers of the data loader need some 80" in sentence


@pytest.mark.parametrize("may_fail", [False, True])
def test_a_checkpoint_on_a_full_disk(data, tmp_path, may_fail):
    """A limit of a file's size stands for the disk; logs and data stay far below it."""
    opts = ("PSIS.SAVE_MAY_FAIL", may_fail)
    with begin(data, tmp_path, *opts, limits={resource.RLIMIT_FSIZE: 2_000_000}) as run:
        if may_fail:
            run.wait_for(lambda: run.text().count("training goes on without it") > 1)
            os.kill(run.pid, signal.SIGKILL)
        else:
            assert run.status(120) == 2
            (sentence,) = run.errors()
            assert "model_0000001.pth cannot be written (File too large)" in sentence
    assert not [p for p in (tmp_path / "out").iterdir() if p.suffix in (".pth", ".part")]


@pytest.mark.parametrize("name", ["metrics.json", "log.txt", "config.yaml"])
def test_a_log_on_a_full_disk(data, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to("/dev/full")
    opts = ("DATALOADER.NUM_WORKERS", 0, "SOLVER.MAX_ITER", 2)
    with begin(data, tmp_path, *opts) as run:
        assert run.status(120) == 2
        (sentence,) = run.errors()
        assert "The disk is full" in sentence
        assert "No space left on device" in sentence


def test_results_json_is_written_whole(data, tmp_path):
    """A run that is interrupted in its evaluation has its final checkpoint, and no results."""
    opts = ("SOLVER.MAX_ITER", 2, "TEST.BOXES", "both", "DATALOADER.NUM_WORKERS", 0)
    with Run(command_line(data, tmp_path / "out", *opts, config=QUICK), tmp_path / "log") as run:
        run.wait_for(lambda: "Start inference" in run.text())
        os.kill(run.pid, signal.SIGTERM)
        status = run.status()
    assert status in (143, 0)
    if status == 143:
        assert not (tmp_path / "out" / "results.json").exists()
    else:
        json.loads((tmp_path / "out" / "results.json").read_text())
    assert read_checkpoint(str(tmp_path / "out" / "model_final.pth"))["iteration"] == 1
