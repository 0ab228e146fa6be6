"""Several processes on the CPU, through gloo."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psis_d2  # noqa: F401
from psis_d2.engine.launch import launch
from psis_d2.errors import UserError

import pytest
import torch

import launch_workers
from gloo_workers import report_groups, train_with_masks_on_rank_zero
from model_builders import MASKX
from run_processes import Run, none_alive

ROOT = Path(__file__).parents[2]


def test_a_rank_without_masks_trains_the_mask_head_alone(tmp_path):
    """The whole model: tests/modeling/test_head_contract.py, with every head."""
    args = (str(tmp_path), MASKX, "mask_head")
    launch(train_with_masks_on_rank_zero, num_cpu_processes=2, args=args)
    first, second = (torch.load(tmp_path / f"rank{r}.pth") for r in range(2))
    assert first["mask_loss"] > 0
    assert second["mask_loss"] == 0
    parameters = [name for name in first["model"] if "running" not in name]
    assert len(parameters) > 50
    for name in parameters:  # batch statistics are each rank's own
        assert torch.equal(first["model"][name], second["model"][name]), name


def test_torchrun_environment(tmp_path):
    code = (
        "import psis_d2\n"
        "from gloo_workers import report_groups\n"
        "from psis_d2.engine.launch import launch\n"
        f"launch(report_groups, args=({str(tmp_path)!r},))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            script,
        ],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        check=True,
        capture_output=True,
        timeout=300,
    )
    assert torch.load(tmp_path / "facts0.pth") == (2, 0, 0, 2)
    assert torch.load(tmp_path / "facts1.pth") == (2, 1, 1, 2)


def test_one_process_needs_no_group(tmp_path):
    launch(report_groups, args=(str(tmp_path),))
    assert torch.load(tmp_path / "facts0.pth") == (1, 0, 0, 1)


def test_several_machines_need_a_meeting_point():
    with pytest.raises(UserError, match="--dist-url is needed"):
        launch(report_groups, num_cpu_processes=1, num_machines=2, args=("",))


def slow(*values):
    """One of the kinds that differ little from others: each takes two processes."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("how", "status", "words"),
    [
        slow("refuse", 2, "error: The weights are of cheese."),
        ("both refuse", 2, "error: The weights are of cheese."),
        slow("leave", 7, None),
        ("crash", 1, "error: Process 1 of 2 (pid {}) ended with an error, see above"),
        slow("die", 1, "error: Process 1 of 2 (pid {}) was killed by SIGKILL"),
        ("stop", 1, "error: Process 1 of 2 (pid {}) hangs (it was stopped by a signal)"),
        slow("hang", 1, "error: Process 1 of 2 (pid {}) hangs: the others waited 3 seconds"),
    ],
)
def test_a_process_ends_all_with_one_sentence(tmp_path, how, status, words):
    timeout = 3.0 if how in ("stop", "hang") else 60.0
    with Run((how, str(tmp_path), timeout), tmp_path / "log", launch_workers.run) as run:
        assert run.status(100) == status, run.text()
    pids = [int((tmp_path / f"pid{rank}").read_text()) for rank in range(2)]
    assert none_alive(pids, 0)
    sentences = [line for line in run.text().splitlines() if line.startswith("error: ")]
    if words is None:
        assert sentences == []
    else:
        (sentence,) = sentences
        assert sentence.startswith(words.format(pids[1]))
    # a fault of the code keeps its traceback, that of the process which has it
    assert run.text().count("Traceback") == (how == "crash")
    assert ("a fault of the code" in run.text()) == (how == "crash")


@pytest.mark.slow  # test_processes.py has the same of a training
@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_a_signal_to_the_parent_ends_all(tmp_path, signum, status):
    with Run(("go on", str(tmp_path), 60.0), tmp_path / "log", launch_workers.run) as run:
        run.wait_for((tmp_path / "pid1").exists)
        family = run.family()
        os.kill(run.pid, signum)
        assert run.status(60) == status
        assert none_alive(family, 10)
        assert run.errors() == []
