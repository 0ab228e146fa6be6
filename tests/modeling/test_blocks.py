"""Layers whose ReLUs overwrite their input: nothing that is still read is lost."""

import psis_d2  # noqa: F401
from psis_d2.modeling.hourglass import ResidualBlock, hourglass_trunk
from psis_d2.modeling.mask_heads.blocks import conv_tower, upsample_layers

import pytest
import torch
from torch import nn

BLOCKS = {
    "tower": lambda norm: conv_tower(16, 16, 2, norm),
    "upsampling": lambda norm: upsample_layers(16, 16, norm),
    "residual": lambda norm: ResidualBlock(16, 16, norm),
    "residual, another width": lambda norm: ResidualBlock(16, 8, norm, stride=2),
    "hourglass": lambda norm: hourglass_trunk(16, 16, [16, 16, 24], [1, 1, 1], norm),
}


def trained(block: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output and the gradients of the input and of all weights."""
    output = block(x)
    weights = [p for p in block.parameters() if p.requires_grad]
    return [output, *torch.autograd.grad(output.square().sum(), [x, *weights])]


@pytest.mark.parametrize("norm", ["", "GN", "BN", "FrozenBN"])
@pytest.mark.parametrize("name", BLOCKS)
def test_overwriting_changes_nothing(name, norm, monkeypatch):
    if name == "hourglass" and "BN" in norm:
        pytest.skip("no batch norm over regions in an hourglass")
    torch.manual_seed(0)
    block = BLOCKS[name](norm).to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 12, 12).to(memory_format=torch.channels_last).requires_grad_()
    before = x.detach().clone()
    found = trained(block, x)
    assert torch.equal(x, before)
    relus = [m for m in block.modules() if isinstance(m, nn.ReLU)]
    assert any(m.inplace for m in relus)
    for relu in relus:
        relu.inplace = False
    monkeypatch.setattr(nn.functional, "relu_", nn.functional.relu)
    for one, other in zip(found, trained(block, x), strict=True):
        assert torch.equal(one, other)
