"""The boxes of a COCO file, whose masks a model is to draw."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence

from psis_d2.data.coco import file_name_of
from psis_d2.data.foreign_masks import as_rle
from psis_d2.data.records import is_box, read_flag, read_id
from psis_d2.data.segmentation import read_segmentation
from psis_d2.errors import UserError
from psis_d2.inference.predictor import Predictor

import numpy as np
import torch
from detectron2.structures import Instances
from pycocotools import mask as mask_util


def read_boxes(path: str) -> tuple[dict, str]:
    """The json as it is, and its digest.

    Raises:
        UserError: it is no COCO file, or an id is missing, repeated or leads nowhere.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
        data = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"Cannot read {path} ({error}); give a COCO json with boxes.") from error
    if not isinstance(data, dict):
        data = {}
    for key in ("images", "annotations", "categories"):
        entries = data.get(key)
        if not isinstance(entries, list) or not all(isinstance(x, dict) for x in entries):
            raise UserError(f"{path} has no list of {key}; give a COCO json with boxes.")
    known = {}
    for key in ("images", "categories"):
        ids = [read_id(entry.get("id")) for entry in data[key]]
        known[key] = set(ids)
        if None in known[key] or len(known[key]) < len(ids):
            raise UserError(f"{path} has {key} without an id or with a repeated one; fix the ids.")
    for record in data["images"]:
        if file_name_of(record) is None:
            raise UserError(f"{path}: image {record['id']} has no file_name; add it.")
    for index, annotation in enumerate(data["annotations"]):
        own = f"annotation {annotation.get('id', f'number {index}')}"
        for key, part in (("image_id", "images"), ("category_id", "categories")):
            if read_id(annotation.get(key)) not in known[part]:
                raise UserError(
                    f"{path}: {own} has {key} {annotation.get(key)!r}, which is not in the file; "
                    "fix or remove it."
                )
        read_flag(annotation.get("iscrowd"), "iscrowd", own, path)
    return data, hashlib.sha256(content).hexdigest()


def by_image(data: dict) -> dict[int | str, list[dict]]:
    """The annotations of every image of :func:`read_boxes`, by its id."""
    of_image: dict = {read_id(record["id"]): [] for record in data["images"]}
    for annotation in data["annotations"]:
        of_image[read_id(annotation["image_id"])].append(annotation)
    return of_image


def is_crowd(annotation: dict) -> bool:
    """Whether an annotation of :func:`read_boxes` is a crowd region."""
    return read_flag(annotation.get("iscrowd"), "iscrowd", "an annotation", "the json")


def classes_of(categories: Sequence[dict], predictor: Predictor) -> dict:
    """Category id -> the model's class, by name; None for a category that the model lacks.

    A model whose masks do not depend on the class draws those of all categories.
    """
    by_name = {name: i for i, name in enumerate(predictor.class_names)}
    fallback = 0 if predictor.class_agnostic else None
    names = {read_id(x["id"]): x.get("name") for x in categories}
    return {
        key: by_name.get(name, fallback) if isinstance(name, str) else fallback
        for key, name in names.items()
    }


def clipped_box(box: Sequence[float], shape: Sequence[int]) -> list[float] | None:
    """XYWH as XYXY within an image; None if nothing is left of it."""
    x0, y0 = max(box[0], 0.0), max(box[1], 0.0)
    x1, y1 = min(box[0] + box[2], shape[1]), min(box[1] + box[3], shape[0])
    return [x0, y0, x1, y1] if x1 > x0 and y1 > y0 else None


def check_size(image: np.ndarray, record: dict) -> None:
    found, said = image.shape[:2], (record.get("height"), record.get("width"))
    if None not in said and found != said:
        raise UserError(
            f"The image {file_name_of(record)} is {found[1]} x {found[0]} pixels, but the json "
            f"says {said[1]} x {said[0]}; correct width and height."
        )


class GivenBoxes:
    """The annotated objects of images, in place of those that a model would find.

    Attributes:
        digest: of the file.

    Args:
        file: a COCO json.
        predictor: the model, whose classes the categories become.

    Raises:
        UserError: the file cannot be used.
    """

    def __init__(self, file: str, predictor: Predictor):
        data, self.digest = read_boxes(file)
        self._predictor = predictor
        self._classes = classes_of(data["categories"], predictor)
        self._records = {os.path.normpath(file_name_of(x)): x for x in data["images"]}
        self._annotations = by_image(data)

    def record_of(self, path: str) -> dict | None:
        """The entry of an image: the one whose ``file_name`` is the longest end of its path."""
        parts = os.path.normpath(path).split(os.sep)
        tails = (os.path.join(*parts[first:]) for first in range(len(parts)))
        return next((self._records[tail] for tail in tails if tail in self._records), None)

    def predict(self, path: str, image: np.ndarray) -> tuple[Instances, list[np.ndarray | None]]:
        """The objects that are annotated in an image, with the model's masks.

        Crowds, boxes that are none or have no pixel in the image, and categories that the model
        does not know are left out.

        Args:
            path: of the image.
            image: uint8 [H, W, 3], BGR.

        Returns:
            What :meth:`psis_d2.Predictor.__call__` gives, with ``row`` (int64 [N]), the place of
            each in the list of annotated masks: bool [H, W] each, or None.

        Raises:
            UserError: the image is of another size than the file says.
        """
        record, height, width = self.record_of(path), *image.shape[:2]
        boxes, classes, truth = [], [], []
        if record is not None:
            check_size(image, record)
            for annotation in self._annotations[read_id(record["id"])]:
                box = annotation.get("bbox")
                category = self._classes[read_id(annotation["category_id"])]
                if is_crowd(annotation) or category is None or not is_box(box):
                    continue
                if (clipped := clipped_box(box, image.shape)) is not None:
                    boxes.append(clipped)
                    classes.append(category)
                    truth.append(annotated_mask(annotation, height, width))
        found = self._predictor(image, np.array(boxes).reshape(-1, 4), np.array(classes, np.int64))
        found.row = torch.arange(len(found))
        return found, truth


def annotated_mask(annotation: dict, height: int, width: int) -> np.ndarray | None:
    """An annotation's mask, bool [height, width]; None if it has none."""
    usable, _ = read_segmentation(annotation.get("segmentation"), height, width)
    return None if usable is None else mask_util.decode(as_rle(usable, height, width)).astype(bool)
