"""LVIS: what was not searched for does not count, what is not all annotated is not held against."""

import json
import sys
import types
from dataclasses import replace

import psis_d2  # noqa: F401
from psis_d2.data.coco import register_coco_json
from psis_d2.evaluation import PartialCOCOEvaluator
from psis_d2.evaluation.average_precision import average_precision, summarize
from psis_d2.evaluation.ground_truth import load_ground_truth
from psis_d2.evaluation.predictions import ImagePredictions, encode_masks

import numpy as np
import pytest
from detectron2.data.datasets.lvis import register_lvis_instances
from pycocotools import mask as mask_util

from random_results import CLASSES, random_case
from tiny_coco import evaluate, predictions, rectangle

FIRST, SECOND, NOWHERE = [0, 0, 20, 20], [50, 50, 20, 20], [30, 70, 15, 15]


def results_of(data, found):
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0], max_dets=3)
    return evaluate(evaluator, found)


@pytest.mark.parametrize(
    "searched, expected",
    [
        ({"neg_category_ids": [], "not_exhaustive_category_ids": []}, 100),  # not looked for
        ({"neg_category_ids": [3], "not_exhaustive_category_ids": []}, 50),  # looked for: an error
        ({}, 50),  # COCO: looked for everywhere
    ],
)
def test_a_detection_of_what_was_not_looked_for(tiny, caplog, searched, expected):
    data = tiny()
    first, second = data.image(**searched), data.image(**searched)
    data.add(first, 0, FIRST)
    data.add(second, 1, FIRST)
    found = {
        first: predictions((0, FIRST, 0.5)),
        # In its image, class 0 (json id 3) is not annotated.
        second: predictions((1, FIRST, 0.5), (0, SECOND, 0.9)),
    }
    results = results_of(data, found)
    for kind in ("bbox", "segm"):
        assert results[f"{kind}_seen"]["AP"] == pytest.approx(expected)
        assert results[f"{kind}_unseen"]["AP"] == pytest.approx(100)
    assert ("is evaluated as LVIS" in caplog.text) == bool(searched)


@pytest.mark.parametrize("loose, expected", [([3], 100), ([5], 50), ([], 50)])
def test_a_detection_that_matches_nothing_where_not_all_is_annotated(tiny, loose, expected):
    data = tiny()
    image = data.image(neg_category_ids=[], not_exhaustive_category_ids=loose)
    data.add(image, 0, FIRST)
    data.add(image, 1, SECOND)
    beyond = [90, 90, 40, 40]  # out of the image
    for wrong in (NOWHERE, beyond):
        masks = [rectangle(b) for b in (FIRST, SECOND, wrong)]
        rows = [(0, FIRST, 0.5), (1, SECOND, 0.5), (0, wrong, 0.9)]
        results = results_of(data, {image: predictions(*rows, masks=masks)})
        for kind in ("bbox", "segm"):
            assert results[f"{kind}_seen"]["AP"] == pytest.approx(expected)
            assert results[f"{kind}_unseen"]["AP"] == pytest.approx(100)
    # An empty mask matches nothing either.
    rows = [(0, FIRST, 0.5), (0, NOWHERE, 0.9)]
    masks = [rectangle(FIRST), rectangle([0, 0, 0, 0])]
    results = results_of(data, {image: predictions(*rows, masks=masks)})
    assert results["segm_seen"]["AP"] == pytest.approx(expected)


def test_an_object_is_missed_as_ever_where_not_all_is_annotated(tiny):
    data = tiny()
    image = data.image(neg_category_ids=[], not_exhaustive_category_ids=[3])
    data.add(image, 0, FIRST)
    data.add(image, 0, SECOND)
    results = results_of(data, {image: predictions((0, FIRST, 0.5), (0, NOWHERE, 0.9))})
    assert results["segm_seen"]["AP"] == pytest.approx(100 * 51 / 101)


def test_the_best_of_an_image_count_whatever_their_category(tiny):
    data = tiny()
    image = data.image(neg_category_ids=[], not_exhaustive_category_ids=[])
    data.add(image, 0, FIRST)
    data.add(image, 1, SECOND)
    others = [(1, SECOND, 0.9), (1, NOWHERE, 0.8), (1, NOWHERE, 0.7)]
    results = results_of(data, {image: predictions(*others, (0, FIRST, 0.6))})
    assert results["bbox_seen"]["AP"] == 0 and results["bbox_unseen"]["AP"] == pytest.approx(100)


