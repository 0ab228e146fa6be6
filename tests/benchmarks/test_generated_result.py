"""A generated result, small: what the benchmark of evaluation measures at full size."""

import psis_d2  # noqa: F401
from psis_d2.evaluation.average_precision import average_precision, drop_detections_on_maskless

import numpy as np
import pytest

from benchmarks.generated_result import make_result

IMAGES, CLASSES, DETECTIONS = 12, 8, 20


@pytest.fixture(scope="module")
def result():
    return make_result(IMAGES, CLASSES, DETECTIONS)


def test_the_same_numbers_give_the_same_result(result):
    truth, predictions = result
    again, found = make_result(IMAGES, CLASSES, DETECTIONS)
    assert again == truth
    for before, after in zip(predictions, found, strict=True):
        assert before.records(range(CLASSES)) == after.records(range(CLASSES))
    assert make_result(IMAGES, CLASSES, DETECTIONS, seed=1)[0] != truth


def test_it_has_all_that_evaluation_looks_at(result):
    truth, predictions = result
    truth.check_predictions(predictions)
    instances, masked = truth.counts()
    assert 0 < masked.sum() < instances.sum() > 3 * IMAGES
    assert {len(part) for part in predictions} == {DETECTIONS}
    kept = sum(map(len, drop_detections_on_maskless(truth, predictions)))
    assert 0 < kept < IMAGES * DETECTIONS


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_both_libraries_give_the_same_arrays(result, kind):
    pytest.importorskip("faster_coco_eval")
    fast, slow = (
        average_precision(*result, kind, library=library)
        for library in ("faster_coco_eval", "pycocotools")
    )
    assert (slow.precision > 0.2).any()
    for name in ("precision", "recall", "scores"):
        assert np.array_equal(getattr(fast, name), getattr(slow, name))
