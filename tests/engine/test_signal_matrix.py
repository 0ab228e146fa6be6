"""Runs of two and four processes, of each launcher, that are stopped in each way.

Nothing of a run stays alive, its newest checkpoint is whole, and what it prints names what died.
Hardly any batch of these runs holds a mask: most processes are maskless in most iterations.
"""

import importlib
import json
import os
import re
import signal
import socket
from pathlib import Path

import psis_d2  # noqa: F401
from psis_d2.engine.checkpoint import read_checkpoint
from psis_d2.errors import LostProcess

import pytest

from run_processes import Run, command, none_alive, torchrun, train
from tiny_data import command_line, write_tiny_data

SECONDS = 60
ENDLESS = ("SOLVER.MAX_ITER", 100_000, "SOLVER.CHECKPOINT_PERIOD", 2, "DATASETS.TEST", "[]")
ENDLESS += ("SEED", 3, "DATALOADER.NUM_WORKERS", 1, "SOLVER.IMS_PER_BATCH", 4)
GO_ON = r"after iteration \d+; --resume goes on"
DIED = {
    "spawn": r"error: Process {rank} of {size} \(pid {pid}\) was killed by SIGKILL",
    "torchrun": r"rank +: {rank} \(local_rank: {rank}\)\s+exitcode +: -9 \(pid: {pid}\)",
}
LEFT = {"spawn": GO_ON, "torchrun": r"exitcode +: 143 \(pid: {pid}\)"}
WORKER = r"worker process {pid} (was killed by a signal \(Killed\)|has ended unexpectedly)"
# what is sent, to whom: exit status under each launcher (torchrun's own is 1), what is printed
ENDS = {
    ("SIGTERM", "parent"): ({"spawn": 143, "torchrun": 1}, GO_ON),
    ("SIGINT", "group"): ({"spawn": 130, "torchrun": 1}, GO_ON),
    ("SIGKILL", "parent"): ({"spawn": -9, "torchrun": -9}, None),
    ("SIGKILL", "rank"): ({"spawn": 1, "torchrun": 1}, DIED),
    ("SIGKILL", "first rank"): ({"spawn": 1, "torchrun": 1}, DIED),
    ("SIGTERM", "rank"): ({"spawn": 143, "torchrun": 1}, LEFT),
    ("SIGKILL", "worker"): ({"spawn": 2, "torchrun": 1}, WORKER),
}
FAST = {("torchrun", 2, "SIGTERM", "parent")}


def matrix():
    for launcher in ("torchrun", "spawn"):
        for processes in (2, 4):
            for signum, target in ENDS:
                case = (launcher, processes, signum, target)
                yield pytest.param(*case, marks=() if case in FAST else pytest.mark.faults)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six images, one of which has a mask."""
    data = write_tiny_data(tmp_path_factory.mktemp("tiny"))
    content = json.loads(Path(data["json"]).read_text())
    masks = [a for a in content["annotations"] if "segmentation" in a]
    for annotation in masks[1:]:
        del annotation["segmentation"]
    Path(data["json"]).write_text(json.dumps(content))
    return data


def ranks_and_workers(run: Run, processes: int) -> tuple[list[int], list[int]]:
    """Pids of the run's processes in their order, and of their loaders' workers."""
    found = [p for p in run.family() if "resource_tracker" not in command(p)]
    assert len(found) == 2 * processes, [*map(command, found)]
    return sorted(found[:processes]), found[processes:]


@pytest.mark.parametrize(("launcher", "processes", "signum", "target"), matrix())
def test_all_of_a_run_ends(data, tmp_path, launcher, processes, signum, target):
    out, number = tmp_path / "out", getattr(signal, signum)
    line = command_line(data, out, *ENDLESS, config="agnostic_shapes")
    if launcher == "torchrun":
        start, argument = torchrun, (processes, line)
    else:
        start, argument = train, ["--num-cpu-processes", str(processes), *line]
    with Run(argument, tmp_path / "log", start) as run:
        run.wait_for((out / "last_checkpoint").exists)
        ranks, workers = ranks_and_workers(run, processes)
        died = {"rank": ranks[-1], "first rank": ranks[0], "worker": workers[-1]}.get(target)
        if target == "group":
            os.killpg(run.pid, number)
        else:
            os.kill(died or run.pid, number)
        ended = none_alive([run.pid, *ranks, *workers], SECONDS)
        assert ended, run.text()[-3000:]
        statuses, words = ENDS[signum, target]
        assert run.status() == statuses[launcher], run.text()[-3000:]
        content = read_checkpoint(str(out / (out / "last_checkpoint").read_text()))
        assert content["iteration"] >= 1
        if words is not None:
            words = words[launcher] if isinstance(words, dict) else words
            rank = 0 if target == "first rank" else processes - 1
            words = words.format(rank=rank, size=processes, pid=died) if died else words
            assert re.search(words, run.text()), run.text()[-3000:]
        if launcher == "spawn":
            # and no traceback
            assert len(run.errors()) == (died is not None and signum == "SIGKILL")
        else:  # which ends in a traceback of its own
            assert re.search(r'File "[^"]*psis_d2/(cli|engine)/', run.text()) is None


@pytest.mark.faults
def test_processes_whose_torchrun_dies_while_they_import_end(data, tmp_path):
    line = command_line(data, tmp_path / "out", *ENDLESS, config="agnostic_shapes")
    with Run((2, line), tmp_path / "log", torchrun) as run:
        run.wait_for(lambda: sum("train_net" in command(p) for p in run.family()) == 2)
        family = run.family()
        os.kill(run.pid, signal.SIGKILL)
        assert none_alive(family, SECONDS), run.text()[-3000:]
    assert not (tmp_path / "out" / "last_checkpoint").exists()


def test_a_process_whose_torchrun_is_gone_says_so(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    module = importlib.import_module("psis_d2.engine.launch")  # the package has its function
    monkeypatch.setattr(module, "_AGENT_SECONDS", 0.2)
    with pytest.raises(LostProcess, match=f"nobody answers at 127.0.0.1:{port}"):
        module._look_for_agent()
    with socket.create_server(("127.0.0.1", port)):
        module._look_for_agent()
