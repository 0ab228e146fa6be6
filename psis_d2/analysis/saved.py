"""What the analyses read: annotations, and predictions in COCO's result format."""

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence

from psis_d2.data.coco import register_coco_json
from psis_d2.data.records import read_id
from psis_d2.errors import UserError
from psis_d2.evaluation.ground_truth import GroundTruth, load_ground_truth
from psis_d2.evaluation.predictions import ImagePredictions

import numpy as np
from pycocotools import mask as mask_util


def read_truth(source: str) -> GroundTruth:
    """The annotations of a COCO-format json, or of a registered data set. No image is opened.

    Args:
        source: a path that ends in .json, or a name such as ``coco_2017_val``.

    Raises:
        UserError: it cannot be read, or has no annotations.
    """
    name = source
    if source.lower().endswith(".json"):
        name = f"truth:{os.path.abspath(source)}"
        register_coco_json(name, source, "")
    truth = load_ground_truth(name)
    if not truth.annotated:
        raise UserError(f"{source} has no annotations to compare with; give a json that has.")
    return truth


def read_predictions(path: str, truth: GroundTruth) -> list[ImagePredictions]:
    """Predictions as the evaluators write them (``coco_instances_results.json`` and the like).

    Args:
        path: of a list of dicts in COCO's result format. Masks are RLEs, compressed or not; a
            prediction without ``bbox`` has that of its mask. Predictions in given boxes have the
            ``id`` of their annotation.
        truth: what they are predictions for.

    Returns:
        At most one an image, classes being contiguous category ids.

    Raises:
        UserError: the file is something else, or cannot belong to this ground truth.
    """
    of_image = defaultdict(list)
    for record in _read_list(path):
        image_id = read_id(record.get("image_id"))
        if image_id not in truth.image_sizes:
            raise UserError(
                f"{path} has a prediction for image {record.get('image_id')!r}, which "
                f"{truth.dataset_name} does not list; give the annotations that it was made for."
            )
        of_image[image_id].append(record)
    categories = {key: number for number, key in enumerate(truth.json_ids)}
    predictions = []
    for image_id, records in of_image.items():
        try:
            predictions.append(_of_image(image_id, records, categories))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} has a prediction for image {image_id} that is not in COCO's result "
                f"format ({type(error).__name__}: {error}); it needs category_id, score, and a "
                "bbox of four numbers or an RLE as segmentation."
            ) from error
    truth.check_predictions(predictions)
    return predictions


def _read_list(path: str) -> list[dict]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise UserError(f"Cannot read {path} ({error.strerror or error}).") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}; it may be cut off.") from error
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise UserError(
            f"{path} is no list of predictions in COCO's result format; give the "
            "coco_instances_results.json of an evaluation."
        )
    return content


def _of_image(
    image_id: int | str, records: Sequence[dict], categories: Mapping[int, int]
) -> ImagePredictions:
    with_mask = ["segmentation" in record for record in records]
    if any(with_mask) and not all(with_mask):
        raise ValueError("some have a mask and some have none")
    masks = [_rle(record["segmentation"]) for record in records] if all(with_mask) else []
    boxes = [record.get("bbox") for record in records]
    if masks and any(box is None for box in boxes):
        boxes = mask_util.toBbox(masks)
    sizes = {tuple(mask["size"]) for mask in masks}
    if len(sizes) > 1:
        raise ValueError(f"its masks have the sizes {sorted(sizes)}")
    counts = [mask["counts"] for mask in masks]
    ids = [record.get("id") for record in records]
    return ImagePredictions(
        image_id=image_id,
        classes=np.array([categories[record["category_id"]] for record in records]),
        # float() refuses null, of which NumPy makes nan.
        scores=np.array([float(record["score"]) for record in records]),
        boxes=np.array([[float(v) for v in box] for box in boxes]).reshape(len(records), 4),
        size=sizes.pop() if sizes else None,
        counts=b"".join(counts),
        ends=np.cumsum([len(x) for x in counts], dtype=np.int64) if counts else None,
        ids=None if None in ids else np.array(ids),
    )


def _rle(segmentation: Mapping) -> dict:
    """A compressed RLE with counts in bytes."""
    size, counts = list(segmentation["size"]), segmentation["counts"]
    if isinstance(counts, list):
        return mask_util.frPyObjects({"size": size, "counts": counts}, *size)
    return {"size": size, "counts": counts.encode("ascii")}
