"""AdelaiDet's grids: upsampling, targets and pasting against literal definitions."""

import psis_d2  # noqa: F401
from psis_d2.modeling import released_grids
from psis_d2.modeling.condinst.mask_branch import MaskBranch
from psis_d2.modeling.image_masks import ImageMasks
from psis_d2.modeling.mask_targets import shrink_masks

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec

from model_builders import literal_upsample


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("size", [(5, 7), (1, 1), (3, 1)])
def test_upsampling_equals_its_definition(factor, size):
    maps = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(
        released_grids.upsample(maps, factor), literal_upsample(maps, factor)
    )
    assert released_grids.upsample(maps[:0], factor).shape == (0, 3, *(factor * n for n in size))


def test_upsampling_by_hand():
    # Values lie at 1 and 3, half of the factor beside where they start.
    (row,) = released_grids.upsample(torch.tensor([[[[0.0, 4.0]]]]), 2)[0, 0, :1].tolist()
    assert row == pytest.approx([0, 0, 2, 4])


def test_a_target_is_one_pixel_of_each_cell():
    masks = torch.zeros(1, 10, 8, dtype=torch.bool)
    masks[0, 2, 6] = masks[0, 9, 7] = True
    picked = released_grids.pick(masks, 4, (3, 4))
    assert picked[0].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_pasting_equals_its_definition():
    soft = torch.rand(20, 6, 8)  # of a padded image of 24 x 32
    pixels = literal_upsample(soft[:, None], 4)[:, :, :21, :30]
    for size in ((21, 30), (42, 55)):
        expected = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)[:, 0]
        masks = ImageMasks(soft, 4, (21, 30), released=True)
        found = masks.to("cpu")[torch.arange(20)].to_bitmasks(None, *size).tensor
        assert (found == (expected >= 0.5)).float().mean() > 0.9999


def test_a_disc_comes_back_moved():
    """A disc through target and paste: overlap with itself on released grids and on our own."""
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    disc = ((x - 31) ** 2 + (y - 33) ** 2 < 64)[None]

    def overlap(target, released):
        # The network predicts its target at stride 8, which is upsampled to stride 4.
        mask = ImageMasks(target, 4, (64, 64), released).to_bitmasks(None, 64, 64).tensor
        return ((mask & disc).sum() / (mask | disc).sum()).item()

    own = overlap(shrink_masks(disc, 4, (16, 16)), False)
    theirs = overlap(released_grids.pick(disc, 4, (16, 16)), True)
    assert own > 0.93
    assert theirs < own - 0.05


def test_the_branch_starts_as_released():
    shapes = [ShapeSpec(channels=256, stride=8), ShapeSpec(channels=256, stride=16)]
    options = {"dim": 128, "num_convs": 2, "norm": "BN", "channels": 8}
    torch.manual_seed(0)
    released, msra = (MaskBranch(shapes, **options, init=init) for init in ("released", "msra"))

    def scales(branch):
        layers = (branch.refine[1][0], branch.tower[1], branch.project)
        return [layer.weight.std().item() for layer in layers]

    # 1 / sqrt(fan-in); PyTorch's own is uniform up to 1 / sqrt(fan-in).
    expected = [1 / 2304**0.5, 1 / 1152**0.5, 1 / (3 * 128) ** 0.5]
    assert scales(released) == pytest.approx(expected, rel=0.05)
    ratios = [a / b for a, b in zip(scales(msra), scales(released), strict=True)]
    assert ratios == pytest.approx([2, 2**0.5, 9.7], rel=0.06)


def test_levels_are_upsampled_as_released():
    shapes = [ShapeSpec(channels=4, stride=8), ShapeSpec(channels=4, stride=16)]
    options = {"dim": 4, "num_convs": 0, "norm": "", "channels": 4, "released_grids": True}
    branch = MaskBranch(shapes, **options)
    maps = [torch.randn(1, 4, 6, 8), torch.randn(1, 4, 3, 4)]
    fine, coarse = (refine(x) for refine, x in zip(branch.refine, maps, strict=True))
    expected = branch.project(fine + literal_upsample(coarse, 2))
    torch.testing.assert_close(branch(maps), expected)
