"""Mask targets: hand-made cases, and agreement with Detectron2's own cropping."""

from psis_d2.modeling.mask_targets import crop_masks

import torch
from detectron2.structures import BitMasks, Boxes


def test_box_over_half_a_mask_gives_half_a_target():
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[1, :, :4] = True  # the left half of the image
    target = crop_masks(masks, torch.tensor([1]), Boxes(torch.tensor([[0.0, 0, 8, 8]])), 4)
    expected = torch.tensor([[1.0, 1, 0, 0]] * 4)
    assert torch.equal(target[0], expected)


def test_several_boxes_share_a_mask():
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[0, 2:6, 2:6] = True
    boxes = Boxes(torch.tensor([[2.0, 2, 6, 6], [0, 0, 2, 2]]))
    target = crop_masks(masks, torch.tensor([0, 0]), boxes, 2)
    assert target[0].eq(1).all()
    assert target[1].eq(0).all()


def test_equals_detectron2_on_copied_masks():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(5, 40, 60, generator=generator) > 0.5
    index = torch.tensor([4, 0, 0, 2, 3, 1])
    corner = torch.rand(6, 2, generator=generator) * 25
    boxes = Boxes(torch.cat([corner, corner + 3 + 20 * torch.rand(6, 2, generator=generator)], 1))
    ours = crop_masks(masks, index, boxes, 14)
    theirs = BitMasks(masks[index]).crop_and_resize(boxes.tensor, 14)
    assert torch.equal(ours.bool(), theirs)
    assert 0.2 < ours.mean() < 0.8  # the comparison has something to compare


def test_no_boxes():
    target = crop_masks(
        torch.zeros(0, 8, 8, dtype=torch.bool),
        torch.zeros(0, dtype=torch.int64),
        Boxes(torch.zeros(0, 4)),
        28,
    )
    assert target.shape == (0, 28, 28)
