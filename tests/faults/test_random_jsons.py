"""Random annotation files through evaluation, check and autolabel: results or one sentence.

``tests/data/test_fuzz.py`` has the same of reading and mapping.
"""

import argparse
import json
import os
import shutil
import tempfile
import uuid
from pathlib import Path

from psis_d2.cli import check
from psis_d2.data.coco import register_coco_json
from psis_d2.errors import UserError
from psis_d2.evaluation import PartialCOCOEvaluator
from psis_d2.evaluation.given_boxes import GivenBoxEvaluator
from psis_d2.evaluation.ground_truth import load_ground_truth
from psis_d2.inference.autolabel import Labeling, autolabel

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools import mask as mask_util

from random_jsons import hypothesis, jsons, plain, settings, write_data, write_images
from written_paths import written_paths

MOST_PIXELS = 10**6
PAGES = 100  # the share of jsons of which check draws a page


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with one image, and a place for jsons beside it."""
    folder = tmp_path_factory.mktemp("fuzz")
    write_images(folder)
    return folder


class FillsBoxes:
    """A predictor whose masks are the boxes, and that finds none itself."""

    class_names = ("cup", "hat")
    seen_ids = frozenset({0})
    class_agnostic = draws_masks = True
    fingerprint = source = "boxes"

    def __call__(self, image, boxes, classes):
        size = image.shape[:2]
        assert len(boxes) == len(classes)
        masks = np.zeros((len(boxes), *size), dtype=bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
            mask[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
        return Instances(
            size,
            pred_boxes=Boxes(torch.as_tensor(boxes, dtype=torch.float32)),
            pred_classes=torch.as_tensor(classes),
            scores=torch.ones(len(boxes)),
            pred_masks=torch.from_numpy(masks),
            mask_scores=torch.ones(len(boxes)),
        )


def perfect(truth, image_id) -> Instances:
    """The annotations of an image as predictions."""
    size = truth.image_sizes[image_id]
    found = [a for a in truth.annotations if a["image_id"] == image_id and not a["iscrowd"]]
    boxes = np.array([a["bbox"] for a in found], np.float32).reshape(-1, 4)
    boxes = BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    empty = np.zeros(size, np.uint8)
    masks = [mask_util.decode(a["segmentation"]) if "segmentation" in a else empty for a in found]
    return Instances(
        size,
        pred_boxes=Boxes(torch.from_numpy(boxes)),
        pred_classes=torch.tensor([a["category_id"] for a in found], dtype=torch.int64),
        scores=torch.ones(len(found)),
        pred_masks=torch.from_numpy(np.array(masks, bool).reshape(-1, *size)),
        gt_ids=torch.tensor([a["id"] for a in found], dtype=torch.int64),
    )


def listed(data, part: str, key: str = "id") -> list:
    return [entry.get(key) for entry in data.get(part, ()) if isinstance(entry, dict)]


def evaluate(data, path: Path, images: str, out: Path) -> None:
    name = f"fuzz {uuid.uuid4()}"
    register_coco_json(name, str(path), images)
    try:
        truth = load_ground_truth(name)
        for kind in (PartialCOCOEvaluator, GivenBoxEvaluator):
            evaluator = kind(dataset_name=name, seen_ids=[0], output_dir=str(out))
            for image_id, (height, width) in truth.image_sizes.items():
                if height * width <= MOST_PIXELS:
                    outputs = [{"instances": perfect(truth, image_id)}]
                    evaluator.process([{"image_id": image_id}], outputs)
            results = evaluator.evaluate()
            assert all(np.isnan(x) or x >= 0 for task in results.values() for x in task.values())
            for record in json.loads((out / kind.file_name).read_text()):
                assert record["image_id"] in listed(data, "images")
                assert record["category_id"] in listed(data, "categories")
                if "id" in record and record["id"] not in listed(data, "annotations"):
                    assert None in listed(data, "annotations")  # none is there to be written
    finally:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


def look_at(data, path: Path, images: str, out: Path) -> None:
    # drawing a page takes longer than all the rest
    page = str(out / "check.html") if len(path.read_bytes()) % PAGES == 0 else None
    files = {"html": page, "json": str(out / "check.json")}
    args = argparse.Namespace(train_json=str(path), train_images=images, val_json=str(path))
    more = {"val_images": images, "no_decode": False, "samples": 2, "strict": False}
    vars(args).update(files | more)
    assert check.run(args) in (0, 1)
    json.loads((out / "check.json").read_text())


def label(data, path: Path, images: str, out: Path) -> None:
    output = out / "labels.json"
    options = {"labeling": Labeling(previews=2), "progress": False}
    report = autolabel(FillsBoxes(), images, str(output), boxes=str(path), **options)
    made = json.loads(output.read_text())
    assert report.labeled + sum(report.left.values()) == len(made["annotations"])


COMMANDS = {"evaluation": evaluate, "check": look_at, "autolabel": label}


def run_all(place, data) -> set[str]:
    """The commands that a json got through; the others refused it in a sentence."""
    path, ended_well = place / "data.json", set()
    write_data(path, data)
    for name, command in COMMANDS.items():
        out = Path(tempfile.mkdtemp(dir=place))
        try:
            with written_paths() as written:
                command(data, path, str(place / "images"), out)
            ended_well.add(name)
        except UserError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 12_000
        finally:
            shutil.rmtree(out)
        inside = os.path.realpath(out)
        assert [p for p in written if p != inside and not p.startswith(inside + os.sep)] == []
    path.unlink()
    return ended_well


def test_the_plain_json_gets_through_all(place):
    assert run_all(place, plain()) == set(COMMANDS)


@settings(60)
@hypothesis.given(data=jsons())
def test_any_json_gets_through_or_is_refused_in_a_sentence(place, data):
    run_all(place, data)


@pytest.mark.faults
@settings(10_000)
@hypothesis.given(data=jsons())
def test_ten_thousand_jsons_get_through_or_are_refused_in_a_sentence(place, data):
    run_all(place, data)
