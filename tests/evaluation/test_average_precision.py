"""Precision arrays: the fast library and the COCO code agree bit for bit, whole or in parts."""

import builtins
import sys
from dataclasses import replace

import psis_d2  # noqa: F401
from psis_d2.evaluation import average_precision as module
from psis_d2.evaluation.average_precision import average_precision, drop_detections_on_maskless
from psis_d2.evaluation.ground_truth import GroundTruth
from psis_d2.evaluation.predictions import ImagePredictions

import numpy as np
import pytest
from pycocotools import mask as mask_util

from random_results import CLASSES, SIZE, random_case
from tiny_coco import rectangle

ARRAYS = ("precision", "recall", "scores")


def assert_equal(ours, theirs):
    for name in ARRAYS:
        a, b = getattr(ours, name), getattr(theirs, name)
        assert a.dtype == b.dtype == np.float64
        assert np.array_equal(a, b), name


@pytest.fixture
def faster():
    """The fast library, where it is installed."""
    pytest.importorskip("faster_coco_eval")
    return "faster_coco_eval"


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_both_libraries_give_the_same_arrays(faster, kind, seed):
    truth, predictions = random_case(seed, images=8 if seed else 40)
    only = {(a["image_id"], a["id"]) for a in truth.annotations if a["id"] % 3}
    for max_dets, chosen in ((100, None), (2, None), (100, only)):
        arguments = truth, predictions, kind, max_dets, chosen
        theirs = average_precision(*arguments, library="pycocotools")
        assert_equal(average_precision(*arguments, library=faster), theirs)
        assert theirs.precision.shape == (10, 101, CLASSES, 4)
        assert theirs.recall.shape == (10, CLASSES, 4)
        assert (theirs.precision > 0).any() and (theirs.precision == -1).any()


def test_a_precision_of_one_is_that_of_the_coco_code(faster):
    """Which says a little less where it is that of one detection alone, and 1 where of two."""
    almost = 1 / (1 + np.spacing(1))
    assert almost < 1
    boxes = [[0, 0, 10, 10], [20, 0, 10, 10], [40, 0, 10, 10], [60, 0, 10, 10]]
    for wrong, expected in ((1, almost), (2, 1.0)):
        rows = [*boxes[:wrong], [80, 50, 9, 9], *boxes[wrong:]]
        annotations = [
            {"id": i, "image_id": 1, "category_id": 0, "bbox": b, "iscrowd": 0, "area": 100.0}
            for i, b in enumerate(boxes)
        ]
        truth = GroundTruth("one", ["a"], [1], {1: SIZE}, annotations)
        scores = np.linspace(0.9, 0.1, len(rows))
        found = ImagePredictions(1, np.zeros(5, dtype=int), scores, np.array(rows, dtype=float))
        for library in (faster, "pycocotools"):
            arrays = average_precision(truth, [found], "bbox", library=library)
            assert set(arrays.precision[0, :26, 0, 0]) == {expected}, library


def test_the_order_of_images_is_that_of_their_ids_whatever_they_are(faster):
    """Among equal scores, the image with the smaller id comes first."""
    truth, predictions = random_case(1)
    expected = average_precision(truth, predictions, "bbox", library="pycocotools")
    named, of_names = random_case(1, key=lambda number: f"image {number:03d}")
    assert_equal(average_precision(named, of_names[::-1], "bbox", library=faster), expected)
    assert_equal(average_precision(named, of_names, "bbox", library="pycocotools"), expected)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("limits", [(1, 10**6), (10**6, 20), (30, 10**6)])
def test_categories_in_parts_give_the_same_arrays(monkeypatch, kind, limits):
    truth, predictions = random_case(5)
    whole = average_precision(truth, predictions, kind)
    monkeypatch.setattr(module, "_PAIRS", limits[0])
    monkeypatch.setattr(module, "_DETECTIONS", limits[1])
    asked, choose = [], module._choose

    def counting(library):
        return lambda *part: asked.append(part[1]) or choose(library)(*part)

    monkeypatch.setattr(module, "_choose", counting)
    assert_equal(average_precision(truth, predictions, kind), whole)
    assert len(asked) > 1 and sum(asked, []) == list(range(CLASSES))


def test_without_the_fast_library_the_coco_code_is_asked(monkeypatch):
    truth, predictions = random_case(2, images=3)
    expected = average_precision(truth, predictions, "segm")
    for name in [n for n in sys.modules if n.split(".")[0] == "faster_coco_eval"]:
        monkeypatch.delitem(sys.modules, name)
    real_import = builtins.__import__

    def without(name, *arguments, **options):
        if name.split(".")[0] == "faster_coco_eval":
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert_equal(average_precision(truth, predictions, "segm"), expected)
    with pytest.raises(ImportError):
        average_precision(truth, predictions, "segm", library="faster_coco_eval")


def literally_dropped(truth, of_image):
    """The rule of drop_detections_on_maskless, one detection and pixel mask at a time."""
    pixels = [mask_util.decode(mask).astype(bool) for mask in of_image.masks()]
    judged = []
    for category, mask, box in zip(of_image.classes, pixels, of_image.boxes, strict=True):
        own = [
            a
            for a in truth.annotations
            if a["image_id"] == of_image.image_id
            and a["category_id"] == category
            and not a["iscrowd"]
        ]
        known = [mask_util.decode(a["segmentation"]) > 0 for a in own if "segmentation" in a]
        ious = [(mask & m).sum() / max(1, (mask | m).sum()) for m in known]
        if not mask.any():
            mask = rectangle([int(v) for v in box], SIZE)
        boxes = [rectangle(a["bbox"], SIZE) for a in own if "segmentation" not in a]
        shares = [(mask & b).sum() / mask.sum() for b in boxes]
        judged.append(max(ious, default=0) >= 0.5 or max(shares, default=0) < 0.5)
    return judged


def test_detections_on_maskless_objects_are_dropped_by_the_letter():
    dropped = 0
    for seed in range(5):
        truth, predictions = random_case(seed, images=30)
        kept = drop_detections_on_maskless(truth, predictions)
        for before, after in zip(predictions, kept, strict=True):
            judged = np.array(literally_dropped(truth, before))
            assert after.records(range(CLASSES)) == before.take(judged).records(range(CLASSES))
            dropped += (~judged).sum()
    assert dropped > 20


def test_nothing_at_all():
    truth, predictions = random_case(0)
    nothing = average_precision(replace(truth, annotations=[]), [], "segm")
    assert (nothing.precision == -1).all() and (nothing.recall == -1).all()
    missed = average_precision(truth, [], "bbox")
    assert set(missed.precision.ravel()) == {-1, 0}
