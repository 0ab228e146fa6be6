"""The hourglass mask head: depth as named, any size, refusals."""

import psis_d2  # noqa: F401
from psis_d2.errors import UserError
from psis_d2.modeling.hourglass import Hourglass, ResidualBlock
from psis_d2.modeling.mask_heads.hourglass import HourglassMaskHead

import pytest
import torch
from detectron2.layers import ShapeSpec

from model_builders import HOURGLASS, tiny_config


def build_head(*keys, side: int = 14) -> HourglassMaskHead:
    return HourglassMaskHead(
        tiny_config(*HOURGLASS, *keys), ShapeSpec(channels=16, height=side, width=side)
    )


def longest_path(hourglass: Hourglass) -> int:
    """3x3 convolutions from end to end, through the coarsest scale."""
    inside = hourglass.inside
    depth = longest_path(inside) if isinstance(inside, Hourglass) else 2 * len(inside)
    return depth + 2 * len(hourglass.encode) + 2 * len(hourglass.decode)


@pytest.mark.parametrize(
    ("blocks", "layers"),
    [([1, 2, 2], 20), ([2, 2, 2, 2, 2, 4], 52), ([4, 4, 4, 4, 4, 8], 100)],
)
def test_depths_have_their_names(blocks, layers):
    hourglass = Hourglass([4] * len(blocks), blocks, norm="")
    # first convolution, first residual block, last convolution
    assert longest_path(hourglass) + 1 + 2 + 1 == layers


def test_defaults_are_hourglass_52():
    node = tiny_config().PSIS.HOURGLASS
    assert node.BLOCKS == [2, 2, 2, 2, 2, 4]
    assert node.CHANNELS == [2 * 64, 2 * 64, 3 * 64, 3 * 64, 3 * 64, 4 * 64]


@pytest.mark.parametrize("size", [1, 5, 14, 16])
def test_output_is_as_large_as_the_input(size):
    x = torch.randn(2, 4, size, size)
    assert Hourglass([4, 6, 8], [1, 1, 1], norm="")(x).shape == x.shape


def test_the_hourglass_sees_the_whole_region():
    """A change in one corner reaches the opposite one, which four 3x3 convolutions do not do."""
    torch.manual_seed(0)
    hourglass = Hourglass([4, 4, 4, 4], [1, 1, 1, 1], norm="")
    x = torch.randn(1, 4, 16, 16)
    moved = x.clone()
    moved[..., 0, 0] += 1
    assert not torch.equal(hourglass(x)[..., -1, -1], hourglass(moved)[..., -1, -1])


def test_residual_block_by_hand():
    block = ResidualBlock(1, 1, norm="")
    for conv in (block.conv1, block.conv2):
        torch.nn.init.zeros_(conv.weight)
        conv.weight.data[0, 0, 1, 1] = 2.0  # twice the identity
    x = torch.tensor([[[[1.0, -3.0], [0.5, 0.0]]]])
    # relu(2 relu(2 x) + x): 4 + 1; relu(-3); 2 + 0.5; 0
    assert block(x).flatten().tolist() == [5.0, 0.0, 2.5, 0.0]


def test_masks_have_twice_the_side_of_the_regions():
    for side in (8, 14):
        head = build_head(side=side)
        logits = head.predictor(head.trunk(torch.randn(3, 16, side, side)))
        assert logits.shape == (3, 1, 2 * side, 2 * side)


def test_one_region_is_enough_to_train_on():
    """No statistics of the batch: a region's logits do not depend on the others."""
    head = build_head().train()
    x = torch.randn(3, 16, 14, 14)
    together, alone = head.predictor(head.trunk(x))[:1], head.predictor(head.trunk(x[:1]))
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("PSIS.HOURGLASS.BLOCKS", [1, 1, 1]), "give as many of the one as of the other"),
        (("PSIS.HOURGLASS.BLOCKS", [1], "PSIS.HOURGLASS.CHANNELS", [8]), "two or more"),
        (("PSIS.HOURGLASS.BLOCKS", [1, 0]), "all positive"),
        (("MODEL.ROI_MASK_HEAD.NORM", "SyncBN"), "NORM is 'SyncBN'.*choose GN"),
        (("PSIS.MLP_BRANCH", True), "HourglassMaskHead has no place for it"),
    ],
)
def test_bad_options(keys, words):
    with pytest.raises(UserError, match=words):
        build_head(*keys)
