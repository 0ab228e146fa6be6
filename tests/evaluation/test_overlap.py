"""Overlapped objects: Eq. 1 by hand, and masks measured on them alone."""

import math

import psis_d2  # noqa: F401
from psis_d2.errors import UserError
from psis_d2.evaluation import GivenBoxEvaluator, PartialCOCOEvaluator, box_fill_results
from psis_d2.evaluation.ground_truth import load_ground_truth

import pytest

from tiny_coco import evaluate, polygon, predictions, rectangle

OVERLAPPED, ALONE, REACHING = [10, 10, 20, 20], [60, 60, 20, 20], [10, 24, 40, 30]


@pytest.fixture
def case(tiny):
    """An object of class 0 that is covered to 0.3, one that stands alone, and what covers it.

    Returns the data set, the image and the annotation ids.
    """
    data = tiny()
    image = data.image()
    ids = [
        data.add(image, 0, OVERLAPPED),
        data.add(image, 0, ALONE),
        # Rows 24 to 29 of the first box, 6 of 20; of its own box the first mask has 6 x 20 of 1200.
        data.add(image, 1, REACHING),
    ]
    return data, image, ids


def overlapped(data, threshold):
    return {key for _, key in load_ground_truth(data.register()).overlapped(threshold)}


def test_the_share_of_the_box_that_another_mask_covers(case):
    data, _, (first, _, third) = case
    assert overlapped(data, 0.31) == set()
    assert overlapped(data, 0.3) == {first}
    assert overlapped(data, 0.11) == {first}
    assert overlapped(data, 0.1) == {first, third}


def test_the_largest_share_counts_not_their_sum(tiny):
    data = tiny()
    image = data.image()
    data.add(image, 0, [0, 0, 10, 10], polygon([0, 0, 1, 1]))
    for box in ([0, 0, 10, 2], [0, 5, 10, 3]):
        data.add(image, 1, [50, 50, 40, 40], polygon(box))
    assert 100 in overlapped(data, 0.3)
    assert 100 not in overlapped(data, 0.31)


def test_what_overlaps_nothing(tiny):
    """Objects in other images, crowds, boxes without a mask, the object itself."""
    data = tiny()
    first, second = data.image(), data.image()
    data.add(first, 0, [0, 0, 20, 20])
    data.add(second, 0, [0, 0, 20, 20])
    data.add(first, 1, [0, 0, 20, 20], "missing")
    data.add(second, 1, [0, 0, 20, 20], iscrowd=1)
    # the box without a mask is overlapped itself
    assert overlapped(data, 0.01) == {102}


def test_a_box_beyond_the_border_is_cut_there(tiny):
    data = tiny()
    image = data.image()
    data.add(image, 0, [80, 0, 60, 10], polygon([80, 0, 1, 1]))  # 20 x 10 are in the image
    data.add(image, 1, [90, 0, 10, 10])
    assert overlapped(data, 0.5) == {100, 101} - {101}


def found(image, *rows):
    return {image: predictions(*rows)}


def results_of(data, of_image, **options):
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0], **options)
    return evaluate(evaluator, of_image)


def test_ap_on_overlapped_objects_by_hand(case):
    data, image, _ = case
    rows = [
        (0, ALONE, 0.9),  # right, but of an object that stands alone: counts not at all
        (0, [0, 80, 15, 15], 0.8),  # nothing is there
        (0, OVERLAPPED, 0.7),
        (1, REACHING, 0.6),
    ]
    results = results_of(data, found(image, *rows), overlap=0.3)
    tasks = [f"{kind}_{group}" for kind in ("bbox", "segm") for group in ("seen", "unseen", "all")]
    more = [f"segm_overlapped_{group}" for group in ("seen", "unseen", "all")]
    assert list(results) == tasks + more
    # All objects: right, wrong, right: precision 1 up to recall 0.5, 2/3 up to 1.
    assert results["segm_seen"]["AP"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)
    # Overlapped ones: wrong, right.
    assert results["segm_overlapped_seen"]["AP"] == pytest.approx(50)
    # None of class 1 is.
    assert math.isnan(results["segm_overlapped_unseen"]["AP"])
    assert results["segm_overlapped_all"]["AP"] == pytest.approx(50)
    assert results["segm_unseen"]["AP"] == pytest.approx(100)


def test_a_missed_overlapped_object_counts_and_a_missed_other_does_not(case):
    data, image, _ = case
    results = results_of(data, found(image, (0, OVERLAPPED, 0.7)), overlap=0.3)
    assert results["segm_overlapped_seen"]["AP"] == pytest.approx(100)
    assert results["segm_seen"]["AP"] < 60
    results = results_of(data, found(image, (0, ALONE, 0.7)), overlap=0.3)
    assert results["segm_overlapped_seen"]["AP"] == 0


def test_crowds_and_sizes_are_treated_as_ever(case):
    data, image, _ = case
    data.add(image, 0, [60, 0, 40, 40], iscrowd=1)
    rows = [(0, [60, 0, 30, 30], 0.9), (0, OVERLAPPED, 0.7)]
    results = results_of(data, found(image, *rows), overlap=0.3)
    assert results["segm_overlapped_seen"]["AP"] == pytest.approx(100)
    assert results["segm_overlapped_seen"]["APs"] == pytest.approx(100)
    assert math.isnan(results["segm_overlapped_seen"]["APm"])


def test_without_the_key_nothing_changes(case):
    data, image, _ = case
    of_image = found(image, (0, ALONE, 0.9), (0, OVERLAPPED, 0.7))
    plain, with_overlap = (results_of(data, of_image, overlap=x) for x in (0.0, 0.3))
    assert not any("overlapped" in task for task in plain)
    for task, metrics in plain.items():
        assert metrics == pytest.approx(with_overlap[task], nan_ok=True)


def test_a_model_of_boxes_has_no_table_of_masks(case):
    data, image, _ = case
    boxes = {image: predictions((0, ALONE, 0.9), masks=None)}
    assert not any("segm" in task for task in results_of(data, boxes, overlap=0.3))


def test_given_boxes_on_overlapped_objects_by_hand(case):
    data, image, ids = case
    masks = [rectangle(b) for b in ([10, 10, 20, 16], ALONE, REACHING)]
    given = predictions(
        *((c, b, 1) for c, b in ((0, OVERLAPPED), (0, ALONE), (1, REACHING))),
        masks=masks,
        gt_ids=ids,
    )
    name = data.register()
    evaluator = GivenBoxEvaluator(dataset_name=name, seen_ids=[0], overlap=0.3)
    results = evaluate(evaluator, {image: given})
    assert list(results)[3:] == [f"gtbox_overlapped_{x}" for x in ("seen", "unseen", "all")]
    # 16 of 20 rows: 0.8, which reaches 7 of the 10 thresholds.
    expected = {"IoU": 80, "AP": 70, "AP50": 100, "AP75": 100, "N": 1}
    assert results["gtbox_overlapped_seen"] == pytest.approx(expected)
    assert results["gtbox_seen"]["IoU"] == pytest.approx(90)
    assert results["gtbox_overlapped_unseen"]["N"] == 0

    filled = box_fill_results(name, [0], overlap=0.3)
    assert filled["gtbox_overlapped_seen"]["N"] == 1
    assert filled["gtbox_overlapped_seen"]["IoU"] == pytest.approx(100)
    assert filled.keys() == results.keys()


@pytest.mark.parametrize("overlap", [-0.1, 1.5])
def test_a_share_that_is_none(case, overlap):
    with pytest.raises(UserError, match=f"TEST.OVERLAP is {overlap}; give a share"):
        results_of(case[0], {}, overlap=overlap)
