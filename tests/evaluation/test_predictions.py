"""Predictions as arrays: masks encoded as the COCO code does, records as Detectron2 has them."""

import json

import psis_d2  # noqa: F401
from psis_d2.evaluation.base import write_predictions
from psis_d2.evaluation.predictions import ImagePredictions, encode_masks

import numpy as np
import pytest
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from pycocotools import mask as mask_util

from tiny_coco import predictions, rectangle

H, W = 7, 9


def coco_code(masks):
    return [mask_util.encode(np.asfortranarray(m, dtype=np.uint8))["counts"] for m in masks]


def single(*pixels):
    mask = np.zeros((H, W), dtype=bool)
    for y, x in pixels:
        mask[y, x] = True
    return mask


CASES = {
    "empty": single(),
    "full": np.ones((H, W), dtype=bool),
    "first pixel": single((0, 0)),
    "last pixel": single((H - 1, W - 1)),
    "corners": single((0, 0), (H - 1, 0), (0, W - 1), (H - 1, W - 1)),
    # A run over the end of a column: the pixels follow each other, as the COCO code reads them.
    "around the border": single((H - 1, 3), (0, 4)),
    "first column": rectangle([0, 0, 1, H], (H, W)),
    "last column": rectangle([W - 1, 0, 1, H], (H, W)),
    "first and last column": single(*((y, x) for y in range(H) for x in (0, W - 1))),
    "gap": single((2, 1), (5, 7)),
}


@pytest.mark.parametrize("case", CASES)
def test_masks_are_encoded_bit_for_bit_as_the_coco_code_does(case):
    assert encode_masks(CASES[case][None]) == coco_code(CASES[case][None])


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (33, 47), (400, 300)])
def test_random_masks_are_encoded_bit_for_bit(size):
    rng = np.random.default_rng(sum(size))
    masks = np.stack([rng.random(size) < p for p in (0.02, 0.3, 0.5, 0.98)])
    windows = np.zeros_like(masks)
    h, w = (max(1, s // 2) for s in size)
    windows[:, -h:, :w] = masks[:, -h:, :w]
    for some in (masks, windows, masks[:, ::-1, ::-1], masks[:0]):
        assert encode_masks(some) == coco_code(some)


@pytest.fixture
def found():
    rows = [(2, [3, 4, 10, 20], 0.3), (0, [0, 0, 50, 7], 0.7), (1, [60, 60, 40, 40], 0.1)]
    instances = predictions(
        *rows, masks=[rectangle(b) for b in ([3, 4, 5, 5], [0, 0, 0, 0], [9] * 4)]
    )
    instances.pred_boxes.tensor += 0.1  # no whole numbers
    return instances


def detectron2s(instances, image_id):
    if instances.has("pred_masks"):
        instances.pred_masks = instances.pred_masks.numpy()
    return instances_to_coco_json(instances, image_id)


@pytest.mark.parametrize("with_masks", [True, False])
@pytest.mark.parametrize("number", [3, 1, 0])
def test_records_are_those_of_detectron2(found, number, with_masks):
    if not with_masks:
        found.remove("pred_masks")
    found = found[:number]
    kept = ImagePredictions.from_instances(found, 17)
    assert len(kept) == number and kept.has_masks == (with_masks and number > 0)
    records = kept.records([0, 1, 2])
    assert json.dumps(records) == json.dumps(detectron2s(found, 17))
    assert [r["category_id"] for r in kept.records([5, 6, 7])] == [7, 5, 6][:number]


def test_rows_and_categories_are_chosen_with_their_masks(found):
    whole = ImagePredictions.from_instances(found, "a")
    records = whole.records([0, 1, 2])
    for rows in ([2, 0], [1], [], [0, 1, 2]):
        chosen = whole.take(np.array(rows, dtype=int))
        assert chosen.records([0, 1, 2]) == [records[row] for row in rows]
    mapped = whole.of_categories({0: 4, 2: 1})
    assert mapped.classes.tolist() == [1, 4]
    assert mapped.masks() == [whole.masks()[0], whole.masks()[1]]


def test_ids_of_given_boxes_stay_with_their_rows(found):
    given = predictions(*((0, [0, 0, 5, 5], 1.0) for _ in range(3)), gt_ids=[7, 5, 9])
    kept = ImagePredictions.from_instances(given, 1).take(np.array([False, True, True]))
    assert [r["id"] for r in kept.records([0])] == [5, 9]


def test_a_json_is_written_image_by_image(found, tmp_path):
    images = [ImagePredictions.from_instances(found[:n], n) for n in (0, 2, 0, 3)]
    records = [r for image in images for r in image.records([3, 5, 7])]
    write_predictions(str(tmp_path / "a.json"), images, [3, 5, 7])
    assert (tmp_path / "a.json").read_text() == json.dumps(records)
    for none in ([], images[:1]):
        write_predictions(str(tmp_path / "b.json"), none, [3, 5, 7])
        assert (tmp_path / "b.json").read_text() == "[]"


def test_annotation_ids_of_the_file_are_written():
    given = predictions((0, [0, 0, 5, 5], 1), (0, [5, 5, 5, 5], 1), gt_ids=[1, 2])
    kept = ImagePredictions.from_instances(given, 1)
    assert [r["id"] for r in kept.records([0], {2: "x"})] == [1, "x"]