def random_lvis(seed):
    """A random case of COCO's tests without crowds, as LVIS: every pair is searched or not."""
    truth, found = random_case(seed, images=20)
    rng = np.random.default_rng(seed)
    annotations = [a for a in truth.annotations if not a["iscrowd"] and "segmentation" in a]
    absent, loose = {}, {}
    for image in truth.image_sizes:
        present = {a["category_id"] for a in annotations if a["image_id"] == image}
        others = set(range(CLASSES)) - present
        absent[image] = frozenset(c for c in others if rng.random() < 0.4)
        loose[image] = frozenset(c for c in present if rng.random() < 0.4)
    return replace(truth, annotations=annotations, absent=absent, not_exhaustive=loose), found


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(3))
def test_the_arrays_are_those_of_an_lvis_evaluation(kind, seed):
    library = pytest.importorskip("faster_coco_eval")
    truth, found = random_lvis(seed)
    images = [
        {"id": i, "height": h, "width": w, "neg_category_ids": list(truth.absent[i])}
        | {"not_exhaustive_category_ids": list(truth.not_exhaustive[i])}
        for i, (h, w) in truth.image_sizes.items()
    ]
    categories = [{"id": i, "name": n, "frequency": "f"} for i, n in enumerate(truth.class_names)]
    theirs = library.COCO()
    theirs.dataset = {"images": images, "categories": categories}
    theirs.dataset["annotations"] = [{**a, "id": a["id"] + 1} for a in truth.annotations]
    theirs.createIndex()
    records = [r for part in found for r in part.records(range(len(categories)))]
    if kind == "segm":  # of images where it drops detections, it does not know the size of a mask
        pairs = {(i, c) for i, absent in truth.absent.items() for c in absent}
        pairs |= {(a["image_id"], a["category_id"]) for a in truth.annotations}
        records = [r for r in records if (r["image_id"], r["category_id"]) in pairs]
    for number, record in enumerate(records, start=1):
        w, h = record["bbox"][2:]
        record |= {"id": number, "iscrowd": 0, "area": w * h}
        if kind == "segm":
            record["area"] = float(library.mask.area(record["segmentation"]))
    detected = library.COCO()
    detected.dataset = {"images": images, "categories": categories, "annotations": records}
    detected.createIndex()
    evaluation = library.COCOeval_faster(theirs, detected, kind, lvis_style=True)
    evaluation.params.maxDets = [300]
    evaluation.evaluate()
    evaluation.accumulate()
    for name in (None, "pycocotools"):
        ours = average_precision(truth, found, kind, max_dets=300, library=name)
        plain = average_precision(replace(truth, absent=None), found, kind, max_dets=300)
        assert not np.allclose(ours.precision, plain.precision)
        for array in ("precision", "recall", "scores"):
            expected = evaluation.eval[array][..., 0]
            np.testing.assert_allclose(getattr(ours, array), expected, rtol=1e-15, atol=0)


@pytest.fixture
def sample(coco_subset, catalogs):
    """Register a json of the sample of LVIS as ``lvis_sample``; returns its path."""

    def register(name):
        root = coco_subset / "lvis_sample"
        json_file = root / "annotations" / name
        if not json_file.is_file():
            pytest.skip(f"no {json_file}")
        register_coco_json("lvis_sample", str(json_file), str(root / "images"))
        return json_file

    return register


