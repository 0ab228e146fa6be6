"""Boundary AP: by hand, by the letter of its definition, and as the library itself says."""

import contextlib
import copy
import io
import json

from psis_d2.data.coco import register_coco_json
from psis_d2.errors import UserError
from psis_d2.evaluation import PartialCOCOEvaluator, average_precision
from psis_d2.evaluation.average_precision import average_precision as precision_of
from psis_d2.evaluation.ground_truth import load_ground_truth
from psis_d2.evaluation.predictions import ImagePredictions, encode_masks

import numpy as np
import pytest
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from random_results import CLASSES, random_case
from tiny_coco import evaluate, predictions

library = pytest.importorskip("faster_coco_eval")


def test_by_hand(tiny):
    """An image of 100 x 100 has borders of round(0.02 * 141.4) = 3 pixels.

    Of 20 x 20 pixels the border is 400 - 14 * 14 = 204. A prediction that lacks two pixels all
    around has 256 - 100 = 156; both share the object's third ring, 256 - 196 = 60 pixels. The IoU
    of borders is 60 / 300 = 0.2, that of masks 0.64, which three of ten thresholds let pass.
    """
    data = tiny()
    image = data.image()
    data.add(image, 0, [40, 40, 20, 20])
    found = {image: predictions((0, [42, 42, 16, 16], 0.9))}
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0], boundary=True)
    results = evaluate(evaluator, found)
    assert list(results)[6:] == ["boundary_seen", "boundary_unseen", "boundary_all"]
    assert results["segm_seen"]["AP"] == pytest.approx(30)
    assert results["boundary_seen"]["AP"] == 0
    # One pixel less: 324 of 400; borders 324 - 144 = 180, shared 324 - 196 = 128: 128 / 256 = 0.5.
    found = {image: predictions((0, [41, 41, 18, 18], 0.9))}
    results = evaluate(evaluator, found)
    assert results["segm_seen"]["AP"] == pytest.approx(70)
    assert results["boundary_seen"]["AP"] == pytest.approx(10)


def border(mask):
    """Pixels whose square of 2d + 1 pixels around them leaves the mask or the image."""
    height, width = mask.shape
    d = max(1, round(0.02 * np.hypot(height, width)))
    padded = np.pad(mask, d)
    around = [
        padded[d + y : d + y + height, d + x : d + x + width]
        for y in range(-d, d + 1)
        for x in range(-d, d + 1)
    ]
    return mask & ~np.all(around, axis=0)


class BoundaryEval(COCOeval):
    """The COCO code with another IoU."""

    def computeIoU(self, imgId, catId):
        ious = super().computeIoU(imgId, catId)
        truth, found = self._gts[imgId, catId], self._dts[imgId, catId]
        if not len(ious):
            return ious
        order = np.argsort([-d["score"] for d in found], kind="mergesort")[: ious.shape[0]]
        for row, place in enumerate(order):
            mask = border(mask_util.decode(found[place]["segmentation"]) > 0)
            for column, other in enumerate(truth):
                if not other["iscrowd"]:
                    theirs = border(mask_util.decode(other["segmentation"]) > 0)
                    iou = (mask & theirs).sum() / max(1, (mask | theirs).sum())
                    ious[row, column] = min(ious[row, column], iou)
        return ious


def by_the_letter(images, categories, annotations, detections, kind, max_dets):
    assert kind == "boundary"
    with contextlib.redirect_stdout(io.StringIO()):
        parts = (
            average_precision._index(COCO(), images, categories, x)
            for x in (annotations, detections)
        )
        evaluation = BoundaryEval(*parts, iouType="segm")
        evaluation.params.maxDets = [max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval


@pytest.mark.parametrize("seed", range(3))
def test_by_the_letter(monkeypatch, seed):
    """Crowds, objects without masks, empty and equal-scored detections; bit for bit."""
    truth, found = random_case(seed, images=20)
    ours = precision_of(truth, found, "boundary")
    assert not np.array_equal(ours.precision, precision_of(truth, found, "segm").precision)
    monkeypatch.setattr(average_precision, "_choose", lambda library: by_the_letter)
    theirs = precision_of(truth, found, "boundary")
    for name in ("precision", "recall", "scores"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    assert theirs.precision.shape == (10, 101, CLASSES, 4) and (theirs.precision > 0).any()


@pytest.fixture(params=[40, pytest.param(5000, marks=pytest.mark.slow)])
def near_the_truth(request, coco_subset, tmp_path, catalogs):
    """COCO images, some or all, and their objects' masks moved a little as detections."""
    content = json.loads((coco_subset / "coco/annotations/instances_val2017.json").read_text())
    content["images"] = content["images"][: request.param]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    path = tmp_path / "forty.json"
    path.write_text(json.dumps(content))
    register_coco_json("boundary_coco", str(path), "")
    truth, rng, found = load_ground_truth("boundary_coco"), np.random.default_rng(0), []
    for image, (height, width) in truth.image_sizes.items():
        own = [a for a in truth.annotations if a["image_id"] == image and not a["iscrowd"]]
        masks = [mask_util.decode(a["segmentation"]) for a in own]
        masks = [np.roll(m, rng.integers(-3, 4, 2), (0, 1)).astype(bool) for m in masks]
        if not masks:
            continue
        rles = encode_masks(np.stack(masks))
        found.append(
            ImagePredictions(
                image_id=image,
                classes=np.array([a["category_id"] for a in own]),
                scores=rng.random(len(own)),
                boxes=np.array([a["bbox"] for a in own]),
                size=(height, width),
                counts=b"".join(rles),
                ends=np.cumsum([len(rle) for rle in rles]),
            )
        )
    return path, truth, found


def test_equals_the_library_on_photographs(near_the_truth):
    path, truth, found = near_the_truth
    ours = precision_of(truth, found, "boundary").precision
    content = json.loads(path.read_text())
    records = [r for part in found for r in part.records(truth.json_ids)]
    for record in records:
        del record["bbox"]  # else sizes would be those of boxes
    reference = library.COCO(copy.deepcopy(content))
    evaluation = library.COCOeval_faster(
        reference, reference.loadRes(records), iouType="boundary", print_function=lambda *x: None
    )
    evaluation.evaluate()
    evaluation.accumulate()
    theirs = evaluation.eval["precision"][..., -1]
    # The library adds nothing to the denominator of a precision, see average_precision.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-16)
    assert 0.2 < ours[ours > -1].mean() < 0.9


def test_without_the_library_there_is_one_sentence(tiny, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faster_coco_eval", None)
    data = tiny()
    data.add(data.image(), 0, [0, 0, 9, 9])
    with pytest.raises(UserError, match="run: pip install faster-coco-eval"):
        PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0], boundary=True)


def test_masks_of_boxes_alone_have_no_boundary(tiny):
    data = tiny()
    image = data.image()
    data.add(image, 0, [0, 0, 9, 9])
    evaluator = PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[0], boundary=True)
    boxes = {image: predictions((0, [0, 0, 9, 9], 1), masks=None)}
    assert not any("boundary" in task for task in evaluate(evaluator, boxes))
