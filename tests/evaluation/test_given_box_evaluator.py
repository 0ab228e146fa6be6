"""Masks in given boxes: IoU of every object with the mask predicted in its own box."""

import json
import math

from psis_d2.errors import UserError
from psis_d2.evaluation import GivenBoxEvaluator, box_fill_results

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.evaluation import print_csv_format, verify_results

from tiny_coco import evaluate, polygon, predictions, rectangle

FIRST, SECOND = [0, 0, 20, 20], [50, 50, 40, 40]


@pytest.fixture
def case(tiny):
    """Two objects of class 0 (IoU 1 and 0.62), one of class 1 (0.8), and some that do not count.

    Returns the data set and {image id: predictions}.
    """
    data = tiny()
    first, second = data.image(), data.image()
    ids = [
        data.add(first, 0, FIRST),
        data.add(second, 0, [0, 0, 50, 50]),
        data.add(second, 1, SECOND, polygon([50, 50, 40, 20])),
        data.add(first, 1, SECOND, "missing"),
        data.add(second, 1, [0, 60, 20, 20], [[1, 2, 3, 4]]),
    ]
    data.add(second, 1, [60, 0, 20, 20], iscrowd=1)
    of_image = {
        # In another order than the annotations; the maskless object's mask is nonsense.
        first: predictions(
            (1, SECOND, 1),
            (0, FIRST, 1),
            masks=[rectangle([0, 0, 3, 3]), rectangle(FIRST)],
            gt_ids=[ids[3], ids[0]],
        ),
        # 50 x 31 of 50 x 50 pixels: 0.62; 40 x 25 pixels around the 40 x 20: 0.8.
        second: predictions(
            (0, [0, 0, 50, 50], 1),
            (1, SECOND, 1),
            (1, [0, 60, 20, 20], 1),
            masks=[rectangle(b) for b in ([0, 0, 50, 31], [50, 50, 40, 25], [9, 9, 9, 9])],
            gt_ids=[ids[1], ids[2], ids[4]],
        ),
    }
    return data, of_image


# 0.62 reaches 0.5, 0.55 and 0.6; 0.8 reaches these and 0.65, 0.7, 0.75, 0.8.
SEEN = {"IoU": (100 + 62) / 2, "AP": (100 + 30) / 2, "AP50": 100, "AP75": 50, "N": 2}
UNSEEN = {"IoU": 80, "AP": 70, "AP50": 100, "AP75": 100, "N": 1}
# The mean of the categories, not of the objects.
ALL = {"IoU": (81 + 80) / 2, "AP": (65 + 70) / 2, "AP50": 100, "AP75": 75, "N": 3}


def test_hand_computed_iou(case, caplog, capsys):
    data, of_image = case
    evaluator = GivenBoxEvaluator(dataset_name=data.register(), seen_ids=[0])
    results = evaluate(evaluator, of_image)
    assert list(results) == ["gtbox_seen", "gtbox_unseen", "gtbox_all"]
    assert results["gtbox_seen"] == pytest.approx(SEEN)
    assert results["gtbox_unseen"] == pytest.approx(UNSEEN)
    assert results["gtbox_all"] == pytest.approx(ALL)
    lines = [r.getMessage() for r in caplog.records if "masks are measured" in r.getMessage()]
    assert len(lines) == 1 and "3 of 5 instances; 2 without a mask" in lines[0]
    assert "no prediction" not in caplog.text
    assert "class1" in caplog.text and "80.50" in caplog.text
    assert capsys.readouterr().out == ""


def test_the_object_decides_the_category_not_the_prediction(case):
    data, of_image = case
    for instances in of_image.values():
        instances.pred_classes[:] = 0
    results = evaluate(GivenBoxEvaluator(dataset_name=data.register(), seen_ids=[0]), of_image)
    assert results["gtbox_unseen"] == pytest.approx(UNSEEN)


def test_a_lost_box_counts_as_zero_and_is_logged(case, caplog):
    data, of_image = case
    second = list(of_image)[1]
    of_image[second] = of_image[second][1:]
    results = evaluate(GivenBoxEvaluator(dataset_name=data.register(), seen_ids=[0]), of_image)
    expected = {"IoU": 50, "AP": 50, "AP50": 50, "AP75": 50, "N": 2}
    assert results["gtbox_seen"] == pytest.approx(expected)
    assert results["gtbox_unseen"] == pytest.approx(UNSEEN)
    assert "1 objects with a mask got no prediction" in caplog.text


def test_thresholds_are_reached_not_only_passed(tiny):
    data = tiny(num_classes=1)
    image = data.image()
    third = [0, 50, 10, 10]
    ids = [data.add(image, 0, box) for box in (FIRST, SECOND, third)]
    # IoU 0.5, 0.75 and 0.7.
    masks = [rectangle(box) for box in ([0, 0, 20, 10], [50, 50, 40, 30], [0, 50, 10, 7])]
    rows = [(0, box, 1) for box in (FIRST, SECOND, third)]
    found = predictions(*rows, masks=masks, gt_ids=ids)
    results = evaluate(
        GivenBoxEvaluator(dataset_name=data.register(), seen_ids=[0]), {image: found}
    )
    expected = {"IoU": 65, "AP": (10 + 60 + 50) / 3, "AP50": 100, "AP75": 100 / 3, "N": 3}
    assert results["gtbox_all"] == pytest.approx(expected)
    assert "gtbox_unseen" not in results


