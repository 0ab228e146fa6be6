"""COCO AP on seen, unseen and all categories, with masks missing anywhere."""

import contextlib
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import psis_d2
from psis_d2.errors import UserError
from psis_d2.evaluation import PartialCOCOEvaluator

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.evaluation import print_csv_format, verify_results
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tiny_coco import evaluate, polygon, predictions, rectangle

BOX, SEGM = "bbox", "segm"
GROUPS = ("seen", "unseen", "all")
METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl"]


# ------------------------------------------------------------------------------ the numbers


@pytest.fixture
def by_hand(tiny):
    """Two categories whose AP is known; returns (data set, predictions by image)."""
    data = tiny()
    first, second = data.image(), data.image()
    data.add(first, 0, [0, 0, 20, 20])
    data.add(second, 0, [50, 50, 20, 20])
    data.add(first, 1, [40, 40, 50, 50])
    of_image = {
        first: predictions(
            (0, [0, 0, 20, 20], 0.9),  # right
            (0, [60, 0, 20, 20], 0.8),  # nothing is there
            # 50 x 41 of 50 x 50 pixels: IoU 0.82, enough for 7 of the 10 thresholds.
            (1, [40, 40, 50, 41], 0.3),
        ),
        second: predictions((0, [50, 50, 20, 20], 0.7)),  # right
    }
    return data, of_image


# Recall 0.5 at precision 1, then recall 1 at precision 2/3: 51 and 50 of the 101 recall points.
AP_FIRST = 100 * (51 + 50 * 2 / 3) / 101
AP_SECOND = 70.0


def test_hand_computed_ap(by_hand):
    data, of_image = by_hand
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0])
    results = evaluate(evaluator, of_image)
    assert list(results) == [f"{kind}_{group}" for kind in (BOX, SEGM) for group in GROUPS]
    nan = math.nan
    for kind in (BOX, SEGM):
        assert list(results[f"{kind}_seen"]) == METRICS
        # 20 x 20 is small, 50 x 50 medium.
        seen = [AP_FIRST, AP_FIRST, AP_FIRST, AP_FIRST, nan, nan]
        unseen = [AP_SECOND, 100, 100, nan, AP_SECOND, nan]
        mean = (AP_FIRST + AP_SECOND) / 2
        both = [mean, (AP_FIRST + 100) / 2, (AP_FIRST + 100) / 2, AP_FIRST, AP_SECOND, nan]
        for group, expected in zip(GROUPS, (seen, unseen, both), strict=True):
            actual = list(results[f"{kind}_{group}"].values())
            np.testing.assert_allclose(actual, expected, rtol=1e-12, equal_nan=True)


def test_the_split_can_be_swapped(by_hand):
    data, of_image = by_hand
    name = data.register()
    results = evaluate(PartialCOCOEvaluator(dataset_name=name, seen_ids=[0]), of_image)
    swapped = evaluate(PartialCOCOEvaluator(dataset_name=name, seen_ids=[1]), of_image)
    assert swapped["segm_unseen"] == pytest.approx(results["segm_seen"], nan_ok=True)
    assert swapped["segm_seen"] == pytest.approx(results["segm_unseen"], nan_ok=True)


