"""Mask targets: hand-made cases, and agreement with Detectron2's own cropping."""

from psis_d2.modeling.mask_targets import boundary_targets, crop_masks, shrink_masks

import pytest
import torch
from detectron2.structures import BitMasks, Boxes


def test_box_over_half_a_mask_gives_half_a_target():
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[1, :, :4] = True  # the left half of the image
    box = Boxes(torch.tensor([[0.0, 0, 8, 8]]))
    target = crop_masks(BitMasks(masks), torch.tensor([1]), box, 4)
    expected = torch.tensor([[1.0, 1, 0, 0]] * 4)
    assert torch.equal(target[0], expected)


def test_several_boxes_share_a_mask():
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[0, 2:6, 2:6] = True
    boxes = Boxes(torch.tensor([[2.0, 2, 6, 6], [0, 0, 2, 2]]))
    target = crop_masks(BitMasks(masks), torch.tensor([0, 0]), boxes, 2)
    assert target[0].eq(1).all()
    assert target[1].eq(0).all()


def test_equals_detectron2_on_copied_masks():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(5, 40, 60, generator=generator) > 0.5
    index = torch.tensor([4, 0, 0, 2, 3, 1])
    corner = torch.rand(6, 2, generator=generator) * 25
    boxes = Boxes(torch.cat([corner, corner + 3 + 20 * torch.rand(6, 2, generator=generator)], 1))
    ours = crop_masks(BitMasks(masks), index, boxes, 14)
    theirs = BitMasks(masks[index]).crop_and_resize(boxes.tensor, 14)
    assert torch.equal(ours.bool(), theirs)
    assert 0.2 < ours.mean() < 0.8  # the comparison has something to compare


def test_no_boxes():
    target = crop_masks(
        BitMasks(torch.zeros(0, 8, 8, dtype=torch.bool)),
        torch.zeros(0, dtype=torch.int64),
        Boxes(torch.zeros(0, 4)),
        28,
    )
    assert target.shape == (0, 28, 28)


def cross_changes(mask, quantifier):
    """One step of dilation (any) or erosion (all) with a cross; only cells of the region count."""
    side = len(mask)
    changed = mask.clone()
    for y in range(side):
        for x in range(side):
            cross = [(y, x), (y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [(v, u) for v, u in cross if 0 <= v < side and 0 <= u < side]
            changed[y, x] = quantifier(bool(mask[cell]) for cell in inside)
    return changed


@pytest.mark.parametrize("width", [1, 2, 3])
def test_boundary_is_dilation_minus_erosion(width):
    generator = torch.Generator().manual_seed(width)
    blobs = torch.rand(4, 1, 5, 5, generator=generator)
    masks = torch.nn.functional.interpolate(blobs, size=(12, 12), mode="bilinear")[:, 0] > 0.5
    masks = torch.cat([masks, torch.rand(2, 12, 12, generator=generator) > 0.9])
    edges = torch.cat([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]])
    assert edges.any()  # some masks are cut by the region's edge
    targets = boundary_targets(masks.float(), width)
    for mask, target in zip(masks, targets, strict=True):
        dilated = eroded = mask
        for _ in range(width):
            dilated, eroded = cross_changes(dilated, any), cross_changes(eroded, all)
        assert torch.equal(target.bool(), dilated ^ eroded)
    assert 0.1 < targets.mean() < 0.95


def test_no_boundary_where_the_edge_cuts_the_mask():
    mask = torch.zeros(1, 5, 5)
    mask[0, 2:, :3] = 1  # continues beyond the lower and the left edge
    expected = [
        [0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 0],
    ]
    assert boundary_targets(mask, 1)[0].int().tolist() == expected
    assert boundary_targets(torch.ones(1, 5, 5), 1).eq(0).all()
    assert boundary_targets(torch.zeros(1, 5, 5), 2).eq(0).all()


def test_shrunk_masks_are_shares_of_cells():
    masks = torch.zeros(3, 5, 6, dtype=torch.bool)
    masks[0, :4, :3] = True  # three of four columns of the first cell
    masks[1, 4, 4] = True  # one of the two pixels that the lower right cell has
    found = shrink_masks(masks, 4, (3, 2), at_a_time=2)
    assert found[0].tolist() == [[0.75, 0], [0, 0], [0, 0]]
    assert found[1].tolist() == [[0, 0], [0, 0.5], [0, 0]]  # the third row is padding
    assert found[2].eq(0).all()
    assert shrink_masks(masks[:0], 4, (3, 2)).shape == (0, 3, 2)