def test_no_predictions_are_zero_and_categories_without_masks_nan(tiny):
    data = tiny(num_classes=3)
    image = data.image()
    data.add(image, 0, FIRST)
    data.add(image, 1, SECOND, None)
    evaluator = GivenBoxEvaluator(dataset_name=data.register(), seen_ids=[0])
    results = evaluate(evaluator, {image: predictions(gt_ids=[])})
    zero = {"IoU": 0, "AP": 0, "AP50": 0, "AP75": 0, "N": 1}
    assert results["gtbox_seen"] == results["gtbox_all"] == zero
    unseen = results["gtbox_unseen"]
    assert unseen.pop("N") == 0 and all(math.isnan(value) for value in unseen.values())


def test_no_masks_or_a_model_of_boxes_give_no_results_and_a_warning(tiny, caplog):
    data = tiny()
    image = data.image()
    key = data.add(image, 0, FIRST, [])
    found = predictions((0, FIRST, 1), gt_ids=[key])
    name = data.register()
    assert evaluate(GivenBoxEvaluator(dataset_name=name, seen_ids=[0]), {image: found}) == {}
    assert "none of the 1 annotated instances has a mask" in caplog.text
    assert box_fill_results(name, [0]) == {}

    data.add(image, 1, SECOND)
    evaluator = GivenBoxEvaluator(dataset_name=data.register(), seen_ids=[0])
    boxes = predictions((0, FIRST, 1), masks=None, gt_ids=[key])
    assert evaluate(evaluator, {image: boxes}) == {}
    assert "boxes only" in caplog.text


def test_filled_boxes(case):
    data, of_image = case
    # 20 of the box's 30 columns are in the image, the mask has 10 of them.
    image = list(of_image)[0]
    data.add(image, 1, [80, 0, 30, 10], polygon([80, 0, 10, 10]))
    results = box_fill_results(data.register(), [0])
    assert results["gtbox_seen"] == pytest.approx(
        {"IoU": 100, "AP": 100, "AP50": 100, "AP75": 100, "N": 2}
    )
    # Both masks fill half of what the box has in the image.
    assert results["gtbox_unseen"] == pytest.approx(
        {"IoU": 50, "AP": 10, "AP50": 100, "AP75": 0, "N": 2}
    )
    assert results["gtbox_all"] == pytest.approx(
        {"IoU": 75, "AP": 55, "AP50": 100, "AP75": 50, "N": 4}
    )


def test_filled_boxes_equal_a_model_that_fills_them(case):
    data, of_image = case
    name = data.register()
    filled = {
        image: predictions(
            *[
                (int(c), [int(v) for v in (x0, y0, x1 - x0, y1 - y0)], 1)
                for c, (x0, y0, x1, y1) in zip(p.pred_classes, p.pred_boxes.tensor, strict=True)
            ],
            gt_ids=p.gt_ids.tolist(),
        )
        for image, p in of_image.items()
    }
    results = evaluate(GivenBoxEvaluator(dataset_name=name, seen_ids=[1]), filled)
    assert results == box_fill_results(name, [1])


def test_files_are_valid_json_beside_those_of_the_detections(case, tmp_path):
    data, of_image = case
    name = data.register()
    data_ids = [annotation["id"] for annotation in data.annotations]
    evaluator = GivenBoxEvaluator(
        dataset_name=name, seen_ids=[0, 1], output_dir=str(tmp_path / "o")
    )
    evaluate(evaluator, of_image)
    found = json.loads((tmp_path / "o/given_box_results.json").read_text())
    assert [f["id"] for f in found] == [data_ids[i] for i in (3, 0, 1, 2, 4)]
    assert [f["category_id"] for f in found] == [5, 3, 3, 5, 5]
    metrics = json.loads((tmp_path / f"o/metrics_{name}_given_boxes.json").read_text())
    assert list(metrics["results"]) == ["gtbox_seen", "gtbox_all"]
    row = metrics["categories"][1]
    assert (row["name"], row["split"], row["instances"], row["with_mask"]) == (
        "class1",
        "seen",
        3,
        1,
    )
    np.testing.assert_allclose([row[k] for k in ("IoU", "AP", "AP50", "AP75")], [80, 70, 100, 100])


def test_detectron2_verifies_and_prints_the_results(case):
    data, of_image = case
    results = evaluate(GivenBoxEvaluator(dataset_name=data.register(), seen_ids=[0]), of_image)
    print_csv_format(results)
    cfg = get_cfg()
    cfg.TEST.EXPECTED_RESULTS = [["gtbox_unseen", "IoU", 80.0, 0.01]]
    assert verify_results(cfg, results)


def test_masks_of_the_wrong_size_are_an_error_and_no_silent_zero(case):
    data, of_image = case
    image = list(of_image)[0]
    found = predictions((0, FIRST, 1), size=(50, 50), gt_ids=[100])
    evaluator = GivenBoxEvaluator(dataset_name=data.register(), seen_ids=[0])
    with pytest.raises(UserError, match="is 50x50 pixels, but its annotation file says 100x100"):
        evaluate(evaluator, {image: found})