def random_case(data, seed):
    """Random objects (some crowds) and predictions near them, for 5 categories."""
    rng = np.random.default_rng(seed)
    of_image = {}
    for _ in range(10):
        image_id, rows, masks = data.image(), [], []
        for _ in range(rng.integers(0, 7)):
            box = [int(v) for v in rng.integers([0, 0, 5, 5], [60, 60, 60, 60])]
            x, y, w, h = box
            category = int(rng.integers(0, 4))  # category 4 has no objects
            crowd = int(rng.random() < 0.15)
            data.add(
                image_id,
                category,
                box,
                iscrowd=crowd,
                # A crowd's region is its box, an object's mask the left half of it.
                segmentation=packed_rle(box) if crowd else polygon([x, y, w / 2, h]),
                # Deliberately not the number of pixels: the listed area counts.
                area=float(w * h * rng.uniform(0.3, 1.2)),
            )
            for _ in range(rng.integers(0, 4)):
                near = np.array(box) + rng.integers(-2, 3, 4)
                near = [int(v) for v in [*np.maximum(near[:2], 0), *np.maximum(near[2:], 2)]]
                where = category if rng.random() < 0.8 else int(rng.integers(0, 5))
                # Two digits, so that some scores are equal.
                rows.append((where, near, round(rng.random(), 2)))
                masks.append(rectangle([*near[:2], near[2] // 2, near[3]], (120, 120)))
        of_image[image_id] = predictions(*rows, masks=masks, size=(120, 120))
    return of_image


def packed_rle(box):
    rle = mask_util.encode(np.asfortranarray(rectangle(box, (120, 120)).astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.mark.parametrize("seed", range(4))
def test_equals_coco_restricted_to_the_categories(tiny, tmp_path, seed):
    data = tiny(num_classes=5, size=(120, 120))
    of_image = random_case(data, seed)
    evaluator = PartialCOCOEvaluator(
        dataset_name=data.register(), seen_ids=[1, 4], output_dir=str(tmp_path / "out")
    )
    results = evaluate(evaluator, of_image)
    groups = {"seen": [1, 4], "unseen": [0, 2, 3], "all": [0, 1, 2, 3, 4]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(data.path))
        for kind in (BOX, SEGM):
            detections = json.loads((tmp_path / "out/coco_instances_results.json").read_text())
            if kind == SEGM:
                for detection in detections:
                    del detection["bbox"]
            detections = truth.loadRes(detections)
            for group, ids in groups.items():
                reference = COCOeval(truth, detections, kind)
                reference.params.catIds = [data.categories[i]["id"] for i in ids]
                reference.evaluate()
                reference.accumulate()
                reference.summarize()
                expected = [100 * s if s > -1 else math.nan for s in reference.stats[:6]]
                actual = list(results[f"{kind}_{group}"].values())
                np.testing.assert_array_equal(actual, expected, err_msg=f"{kind} {group}")
                assert 0 < expected[0] < 100
        assert results["segm_all"]["AP"] != results["bbox_all"]["AP"]


def test_masks_are_binned_by_their_own_area(tiny):
    data = tiny(num_classes=1)
    image = data.image()
    data.add(image, 0, [0, 0, 20, 20])
    # An error with a small mask in a medium box.
    rows = [(0, [0, 0, 20, 20], 0.5), (0, [40, 40, 50, 50], 0.9)]
    masks = [rectangle([0, 0, 20, 20]), rectangle([40, 40, 10, 10])]
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0])
    results = evaluate(evaluator, {image: predictions(*rows, masks=masks)})
    assert results["bbox_all"]["APs"] == pytest.approx(100)
    assert results["segm_all"]["APs"] == pytest.approx(50)


def test_max_dets_keeps_the_highest_scores(by_hand):
    data, of_image = by_hand
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0], max_dets=1)
    results = evaluate(evaluator, of_image)
    assert results["segm_seen"]["AP"] == pytest.approx(100)  # the 0.8 in the first image is cut


def test_annotation_number_zero_and_missing_crowd_flag(tiny):
    data = tiny(num_classes=1)
    image = data.image()
    data.add(image, 0, [10, 10, 40, 40], id=0)
    del data.annotations[0]["iscrowd"], data.annotations[0]["area"]
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0])
    results = evaluate(evaluator, {image: predictions((0, [10, 10, 40, 40], 0.9))})
    assert results["segm_all"]["AP"] == results["bbox_all"]["AP"] == pytest.approx(100)
    assert results["segm_all"]["APm"] == results["bbox_all"]["APm"] == pytest.approx(100)


