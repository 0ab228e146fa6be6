"""COCO AP where objects of the ground truth lack masks, in every spelling."""

import json
import math

from psis_d2.evaluation import PartialCOCOEvaluator

import numpy as np
import pytest

from tiny_coco import evaluate, polygon, predictions, rectangle

GROUPS = ("seen", "unseen", "all")
NO_MASK = {
    "missing": "missing",
    "null": None,
    "empty": [],
    "two points": [[10, 10, 30, 30]],
    "empty rle": {"size": [100, 100], "counts": [10000]},
    "odd polygon": [[1, 1, 5, 1, 5, 5, 1]],
}


def uncompressed_rle(box):
    """The run lengths of a box in a 100 x 100 image, in COCO's order: down the columns."""
    flat = rectangle(box).flatten(order="F").astype(int)
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    runs = np.diff([0, *changes, len(flat)]).tolist()
    return {"size": [100, 100], "counts": runs}


def mixed_case(tiny, with_maskless):
    """Objects with masks in every spelling and, if asked, one of each spelling of no mask."""
    data = tiny()
    first, second = data.image(), data.image()
    data.add(first, 0, [0, 0, 20, 20])
    data.add(first, 1, [30, 0, 20, 20], uncompressed_rle([30, 0, 20, 20]))
    # A good polygon beside a bad one is a mask.
    data.add(second, 0, [0, 0, 40, 40], [[1, 1, 3, 3], *polygon([0, 0, 40, 40])])
    rows = {
        first: [(0, [0, 0, 20, 20], 0.5), (1, [30, 0, 20, 20], 0.6), (1, [80, 80, 10, 10], 0.9)],
        second: [(0, [0, 0, 40, 35], 0.7), (0, [80, 0, 15, 15], 0.8)],
    }
    places = [[0, 40, 20, 20], [30, 40, 20, 20], [60, 40, 20, 20]]
    for number, spelling in enumerate(NO_MASK.values()):
        image, box = (first, second)[number % 2], list(places[number // 2])
        box[1] += 10 * (number % 2)
        if with_maskless:
            data.add(image, number % 2, box, spelling)
            data.annotations.insert(0, data.annotations.pop())  # before those with a mask
            rows[image].append((number % 2, box, 0.95))
    return data, {image: predictions(*of_image) for image, of_image in rows.items()}


def test_every_spelling_of_no_mask_equals_removing_the_object(tiny, caplog, capsys):
    data, of_image = mixed_case(tiny, with_maskless=True)
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0])
    results = evaluate(evaluator, of_image)
    lines = [r.getMessage() for r in caplog.records if "masks are measured" in r.getMessage()]
    assert len(lines) == 1 and "3 of 9 instances; 6 without a mask" in lines[0]
    assert capsys.readouterr().out == ""

    data, of_image = mixed_case(tiny, with_maskless=False)
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0])
    removed = evaluate(evaluator, of_image)
    for group in GROUPS:
        assert 0 < removed[f"segm_{group}"]["AP"] < 100
        assert results[f"segm_{group}"] == pytest.approx(removed[f"segm_{group}"], nan_ok=True)
        # Boxes are measured on all objects: six more were found.
        assert results[f"bbox_{group}"]["AP"] > removed[f"bbox_{group}"]["AP"] + 1


@pytest.mark.parametrize("spelling", NO_MASK)
def test_maskless_objects_count_fully_for_boxes(tiny, spelling):
    data = tiny(num_classes=1)
    image = data.image()
    data.add(image, 0, [0, 0, 20, 20], NO_MASK[spelling])
    data.add(image, 0, [50, 50, 20, 20])
    found = predictions((0, [50, 50, 20, 20], 0.9))
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0])
    results = evaluate(evaluator, {image: found})
    assert results["bbox_all"]["AP"] == pytest.approx(100 * 51 / 101)
    assert results["segm_all"]["AP"] == pytest.approx(100)


@pytest.fixture
def one_maskless(tiny):
    """One object with a mask, found with score 0.5, and one without at [50, 50, 40, 40]."""
    data = tiny()
    image = data.image()
    data.add(image, 0, [0, 0, 20, 20])
    data.add(image, 0, [50, 50, 40, 40], "missing")
    data.add(image, 1, [0, 60, 20, 20])
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0, 1])

    def segm_ap(rows, masks):
        rows = [(0, [0, 0, 20, 20], 0.5), *rows]
        masks = [rectangle([0, 0, 20, 20]), *masks]
        results = evaluate(evaluator, {image: predictions(*rows, masks=masks)})
        return results["segm_seen"]["AP"]

    return segm_ap


ON = [50, 50, 40, 40]


