"""Batch norm over the regions of all processes, some of which have none."""

import psis_d2  # noqa: F401
from psis_d2.modeling.mask_heads.blocks import conv_tower

import pytest
import torch

from gloo_workers import run_in_two_processes

HEADS = ["fcn", "opmask", "cpmask", "shapemask", "teacher_student"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both processes saved; the first sees masks, the second sees none."""
    folder = tmp_path_factory.mktemp("ranks")
    run_in_two_processes("train_synchronized_heads", folder, HEADS)
    return [torch.load(folder / f"synchronized{rank}.pth") for rank in range(2)]


def test_statistics_are_those_of_all_regions(ranks):
    """Three regions here and none there: as if the three were alone in one process."""
    torch.manual_seed(0)
    tower = conv_tower(4, 4, 2, "BN").train()
    x = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    output = tower(x)
    output.square().sum().backward()
    first, second = (rank["tower"] for rank in ranks)
    torch.testing.assert_close(first["output"], output.detach())
    torch.testing.assert_close(first["gradient"], x.grad)
    assert second["output"].shape == (0, 4, 5, 5)
    for k in range(2):
        for name in ("running_mean", "running_var"):
            mine = getattr(tower[k].norm, name)
            if name == "running_mean":
                torch.testing.assert_close(first["state"][f"{k}.norm.{name}"], mine)
            both = [rank["tower"]["state"][f"{k}.norm.{name}"] for rank in ranks]
            assert torch.equal(*both)


@pytest.mark.parametrize("name", HEADS)
def test_a_process_without_masks_takes_part(name, ranks):
    first, second = (rank[name] for rank in ranks)
    assert first["mask_loss"] > 0 == second["mask_loss"] or name == "teacher_student"
    assert first["model"].keys() == second["model"].keys()
    norms = [key for key in first["model"] if key.endswith("running_mean") and "mask_head" in key]
    assert norms
    for key in norms:
        assert torch.equal(first["model"][key], second["model"][key])
        assert first["model"][key].abs().sum() > 0
    for key, value in first["model"].items():
        if key.startswith("roi_heads.mask_head"):
            assert torch.equal(value, second["model"][key]), key