def test_an_image_without_objects_counts_its_detections_as_errors(tiny):
    data = tiny(num_classes=1)
    full, empty = data.image(), data.image()
    data.add(full, 0, [10, 10, 40, 40])
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0])
    good = predictions((0, [10, 10, 40, 40], 0.5))
    results = evaluate(evaluator, {full: good, empty: predictions()})
    assert results["segm_all"]["AP"] == pytest.approx(100)
    results = evaluate(evaluator, {full: good, empty: predictions((0, [0, 0, 9, 9], 0.6))})
    assert results["segm_all"]["AP"] == results["bbox_all"]["AP"] == pytest.approx(50)


def test_an_image_seen_twice_counts_once(by_hand):
    data, of_image = by_hand
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0])
    once = evaluate(evaluator, of_image)
    for image_id, instances in of_image.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    assert evaluator.evaluate()["segm_all"] == pytest.approx(once["segm_all"], nan_ok=True)


def test_says_when_images_were_left_out(by_hand, caplog):
    data, of_image = by_hand
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0])
    evaluate(evaluator, dict(list(of_image.items())[:1]))
    assert "predictions for 1 of 2 images" in caplog.text


# ------------------------------------------------------------------------------ little or nothing


def test_no_predictions_are_zero_where_there_are_objects(tiny, caplog):
    data = tiny(num_classes=3)
    image = data.image()
    data.add(image, 0, [0, 0, 20, 20])
    data.add(image, 1, [50, 50, 40, 40], None)
    name = data.register()
    for instances in (predictions(), predictions(masks=None)):
        evaluator = PartialCOCOEvaluator(dataset_name=name, seen_ids=[0])
        results = evaluate(evaluator, {image: instances})
        assert results["bbox_all"]["AP"] == results["segm_all"]["AP"] == 0
        assert results["segm_seen"]["AP"] == results["bbox_unseen"]["AP50"] == 0
        assert math.isnan(results["segm_unseen"]["AP"])
    results = evaluate(PartialCOCOEvaluator(dataset_name=name, seen_ids=[2]), {})
    assert math.isnan(results["bbox_seen"]["AP"]) and results["bbox_unseen"]["AP"] == 0


def test_no_annotations_at_all(tiny, caplog):
    data = tiny()
    image = data.image()
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0])
    assert evaluate(evaluator, {image: predictions((0, [0, 0, 20, 20], 0.9))}) == {}
    assert "has no annotations, so nothing is measured" in caplog.text


def test_a_model_of_boxes_is_measured_on_boxes(by_hand, caplog):
    data, of_image = by_hand
    for instances in of_image.values():
        instances.remove("pred_masks")
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0])
    results = evaluate(evaluator, of_image)
    assert list(results) == ["bbox_seen", "bbox_unseen", "bbox_all"]
    assert results["bbox_seen"]["AP"] == pytest.approx(AP_FIRST)
    assert "boxes only" in caplog.text


@pytest.mark.parametrize("seen, absent", [([0, 1], "unseen"), ([], "seen")])
def test_an_empty_group_is_absent_and_the_log_says_why(by_hand, caplog, seen, absent):
    data, of_image = by_hand
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=seen)
    results = evaluate(evaluator, of_image)
    present = [group for group in GROUPS if group != absent]
    assert list(results) == [f"{kind}_{group}" for kind in (BOX, SEGM) for group in present]
    assert results[f"segm_{present[0]}"] == pytest.approx(results["segm_all"], nan_ok=True)
    assert f"No category is {absent}" in caplog.text


# ------------------------------------------------------------------------------ what comes out


