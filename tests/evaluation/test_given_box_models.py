"""Masks in shrunk boxes: factors as in the paper, the same for every model."""

import psis_d2.modeling  # noqa: F401
from psis_d2.errors import UserError
from psis_d2.evaluation.given_box_models import BoxShrink, GivenBoxModel, ShrunkBoxModel

import pytest
import torch
from detectron2.structures import Boxes

from model_builders import partial_batch, tiny_model


def sides(boxes: Boxes) -> torch.Tensor:
    return boxes.tensor[:, 2:] - boxes.tensor[:, :2]


def test_factors_are_uniform_and_the_center_stays():
    boxes = Boxes(torch.tensor([[10.0, 20, 50, 30]]).repeat(4000, 1))
    smaller = BoxShrink(0.75)(boxes, "a")
    torch.testing.assert_close(smaller.get_centers(), boxes.get_centers())
    factors = sides(smaller) / sides(boxes)
    assert factors.min() >= 0.75
    assert factors.max() <= 1
    assert factors.mean(dim=0).tolist() == pytest.approx([0.875, 0.875], abs=0.01)
    assert factors.std(dim=0).tolist() == pytest.approx([0.25 / 12**0.5] * 2, rel=0.05)
    assert torch.corrcoef(factors.T)[0, 1].abs() < 0.1  # width and height are drawn apart


def test_factors_depend_on_image_and_seed_alone():
    boxes = Boxes(torch.tensor([[10.0, 20, 50, 30]]).repeat(3, 1))
    first = BoxShrink(0.75, seed=1)(boxes, 7).tensor
    torch.manual_seed(5)
    assert torch.equal(BoxShrink(0.75, seed=1)(boxes, 7).tensor, first)
    assert not torch.equal(BoxShrink(0.75, seed=2)(boxes, 7).tensor, first)
    assert not torch.equal(BoxShrink(0.75, seed=1)(boxes, 8).tensor, first)
    assert torch.equal(BoxShrink(0.75, seed=1)(boxes[:2], 7).tensor[:1], first[:1])
    assert torch.equal(BoxShrink(1.0)(boxes, 7).tensor, boxes.tensor)
    assert len(BoxShrink(0.75)(boxes[:0], 7)) == 0


@pytest.mark.parametrize("least", [0.0, -1.0, 1.5])
def test_bad_factor(least):
    with pytest.raises(UserError, match="TEST.BOX_SHRINK is"):
        BoxShrink(least)


def test_given_boxes_are_shrunk():
    model = tiny_model().eval()
    batch = partial_batch([[True, True]])
    truth = batch[0]["instances"]
    truth.gt_ids = torch.tensor([4, 9])
    before = truth.gt_boxes.tensor.clone()
    with torch.no_grad():
        found = GivenBoxModel(model, BoxShrink(0.5, seed=3))(batch)[0]["instances"]
    expected = BoxShrink(0.5, seed=3)(truth.gt_boxes, 0).tensor
    torch.testing.assert_close(found.pred_boxes.tensor, expected)
    assert torch.equal(truth.gt_boxes.tensor, before)
    assert found.gt_ids.tolist() == [4, 9]


def test_detected_boxes_are_shrunk():
    model = tiny_model("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0).eval()
    batch = partial_batch([[]])
    with torch.no_grad():
        detected = model(batch)[0]["instances"]
        found = ShrunkBoxModel(model, BoxShrink(0.5, seed=3))(batch)[0]["instances"]
    assert len(found) > 3
    expected = BoxShrink(0.5, seed=3)(detected.pred_boxes, 0).tensor
    torch.testing.assert_close(found.pred_boxes.tensor, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.scores, detected.scores)
    assert torch.equal(found.pred_classes, detected.pred_classes)
    # drawn in the smaller boxes: nothing further out than a pixel
    for mask, box in zip(found.pred_masks, found.pred_boxes.tensor, strict=True):
        ys, xs = mask.nonzero(as_tuple=True)
        if len(xs):
            assert xs.min() >= box[0] - 1
            assert xs.max() <= box[2] + 1
