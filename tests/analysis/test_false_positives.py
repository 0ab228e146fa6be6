"""Where wrong pixels lie: by hand, and pixel by pixel on random scenes."""

import math

from psis_d2.analysis import attribute_false_positives
from psis_d2.evaluation.ground_truth import load_ground_truth
from psis_d2.evaluation.predictions import ImagePredictions

import numpy as np
import pytest
from pycocotools import mask as mask_util

from random_results import random_case
from tiny_coco import predictions, rectangle

PLACES = ("background", "seen", "unseen", "unknown")


@pytest.fixture
def scene(tiny):
    """An unseen object with neighbors on all sides, and a mask that is too large by 10 pixels.

    Left of it is background, right of it a seen object, above an unseen one, below a box without a
    mask; classes 0 and 1 are seen and unseen.
    """
    data = tiny()
    image = data.image()
    own = data.add(image, 1, [40, 40, 20, 20])
    data.add(image, 0, [60, 40, 30, 20])
    data.add(image, 1, [40, 10, 20, 30])
    data.add(image, 0, [40, 60, 20, 30], "missing")
    return data, image, own


def test_by_hand(scene):
    data, image, own = scene
    too_large = rectangle([30, 30, 40, 40])
    instances = predictions((1, [38, 38, 24, 24], 0.9), masks=[too_large])
    found = [ImagePredictions.from_instances(instances, image)]
    truth = load_ground_truth(data.register())
    rows = attribute_false_positives(truth, found, {0})
    by = {row["group"]: row for row in rows}
    expected = {"objects": 1, "predicted": 1600, "wrong": 1200}
    # Left 20 x 10 and four corners of 10 x 10; each neighbor has 20 x 10.
    expected |= {"background": 600, "seen": 200, "unseen": 200, "unknown": 200}
    assert {key: by["unseen"][key] for key in expected} == expected
    assert by["unseen"]["background_share"] == pytest.approx(50)
    assert by["unseen"]["seen_share"] == pytest.approx(100 / 6)
    assert by["all"] | {"group": "unseen"} == by["unseen"]
    assert by["seen"]["objects"] == 0 and math.isnan(by["seen"]["seen_share"])
    assert own == 100


def test_pixels_of_both_count_half(tiny):
    data = tiny()
    image = data.image()
    data.add(image, 1, [0, 0, 20, 20])
    data.add(image, 0, [20, 0, 10, 20])
    data.add(image, 1, [20, 0, 10, 20])
    instances = predictions((1, [0, 0, 20, 20], 0.9), masks=[rectangle([0, 0, 24, 20])])
    found = [ImagePredictions.from_instances(instances, image)]
    row = attribute_false_positives(load_ground_truth(data.register()), found, {0})[-1]
    assert (row["wrong"], row["seen"], row["unseen"], row["background"]) == (80, 40, 40, 0)


def test_who_found_what(scene):
    """The best-scored one of the category; what is of another category finds nothing."""
    data, image, own = scene
    masks = [rectangle([40, 40, 20, 20]), rectangle([40, 40, 25, 20]), rectangle([0, 0, 99, 99])]
    instances = predictions(
        (1, [40, 40, 20, 22], 0.8),
        (1, [40, 40, 20, 20], 0.7),  # fits better, but comes later
        (0, [40, 40, 20, 20], 0.9),  # another category
        masks=masks,
    )
    truth = load_ground_truth(data.register())
    found = [ImagePredictions.from_instances(instances, image)]
    row = attribute_false_positives(truth, found, {0})[-1]
    assert (row["objects"], row["predicted"], row["wrong"]) == (1, 400, 0)
    row = attribute_false_positives(truth, found, {0}, min_score=0.85)[-1]
    assert row["objects"] == 0
    given = predictions((0, [0, 0, 9, 9], 0.1), masks=masks[1:2], gt_ids=[own])
    found = [ImagePredictions.from_instances(given, image)]
    row = attribute_false_positives(truth, found, {0})[1]
    assert (row["group"], row["objects"], row["wrong"], row["seen"]) == ("unseen", 1, 100, 100)


def literally(truth, found, seen):
    """{is seen: [objects, predicted, wrong, and by place]}, pixel by pixel."""
    sums = {True: np.zeros(7), False: np.zeros(7)}
    for part in found:
        objects = [a for a in truth.annotations if a["image_id"] == part.image_id]
        decoded = [
            mask_util.decode(a["segmentation"]) > 0 if "segmentation" in a else None
            for a in objects
        ]
        free = {place for place, a in enumerate(objects) if not a["iscrowd"]}
        for row in sorted(range(len(part)), key=lambda r: -part.scores[r]):
            best, chosen = 0.5, None
            for place in sorted(free):
                if objects[place]["category_id"] == part.classes[row]:
                    iou = box_iou(part.boxes[row], objects[place]["bbox"])
                    if iou > best or (iou == best and chosen is None):
                        best, chosen = iou, place
            if chosen is None:
                continue
            free.discard(chosen)
            if decoded[chosen] is None:
                continue
            mask = mask_util.decode(part.masks()[row]) > 0
            own = sums[objects[chosen]["category_id"] in seen]
            own += [1, mask.sum(), (mask & ~decoded[chosen]).sum(), 0, 0, 0, 0]
            for y, x in np.argwhere(mask & ~decoded[chosen]):
                kinds, boxed = set(), False
                for a, pixels in zip(objects, decoded, strict=True):
                    if pixels is None:
                        x0, y0, w, h = a["bbox"]
                        boxed |= x0 <= x < x0 + w and y0 <= y < y0 + h
                    elif pixels[y, x]:
                        kinds.add(a["category_id"] in seen)
                for kind in kinds:
                    own[3 + (1 if kind else 2)] += 1 / len(kinds)
                if not kinds:
                    own[6 if boxed else 3] += 1
    return sums


def box_iou(one, other):
    low = np.maximum(one[:2], other[:2])
    high = np.minimum(np.add(one[:2], one[2:]), np.add(other[:2], other[2:]))
    shared = np.prod(np.maximum(high - low, 0))
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


@pytest.mark.parametrize("seed", [0, 1])
def test_by_the_letter_on_random_scenes(seed):
    truth, found = random_case(seed, images=12)
    seen = {0, 3}
    expected = literally(truth, found, seen)
    rows = {row["group"]: row for row in attribute_false_positives(truth, found, seen)}
    for group, side in (("seen", True), ("unseen", False)):
        keys = ("objects", "predicted", "wrong", *PLACES)
        assert [rows[group][key] for key in keys] == expected[side].tolist()
        assert sum(rows[group][place] for place in PLACES) == rows[group]["wrong"]
    assert all(rows["all"][place] > 0 for place in PLACES)
