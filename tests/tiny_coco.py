"""Tiny COCO-format data sets and predictions, made of rectangles."""

import itertools
import json

import psis_d2  # noqa: F401  (before detectron2)
from psis_d2.data.coco import register_coco_json

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

_NUMBERS = itertools.count()


def rectangle(box, size=(100, 100)):
    """bool [H, W] that is true in an XYWH box of whole pixels."""
    x, y, w, h = box
    mask = np.zeros(size, dtype=bool)
    mask[y : y + h, x : x + w] = True
    return mask


def polygon(box):
    """A COCO segmentation that covers an XYWH box."""
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


class TinyCoco:
    """A COCO-format json in the making.

    Category ids in the file are 3, 5, 7, ... and listed backwards, so that they differ from the
    contiguous ids (their rank).
    """

    def __init__(self, folder, num_classes=2, size=(100, 100)):
        self.folder, self.size = folder, size
        self.categories = [{"id": 3 + 2 * i, "name": f"class{i}"} for i in range(num_classes)]
        self.images, self.annotations = [], []

    def image(self, **extra):
        """Add an image; returns its id."""
        key = 10 + len(self.images)
        height, width = self.size
        self.images.append(
            {"id": key, "file_name": f"{key}.jpg", "height": height, "width": width, **extra}
        )
        return key

    def add(self, image_id, category, box, segmentation="box", **extra):
        """Add an annotation; returns its id. By default its mask is its box."""
        annotation = {
            "id": 100 + len(self.annotations),
            "image_id": image_id,
            "category_id": self.categories[category]["id"],
            "bbox": list(box),
            "area": box[2] * box[3],
            "iscrowd": 0,
            "segmentation": polygon(box) if isinstance(segmentation, str) else segmentation,
            **extra,
        }
        if segmentation == "missing":
            del annotation["segmentation"]
        self.annotations.append(annotation)
        return annotation["id"]

    def register(self):
        """Write the json and register it under a new name, which is returned."""
        number = next(_NUMBERS)
        self.path = self.folder / f"tiny{number}.json"
        content = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.categories[::-1],
        }
        self.path.write_text(json.dumps(content))
        register_coco_json(f"tiny_evaluation_{number}", str(self.path), str(self.folder))
        return f"tiny_evaluation_{number}"


def predictions(*rows, masks="boxes", size=(100, 100), gt_ids=None):
    """Instances of rows (class, XYWH box, score).

    ``masks`` is "boxes" (each fills its box), None (no masks) or a list of arrays.
    """
    boxes = torch.tensor([row[1] for row in rows], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    instances = Instances(
        size,
        pred_boxes=Boxes(boxes),
        scores=torch.tensor([float(row[2]) for row in rows]),
        pred_classes=torch.tensor([row[0] for row in rows], dtype=torch.int64),
    )
    if isinstance(masks, str):
        masks = [rectangle(row[1], size) for row in rows]
    if masks is not None:
        instances.pred_masks = torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, *size))
    if gt_ids is not None:
        instances.gt_ids = torch.tensor(gt_ids, dtype=torch.int64)
    return instances


def evaluate(evaluator, of_image):
    """Results of {image id: Instances}, one image a batch."""
    evaluator.reset()
    for image_id, instances in of_image.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()
