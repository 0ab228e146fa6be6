"""Predictor: one file in, objects with masks out."""

import psis_d2
from psis_d2.errors import UserError
from psis_d2.inference.predictor import mask_scores

import numpy as np
import pytest
import torch

from saved_models import CLASSES

BOXES = [[4, 6, 30, 40], [10, 3, 18, 9], [0, 0, 70, 50]]


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def test_the_file_says_everything(predictor):
    assert predictor.class_names == list(CLASSES)
    assert predictor.seen_ids == {0}
    assert predictor.cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3


def test_detections_are_in_the_images_pixels(predictor, image):
    found = predictor(image)
    assert found.image_size == (50, 70)
    assert found.pred_masks.shape == (len(found), 50, 70)
    assert found.pred_masks.dtype == torch.bool
    boxes = found.pred_boxes.tensor
    assert (boxes >= 0).all() and (boxes[:, 2] <= 70).all() and (boxes[:, 3] <= 50).all()
    assert ((found.mask_scores >= 0.5) & (found.mask_scores <= 1)).all()


def test_given_boxes_come_back_as_they_are_and_bound_the_masks(predictor, image):
    found = predictor(image, BOXES, [0, 1, 2])
    np.testing.assert_array_equal(found.pred_boxes.tensor, np.array(BOXES, dtype=np.float32))
    assert found.pred_classes.tolist() == [0, 1, 2]
    for mask, (x0, y0, x1, y1) in zip(found.pred_masks.numpy(), BOXES, strict=True):
        rows, columns = mask.nonzero()
        assert len(rows), "the model marks everything in a box"
        assert rows.min() >= y0 - 1 and rows.max() <= y1 and columns.min() >= x0 - 1
        assert columns.max() <= x1


def test_a_box_without_area_gets_an_empty_mask_and_keeps_its_place(predictor, image):
    found = predictor(image, [BOXES[0], [20, 20, 20, 30], BOXES[1]], [0, 1, 1])
    alone = predictor(image, [BOXES[0], BOXES[1]], [0, 1])
    assert not found.pred_masks[1].any() and found.mask_scores[1] == 0
    assert torch.equal(found.pred_masks[[0, 2]], alone.pred_masks)


def test_no_boxes(predictor, image):
    found = predictor(image, [], [])
    assert len(found) == 0
    assert found.pred_masks.shape == (0, 50, 70)


def test_color_orders(predictor, image):
    bgr = predictor(image, BOXES, [0, 0, 0])
    rgb = predictor(image[:, :, ::-1], BOXES, [0, 0, 0], color_order="RGB")
    assert torch.equal(bgr.pred_masks, rgb.pred_masks)
    assert torch.equal(bgr.mask_scores, rgb.mask_scores)


def test_batches_of_different_sizes(predictor, image):
    wide = np.ascontiguousarray(image[:30])
    together = predictor.predict_batch([image, wide], [BOXES, [[3, 3, 20, 20]]], [[0, 1, 2], [1]])
    assert [len(x) for x in together] == [3, 1]
    assert together[1].pred_masks.shape == (1, 30, 70)
    found = predictor.predict_batch([image, wide])
    assert [x.image_size for x in found] == [(50, 70), (30, 70)]


def test_bad_arguments_are_one_sentence(predictor, image):
    with pytest.raises(UserError, match="uint8"):
        predictor(image.astype(np.float32))
    with pytest.raises(UserError, match="uint8"):
        predictor(image[:, :, 0])
    with pytest.raises(UserError, match="without classes"):
        predictor(image, BOXES)
    with pytest.raises(UserError, match="3 boxes have 2 classes"):
        predictor(image, BOXES, [0, 1])
    with pytest.raises(UserError, match="outside of 0 to 2"):
        predictor(image, BOXES, [0, 1, 3])
    with pytest.raises(UserError, match="BGR, RGB"):
        predictor(image, color_order="HSV")


def test_fingerprint_tells_models_apart(weights, tmp_path):
    first = psis_d2.Predictor(weights, device="cpu").fingerprint
    assert first == psis_d2.Predictor(weights, device="cpu").fingerprint
    other = psis_d2.Predictor(weights, device="cpu", opts=["INPUT.MIN_SIZE_TEST", "48"])
    assert first != other.fingerprint


def test_mask_scores_by_hand():
    cells = torch.tensor([[0.9, 0.7, 0.4, 0.0], [0.1, 0.2, 0.3, 0.4]]).view(2, 1, 2, 2)
    np.testing.assert_allclose(mask_scores(cells), [0.8, 0.0], atol=1e-6)
