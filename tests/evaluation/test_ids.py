"""Ids of any kind through an evaluation, from the annotation file to the files of results."""

import json
from pathlib import Path

from psis_d2.config import add_psis_config
from psis_d2.data.coco import register_coco_json
from psis_d2.data.foreign_masks import as_rle
from psis_d2.evaluation import evaluate
from psis_d2.evaluation.ground_truth import load_ground_truth

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools import mask as mask_util
from torch import nn

from tiny_data import write_tiny_data

pytestmark = pytest.mark.usefixtures("catalogs")
PLAIN = [1, 2, 3, 4]
KINDS = {
    "beyond 2^53": [2**53 + 1, 2**53, 2**53 + 2, 2**53 + 3],  # two of them are one float
    "beyond 64 bits": [10**30, 10**30 + 1, -(10**30), 2**64],
    "texts": ["b", "a", "10", "9"],
    "mixed": ["1", 1, 2**53 + 1, "x/../y"],
}


class Knows(nn.Module):
    """A model that predicts what is annotated."""

    def __init__(self, truth):
        super().__init__()
        self.truth = truth

    def forward(self, batched_inputs):
        return [{"instances": self.of(item)} for item in batched_inputs]

    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        found = []
        for item, given in zip(batched_inputs, detected_instances, strict=True):
            own = {a["id"]: a for a in self.truth.annotations}
            masks = [self.mask(own[key], item) for key in given.gt_ids.tolist()]
            given.pred_masks = torch.stack(masks)
            found.append(given)
        return [{"instances": x} for x in found] if do_postprocess else found

    def mask(self, annotation, item):
        size = item["height"], item["width"]
        return torch.from_numpy(mask_util.decode(as_rle(annotation["segmentation"], *size)) > 0)

    def of(self, item):
        objects = [a for a in self.truth.annotations if a["image_id"] == item["image_id"]]
        boxes = [BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for a in objects]
        found = Instances((item["height"], item["width"]))
        found.pred_boxes = Boxes(torch.tensor(boxes))
        found.scores = torch.ones(len(objects))
        found.pred_classes = torch.tensor([a["category_id"] for a in objects])
        found.pred_masks = torch.stack([self.mask(a, item) for a in objects])
        return found


def evaluated(tmp_path, image_ids, annotation_ids, category_ids):
    """Results, and the records of both files of predictions."""
    data = write_tiny_data(tmp_path, images=4, masked=("box", "cup", "hat"))
    content = json.loads(Path(data["json"]).read_text())
    for image in content["images"]:
        image["id"] = image_ids[image["id"] - 1]
    for category in content["categories"]:
        category["id"] = category_ids[category["id"] - 1]
    for annotation in content["annotations"]:
        annotation["image_id"] = image_ids[annotation["image_id"] - 1]
        annotation["category_id"] = category_ids[annotation["category_id"] - 1]
        annotation["id"] = annotation_ids(annotation["id"])
    Path(data["json"]).write_text(json.dumps(content))
    name = f"ids {tmp_path}"
    register_coco_json(name, data["json"], data["images"])
    cfg = get_cfg()
    add_psis_config(cfg)
    cfg.MODEL.DEVICE, cfg.OUTPUT_DIR, cfg.DATASETS.TEST = "cpu", str(tmp_path / "out"), (name,)
    cfg.DATASETS.TRAIN, cfg.PSIS.SEEN_CLASSES, cfg.DATALOADER.NUM_WORKERS = (), "all", 0
    cfg.INPUT.MIN_SIZE_TEST, cfg.TEST.BOXES = 0, "both"
    results = evaluate(cfg, Knows(load_ground_truth(name)))
    files = ("coco_instances_results.json", "given_box_results.json")
    folder = next((tmp_path / "out" / "inference").iterdir())
    return results, *(json.loads((folder / file).read_text()) for file in files), content


def wide(kind, key):
    """An annotation id of a kind, one for each number."""
    return {"beyond 2^53": 2**53 + key, "beyond 64 bits": 2**64 + key}.get(kind, f"a{key}")


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_any_kind_come_back(tmp_path, kind):
    ids = KINDS[kind]
    results, found, given, content = evaluated(
        tmp_path / "kind", ids, lambda key: wide(kind, key), ids[:3]
    )
    plain, *_ = evaluated(tmp_path / "plain", PLAIN, lambda key: key, PLAIN[:3])
    assert json.dumps(results) == json.dumps(plain)  # nan is nan
    assert results["segm_all"]["AP"] == pytest.approx(100)
    assert results["gtbox_all"]["IoU"] == pytest.approx(100)
    objects = {a["id"]: (a["image_id"], a["category_id"]) for a in content["annotations"]}
    assert {r["id"]: (r["image_id"], r["category_id"]) for r in given} == objects
    assert sorted(map(str, ((r["image_id"], r["category_id"]) for r in found))) == sorted(
        map(str, objects.values())
    )