def near_the_truth(truth):
    """Every object a few pixels off, some as another category, and one more beside each."""
    rng, found = np.random.default_rng(0), []
    for image, size in truth.image_sizes.items():
        own = [a for a in truth.annotations if a["image_id"] == image]
        asked = [*truth.absent[image], *{a["category_id"] for a in own}]
        masks, classes = [], []
        for annotation in own:
            mask = mask_util.decode(annotation["segmentation"])
            for reach in (4, 40):
                masks.append(np.roll(mask, rng.integers(-reach, reach + 1, 2), (0, 1)))
                other = rng.choice(asked) if rng.random() < 0.8 else rng.integers(1000)
                classes.append(annotation["category_id"] if rng.random() < 0.7 else other)
        if not masks:
            continue
        rles = encode_masks(np.stack(masks).astype(bool))
        boxes = mask_util.toBbox([{"size": list(size), "counts": rle} for rle in rles])
        numbers = rng.permutation(len(rles)) / len(rles)  # no two of an image are equal
        ends = np.cumsum([len(rle) for rle in rles])
        classes = np.array(classes)
        found.append(ImagePredictions(image, classes, numbers, boxes, size, b"".join(rles), ends))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_equals_lvis_own_code_on_a_whole_file_of_it(kind, sample, monkeypatch):
    """All 100 images and 1,230 categories of lvis-api's own json, by lvis-api where it is there."""
    monkeypatch.setitem(sys.modules, "cv2", types.ModuleType("cv2"))  # it draws, too
    lvis = pytest.importorskip("lvis")
    monkeypatch.setattr(np, "float", float, raising=False)  # of NumPy before 1.24
    path = sample("lvis_val_100_full.json")
    truth = load_ground_truth("lvis_sample")
    found = near_the_truth(truth)
    records = [r for part in found for r in part.records(truth.json_ids)]
    if kind == "segm":
        for record in records:
            del record["bbox"]  # else sizes would be those of boxes
    evaluation = lvis.LVISEval(str(path), lvis.LVISResults(str(path), records, 300), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    ours = average_precision(truth, found, kind, max_dets=300)
    np.testing.assert_allclose(ours.precision, evaluation.eval["precision"], rtol=0, atol=1e-12)
    evaluation.summarize()
    theirs, own = evaluation.get_results(), summarize(ours.precision, range(1230))
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
        assert own[name] == pytest.approx(100 * theirs[name], abs=1e-9)
    assert 10 < own["AP"] < 90


@pytest.mark.parametrize("kind", [pytest.param("bbox", marks=pytest.mark.slow), "segm"])
def test_equals_the_library_on_a_whole_file_of_lvis(kind, sample):
    library = pytest.importorskip("faster_coco_eval")
    path = sample("lvis_val_100_full.json")
    truth = load_ground_truth("lvis_sample")
    found = near_the_truth(truth)
    asked = {image: set(absent) for image, absent in truth.absent.items()}
    for a in truth.annotations:
        asked[a["image_id"]].add(a["category_id"])
    parts = [p.take(np.isin(p.classes, list(asked[p.image_id]))) for p in found]
    records = [r for part in parts for r in part.records(truth.json_ids)]
    if kind == "segm":
        for record in records:
            del record["bbox"]
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 0  # LVIS has none
    reference = library.COCO(content)
    evaluation = library.COCOeval_faster(
        reference,
        reference.loadRes(records),
        kind,
        print_function=lambda *x: None,
        lvis_style=True,
    )
    evaluation.params.maxDets = [300]
    evaluation.evaluate()
    evaluation.accumulate()
    ours = average_precision(truth, found, kind, max_dets=300)
    theirs = evaluation.eval["precision"][..., 0]
    np.testing.assert_allclose(ours.precision, theirs, rtol=0, atol=1e-12)
    assert ours.precision.shape[2] == 1230 and (ours.precision > 0).any()


def test_perfect_predictions_of_real_annotations(sample, tmp_path):
    """All 100, however many categories of an image were not searched for, with ids of the json."""
    json_file = sample("lvis_v0.5_val_sample.json")
    truth = load_ground_truth("lvis_sample")
    assert sum(map(len, truth.absent.values())) > 100 < len(truth.class_names)
    evaluator = PartialCOCOEvaluator(
        dataset_name="lvis_sample", seen_ids=range(600), output_dir=str(tmp_path), max_dets=300
    )
    for image, (height, width) in truth.image_sizes.items():
        objects = [a for a in truth.annotations if a["image_id"] == image]
        # Beside what is there, a thing that was not searched for, surer than all.
        asked = truth.absent[image] | {a["category_id"] for a in objects}
        stranger = min(set(range(len(truth.class_names))) - asked)
        rles = [a["segmentation"]["counts"] for a in objects]
        rles.append(encode_masks(np.ones((1, height, width), dtype=bool))[0])
        boxes = [a["bbox"] for a in objects] + [[0, 0, width, height]]
        evaluator._of_image[image] = ImagePredictions(
            image,
            np.array([*(a["category_id"] for a in objects), stranger]),
            np.array([*(0.5 for _ in objects), 0.9]),
            np.array(boxes, dtype=np.float64),
            (height, width),
            b"".join(rles),
            np.cumsum([len(rle) for rle in rles]),
        )
    results = evaluator.evaluate()
    for task in ("bbox_seen", "bbox_unseen", "segm_seen", "segm_unseen", "segm_all"):
        assert results[task]["AP"] == pytest.approx(100), task
    known = {c["id"] for c in json.loads(json_file.read_text())["categories"]}
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert min(known) == 1 and {r["category_id"] for r in written} <= known
    assert {r["category_id"] for r in written} >= {
        truth.json_ids[a["category_id"]] for a in objects
    }


def test_detectron2s_lvis_is_read_like_any_json(tiny, catalogs):
    """With what its images were searched for, and without the package that Detectron2 wants."""
    data = tiny()
    image = data.image(neg_category_ids=[5], not_exhaustive_category_ids=[3])
    data.add(image, 0, FIRST)
    data.register()
    names = {"thing_classes": ["class0", "class1"]}
    register_lvis_instances("own_lvis", names, str(data.path), str(data.folder))
    truth = load_ground_truth("own_lvis")
    assert truth.absent == {image: {1}} and truth.not_exhaustive == {image: {0}}
    assert truth.json_ids == [3, 5]