@pytest.mark.parametrize(
    "rows, boxes, expected",
    [
        ([], [], 100),
        ([(0, ON, 0.9)], [[60, 60, 5, 5]], 100),
        # Twice, and with a third of the mask outside the box: ignored at all IoU thresholds.
        ([(0, ON, 0.9), (0, ON, 0.8)], [[40, 50, 30, 40], [50, 50, 30, 30]], 100),
        # An empty mask is judged by its box.
        ([(0, ON, 0.9)], [[0, 0, 0, 0]], 100),
        ([(0, [0, 30, 20, 20], 0.9)], [[0, 0, 0, 0]], 50),
        # Mostly outside: an error like any other.
        ([(0, ON, 0.9)], [[20, 50, 50, 40]], 50),
    ],
)
def test_a_detection_on_a_maskless_object_counts_neither_way(one_maskless, rows, boxes, expected):
    found_other = (1, [0, 60, 20, 20], 0.9)
    ap = one_maskless([*rows, found_other], [rectangle(b) for b in [*boxes, found_other[1]]])
    assert ap == pytest.approx((expected + 100) / 2)


def test_a_maskless_object_protects_only_its_own_category(one_maskless):
    found, wrong = (1, [0, 60, 20, 20], 0.5), (1, ON, 0.9)
    ap = one_maskless([found, wrong], [rectangle(found[1]), rectangle(ON)])
    assert ap == pytest.approx((100 + 50) / 2)


def test_a_maskless_box_around_an_object_does_not_hide_it(tiny):
    data = tiny(num_classes=1)
    image = data.image()
    data.add(image, 0, [20, 20, 20, 20])
    data.add(image, 0, [0, 0, 90, 90], None)
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0])
    # IoU 0.6: right up to there, and an error above, not a detection on the larger object.
    coarse = predictions((0, [20, 20, 20, 12], 0.9))
    results = evaluate(evaluator, {image: coarse})
    assert results["segm_all"]["AP50"] == pytest.approx(100)
    assert results["segm_all"]["AP"] == pytest.approx(30)
    both = predictions((0, [20, 20, 20, 12], 0.9), (0, [20, 20, 20, 20], 0.5))
    results = evaluate(evaluator, {image: both})
    assert results["segm_all"]["AP75"] == pytest.approx(50)


def test_a_category_without_any_mask_is_nan_and_not_zero(tiny, tmp_path):
    data = tiny()
    image = data.image()
    data.add(image, 0, [0, 0, 20, 20])
    data.add(image, 1, [50, 50, 40, 40], [])
    name = data.register()
    evaluator = PartialCOCOEvaluator(dataset_name=name, seen_ids=[0], output_dir=str(tmp_path))
    found = predictions((0, [0, 0, 20, 20], 0.9), (1, [50, 50, 40, 40], 0.9))
    results = evaluate(evaluator, {image: found})
    assert all(math.isnan(value) for value in results["segm_unseen"].values())
    assert results["segm_all"]["AP"] == results["bbox_unseen"]["AP"] == pytest.approx(100)
    rows = json.loads((tmp_path / f"metrics_{name}.json").read_text())["categories"]
    assert [row["segm_AP"] for row in rows] == [pytest.approx(100), None]
    assert [(row["instances"], row["with_mask"]) for row in rows] == [(1, 1), (1, 0)]


def test_no_masks_at_all_leaves_the_boxes_and_one_warning(tiny, caplog):
    data = tiny()
    image = data.image(box_only=True)
    data.add(image, 0, [0, 0, 20, 20])
    other = data.image()
    for spelling in NO_MASK.values():
        data.add(other, 1, [50, 50, 40, 40], spelling)
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0])
    results = evaluate(
        evaluator, {image: predictions((0, [0, 0, 20, 20], 0.9)), other: predictions()}
    )
    assert list(results) == ["bbox_seen", "bbox_unseen", "bbox_all"]
    assert results["bbox_seen"]["AP"] == pytest.approx(100)
    evaluation = [r for r in caplog.records if r.name.startswith("psis_d2.evaluation")]
    warnings = [r.getMessage() for r in evaluation if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "none of the 7 annotated instances has a mask" in warnings[0]


def test_a_crowd_without_mask_ignores_by_its_box(tiny):
    data = tiny(num_classes=1)
    image = data.image()
    data.add(image, 0, [0, 0, 20, 20])
    data.add(image, 0, [50, 50, 40, 40], "missing", iscrowd=1)
    name = data.register()
    evaluator = PartialCOCOEvaluator(dataset_name=name, seen_ids=[0])
    found = predictions((0, [0, 0, 20, 20], 0.5), (0, [55, 55, 10, 10], 0.9))
    results = evaluate(evaluator, {image: found})
    assert results["segm_all"]["AP"] == results["bbox_all"]["AP"] == pytest.approx(100)