def test_files_are_valid_json_with_the_ids_of_the_annotation_file(by_hand, tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    data, of_image = by_hand
    name, folder = data.register(), tmp_path / "new" / "folder"
    evaluator = PartialCOCOEvaluator(dataset_name=name, seen_ids=[1], output_dir=str(folder))
    results = evaluate(evaluator, of_image)
    names = ["coco_instances_results.json", f"metrics_{name}.json"]
    assert sorted(os.listdir(folder)) == names  # and no unfinished file
    found, metrics = (
        json.loads((folder / name).read_text(), parse_constant=refuse) for name in names
    )
    assert [f["category_id"] for f in found] == [3, 3, 5, 3]
    assert found[3]["bbox"] == [50, 50, 20, 20] and found[3]["image_id"] == 11
    assert mask_util.area(found[3]["segmentation"]) == 400
    assert metrics["results"]["segm_all"]["AP"] == results["segm_all"]["AP"]
    assert metrics["results"]["segm_all"]["APl"] is None
    assert metrics["categories"][1] == {
        "name": "class1",
        "id": 5,
        "split": "seen",
        "instances": 1,
        "with_mask": 1,
        "bbox_AP": pytest.approx(AP_SECOND),
        "segm_AP": pytest.approx(AP_SECOND),
    }


def test_log_has_the_table_and_the_categories(by_hand, caplog, capsys):
    data, of_image = by_hand
    evaluate(PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0]), of_image)
    assert f"{AP_FIRST:.2f}" in caplog.text and "class1" in caplog.text
    assert "| masks" in caplog.text and "unseen" in caplog.text
    assert capsys.readouterr().out == ""


def test_detectron2_verifies_and_prints_the_results(by_hand):
    data, of_image = by_hand
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0])
    results = evaluate(evaluator, of_image)
    print_csv_format(results)
    cfg = get_cfg()
    cfg.TEST.EXPECTED_RESULTS = [["segm_unseen", "AP", 70.0, 0.01]]
    assert verify_results(cfg, results)
    cfg.TEST.EXPECTED_RESULTS = [["segm_unseen", "AP", 71.0, 0.01]]
    with pytest.raises(SystemExit):
        verify_results(cfg, results)


TWO_PROCESSES = """
import sys
import psis_d2
import torch.distributed as dist
from tiny_coco import evaluate, predictions
from psis_d2.data.coco import register_coco_json
from psis_d2.evaluation import PartialCOCOEvaluator

rank, json_file, rendezvous, folder = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method="file://" + rendezvous, rank=rank, world_size=2)
register_coco_json("two_processes", json_file, folder)
row = [(0, [0, 0, 20, 20], 0.9), (0, [50, 50, 20, 20], 0.7)][rank]
evaluator = PartialCOCOEvaluator(dataset_name="two_processes", seen_ids=[0])
results = evaluate(evaluator, {10 + rank: predictions(row)})
assert (results == {}) == (rank == 1), results
alone = PartialCOCOEvaluator(dataset_name="two_processes", seen_ids=[0], distributed=False)
alone = evaluate(alone, {10 + rank: predictions(row)})
if rank == 0:
    print("AP", results["segm_seen"]["AP"], alone["segm_seen"]["AP"])
"""


def test_two_processes_evaluate_what_both_predicted(by_hand, tmp_path):
    data, _ = by_hand
    data.register()
    paths = [Path(psis_d2.__file__).parents[1], Path(__file__).parents[1]]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "OMP_NUM_THREADS": "1",
    }
    arguments = [str(data.path), str(tmp_path / "rendezvous"), str(tmp_path)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(rank), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    line = next(line for line in outputs[0].splitlines() if line.startswith("AP"))
    together, alone = map(float, line.split()[1:])
    assert together == pytest.approx(100)
    assert alone == pytest.approx(100 * 51 / 101)


# ------------------------------------------------------------------------------ wrong inputs


def test_wrong_predictions_get_one_sentence(by_hand):
    data, _ = by_hand
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0])
    with pytest.raises(UserError, match="image 99, which .* does not list"):
        evaluate(evaluator, {99: predictions((0, [0, 0, 9, 9], 0.5))})
    with pytest.raises(UserError, match="is 80x100 pixels, but its annotation file says 100x100"):
        evaluate(evaluator, {10: predictions((0, [0, 0, 9, 9], 0.5), size=(100, 80))})
    with pytest.raises(UserError, match="category number 2, but .* has only 2"):
        evaluate(evaluator, {10: predictions((2, [0, 0, 9, 9], 0.5))})
    with pytest.raises(ValueError, match="seen_ids"):
        evaluate(PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[2]), {})
