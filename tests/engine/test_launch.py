"""Several processes on the CPU, through gloo."""

import os
import subprocess
import sys
from pathlib import Path

import psis_d2  # noqa: F401
from psis_d2.engine.launch import launch
from psis_d2.errors import UserError

import pytest
import torch

from gloo_workers import report_groups, train_with_masks_on_rank_zero
from model_builders import MASKX

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
