"""Masks kept as rectangles say what whole ones say."""

import pickle

import psis_d2  # noqa: F401
from psis_d2.data import cropped_masks
from psis_d2.data.cropped_masks import CroppedMasks, full_masks, union_of_masks

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

SIZE = (40, 60)


def some_masks(count=9, seed=0):
    """Rectangles of noise in many places, at all edges of the image; the third mask is empty."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, *SIZE, dtype=torch.bool)
    for number, mask in enumerate(masks):
        y, x = (int(torch.randint(side - 12, (), generator=generator)) for side in SIZE)
        y, x = {0: (0, 0), 1: (SIZE[0] - 12, SIZE[1] - 12)}.get(number, (y, x))
        mask[y : y + 12, x : x + 12] = torch.rand(12, 12, generator=generator) > 0.4
    masks[2] = False
    return masks


def some_boxes(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 50 - 5
    side = 0.5 + 30 * torch.rand(count, 2, generator=generator)
    return Boxes(torch.cat([corner, corner + side], dim=1))


def test_pixels_and_rectangles_by_hand():
    masks = torch.zeros(3, 4, 5, dtype=torch.bool)
    masks[0, 1, 2] = masks[0, 2, 3] = masks[2, 3, 0] = True
    cropped = CroppedMasks.from_dense(masks)
    assert cropped.bits.tolist() == [True, False, False, True, True]
    assert cropped.rows.tolist() == [[2, 1, 4, 3, 0], [0, 0, 0, 0, 0], [0, 3, 1, 4, 4]]
    assert cropped.nonempty().tolist() == [True, False, True]
    assert len(cropped) == 3 and cropped.image_size == (4, 5)
    assert torch.equal(cropped.tensor, masks) and cropped.tensor.dtype == torch.bool


def test_it_says_what_bit_masks_say():
    masks = some_masks()
    cropped, whole = CroppedMasks.from_dense(masks), BitMasks(masks)
    assert torch.equal(cropped.tensor, masks)
    assert torch.equal(cropped.nonempty(), whole.nonempty())
    assert torch.equal(cropped.get_bounding_boxes().tensor, whole.get_bounding_boxes().tensor)
    keep = torch.arange(9) % 2 == 0
    for index in (keep, torch.tensor([4, 4, 0]), slice(2, 7, 2), 3, -1):
        assert torch.equal(cropped[index].tensor, whole[index].tensor)
    assert torch.equal(full_masks(cropped, keep), full_masks(whole, keep))
    for some in (keep, ~keep, torch.zeros(9, dtype=torch.bool)):
        assert torch.equal(union_of_masks(cropped, some), union_of_masks(whole, some))
    both = CroppedMasks.cat([cropped[keep], cropped])
    assert torch.equal(both.tensor, torch.cat([masks[keep], masks]))
    again = pickle.loads(pickle.dumps(cropped.to("cpu")))
    assert torch.equal(again.tensor, masks)


@pytest.mark.parametrize("at_a_time", [2, 32])
def test_crops_are_bit_masks_crops(monkeypatch, at_a_time):
    monkeypatch.setattr(cropped_masks, "_AT_A_TIME", at_a_time)
    masks = some_masks()
    cropped, boxes = CroppedMasks.from_dense(masks), some_boxes(200)
    index = torch.arange(200) % 9
    found = cropped.crop(index, boxes, 14)
    expected = BitMasks(masks[index]).crop_and_resize(boxes.tensor, 14)
    assert torch.equal(found.bool(), expected) and 0.01 < found.mean() < 0.5
    assert torch.equal(cropped[index].crop_and_resize(boxes.tensor, 14), expected)


def test_nothing_at_all():
    for masks in (torch.zeros(0, *SIZE), torch.zeros(3, *SIZE)):
        cropped = CroppedMasks.from_dense(masks.bool())
        assert torch.equal(cropped.tensor, masks.bool())
        index = torch.zeros(len(masks), dtype=torch.int64)
        assert not cropped.crop(index, some_boxes(len(masks)), 7).any()
        assert torch.equal(
            CroppedMasks.cat([cropped, cropped]).tensor, masks.bool().repeat(2, 1, 1)
        )


def test_instances_carry_it():
    masks = some_masks()
    instances = Instances(SIZE, gt_masks=CroppedMasks.from_dense(masks))
    keep = torch.arange(9) > 4
    assert torch.equal(instances[keep].gt_masks.tensor, masks[keep])
    assert torch.equal(Instances.cat([instances, instances]).gt_masks.tensor, masks.repeat(2, 1, 1))
    assert instances.to("cpu").gt_masks.device == torch.device("cpu")


def test_a_rectangle_costs_what_it_covers():
    pixels = np.ones((3, 5), dtype=np.uint8)
    cropped = CroppedMasks.from_crops([(pixels, 900, 700), None], (1000, 1000))
    assert cropped.bits.numel() == 15 and cropped.bits.dtype == torch.bool
    assert cropped.tensor[0, 700:703, 900:905].all() and cropped.tensor.sum() == 15
