"""From boxes to masks: give every box of a COCO file a mask, and leave everything else as it is."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field

from psis_d2.data.coco import file_name_of
from psis_d2.data.records import is_box, is_side, read_id
from psis_d2.data.supervision import usable_segmentation
from psis_d2.errors import UserError
from psis_d2.files import written_at_once
from psis_d2.inference.box_files import (
    by_image,
    check_size,
    classes_of,
    clipped_box,
    is_crowd,
    read_boxes,
)
from psis_d2.inference.journal import Journal
from psis_d2.inference.media import find_media, read_picture
from psis_d2.inference.polygons import mask_to_polygons
from psis_d2.inference.predict import confident, encode_mask, overlay
from psis_d2.inference.predictor import Predictor
from psis_d2.visualization import save_png

import numpy as np
from detectron2.utils import comm
from pycocotools import mask as mask_util
from tqdm import tqdm

# Why an annotation got no mask, as the report says it.
HAS_MASK = "has a mask already"
CROWD = "is a crowd region"
NO_BOX = "has no box"
OUTSIDE = "has a box without a pixel in the image"
UNKNOWN = "is of a category that the model does not know"
EMPTY = "got a mask without a pixel"
UNSURE = "got a mask below --min-score"
UNREADABLE = "is in an image that cannot be read"


@dataclass(frozen=True)
class Labeling:
    """How masks are made and written.

    Args:
        only_missing: leave annotations alone that have a mask.
        min_score: masks whose score is lower are left out.
        polygons: tolerance in pixels of polygons; None writes RLE.
        previews: so many images are drawn, into ``OUTPUT_previews``.
    """

    only_missing: bool = True
    min_score: float = 0.0
    polygons: float | None = None
    previews: int = 0


@dataclass
class Report:
    """What became of the annotations.

    Attributes:
        labeled: how many got a mask.
        left: reason -> how many did not.
        filled_holes: holes that polygons could not show.
    """

    labeled: int = 0
    left: Counter = field(default_factory=Counter)
    filled_holes: int = 0

    def lines(self) -> list[str]:
        """For a person to read."""
        lines = [f"{self.labeled} annotations got a mask"]
        lines += [f"{count} not: {reason}" for reason, count in self.left.most_common()]
        if self.filled_holes:
            lines.append(f"{self.filled_holes} holes were filled, which polygons cannot show")
        return lines


def autolabel(
    predictor: Predictor,
    images: str,
    output: str,
    *,
    boxes: str | None = None,
    labeling: Labeling = Labeling(),  # noqa: B008  (frozen)
    progress: bool = True,
) -> Report | None:
    """Draw the masks of all boxes, or of all objects that the model finds itself.

    The result is the file of boxes with ``segmentation`` and ``area`` of every annotation that got
    a mask, ``score`` (how sure the model is of the mask, 0 to 1) and ``source``; ids, order,
    foreign keys and all that got no mask stay as they are. Without a file of boxes the result has
    the model's own detections above the minimal score, with ``score`` (the detection's) and
    ``mask_score``.

    Finished images are kept in ``OUTPUT.unfinished`` until all are done, so that a run that was
    stopped goes on where it stopped, with any number of processes, and ends in the same bytes.
    Several processes (see :func:`psis_d2.engine.launch`) share the images.

    Args:
        predictor: the model, or a :class:`~psis_d2.inference.prompted.PromptedPredictor`.
        images: folder of the images; ``file_name`` of the file of boxes starts there.
        output: the json to write.
        boxes: a COCO json with boxes, or None.
        labeling: see :class:`Labeling`.
        progress: show a progress bar.

    Returns:
        The report, on the main process; it is written, too: ``labeled.report.json`` beside
        ``labeled.json``.

    Raises:
        UserError: the file of boxes, the folder or the output cannot be used.
    """
    if not predictor.draws_masks:
        raise UserError("The model draws no masks (MODEL.MASK_ON False); give one that does.")
    data, digest = read_boxes(boxes) if boxes else (_image_list(images), "")
    categories = classes_of(data["categories"], predictor) if boxes else {}
    job = {
        "model": predictor.fingerprint,
        "images": os.path.abspath(images),
        "boxes": digest or [x["file_name"] for x in data["images"]],
        "options": [labeling.only_missing, labeling.min_score, labeling.polygons],
    }
    if comm.is_main_process():  # one process makes the folder, so that none sees half of it
        Journal(f"{output}.unfinished", job).close()
    comm.synchronize()
    journal = Journal(f"{output}.unfinished", job, comm.get_rank())
    of_image = by_image(data)
    open_images = [i for i in range(len(data["images"])) if i not in journal.done]
    mine = open_images[comm.get_rank() :: comm.get_world_size()]
    shown = tqdm(mine, desc="images", unit="image", disable=not progress or comm.get_rank() > 0)
    for number in shown:
        record = data["images"][number]
        annotations = of_image[read_id(record["id"])] if boxes else None
        result = _label_image(
            predictor, images, record, annotations, categories, labeling, number, output
        )
        journal.add(number, result)
    comm.synchronize()
    report = None
    if comm.is_main_process():
        results = dict(journal.items())
        report = _write(data, results, of_image if boxes else None, output, predictor)
        journal.remove()
    else:
        journal.close()
    comm.synchronize()
    return report


def _image_list(folder: str) -> dict:
    """A COCO file of a folder's images, their sizes to be filled in."""
    paths, _ = find_media([folder])
    if not paths:
        raise UserError(f"The folder {folder} has no images; check the path.")
    root = folder if os.path.isdir(folder) else os.path.dirname(paths[0])
    names = [os.path.relpath(path, root) for path in paths]
    images = [{"id": i, "file_name": name} for i, name in enumerate(names, start=1)]
    return {"images": images, "annotations": [], "categories": []}


def _label_image(
    predictor: Predictor,
    folder: str,
    record: dict,
    annotations: list[dict] | None,
    categories: dict,
    labeling: Labeling,
    number: int,
    output: str,
) -> dict:
    """What the journal keeps of one image: masks, or reasons why there is none."""
    wanted = annotations is None or any(
        _reason(a, record, categories, labeling) is None for a in annotations
    )
    image = None
    if wanted:
        try:
            image = read_picture(os.path.join(folder, file_name_of(record, folder)))
            check_size(image, record)
        except UserError as error:
            if annotations is None:
                raise
            return {"unreadable": str(error)}
    if annotations is None:
        return _label_detections(predictor, image, labeling, number, output)
    rows, reasons = [], {}
    for row, annotation in enumerate(annotations):
        reason = _reason(annotation, record, categories, labeling)
        if reason is None and clipped_box(annotation["bbox"], image.shape) is None:
            reason = OUTSIDE
        if reason is None:
            rows.append(row)
        else:
            reasons[row] = reason
    masks = {}
    if rows:
        found = predictor(
            image,
            np.array([clipped_box(annotations[row]["bbox"], image.shape) for row in rows]),
            np.array([categories[read_id(annotations[row]["category_id"])] for row in rows]),
        )
        _preview(predictor, image, found, labeling, number, output, given=True)
        for row, mask, score in zip(
            rows, found.pred_masks.numpy(), found.mask_scores.tolist(), strict=True
        ):
            if not mask.any():
                reasons[row] = EMPTY
            elif score < labeling.min_score:
                reasons[row] = UNSURE
            else:
                masks[row] = _written(mask, labeling) | {"score": round(score, 6)}
    return {"masks": masks, "reasons": reasons}


def _reason(annotation: dict, record: dict, categories: dict, labeling: Labeling) -> str | None:
    """Why an annotation gets no mask, as far as the file tells; None if it gets one."""
    if is_crowd(annotation):
        return CROWD
    size = record.get("height"), record.get("width")
    segmentation = annotation.get("segmentation")
    if (
        labeling.only_missing
        and all(map(is_side, size))
        and usable_segmentation(segmentation, *(int(side) for side in size))
    ):
        return HAS_MASK
    if not is_box(annotation.get("bbox")):
        return NO_BOX
    return UNKNOWN if categories[read_id(annotation["category_id"])] is None else None


def _label_detections(
    predictor: Predictor, image: np.ndarray, labeling: Labeling, number: int, output: str
) -> dict:
    found = confident(predictor(image), labeling.min_score)
    _preview(predictor, image, found, labeling, number, output, given=False)
    objects = []
    for row, mask in enumerate(found.pred_masks.numpy()):
        if not mask.any():
            continue
        x0, y0, x1, y1 = found.pred_boxes.tensor[row].tolist()
        objects.append(
            {
                "category_id": int(found.pred_classes[row]) + 1,
                "bbox": [round(v, 2) for v in (x0, y0, x1 - x0, y1 - y0)],
                "iscrowd": 0,
                **_written(mask, labeling),
                "score": round(found.scores[row].item(), 6),
                "mask_score": round(found.mask_scores[row].item(), 6),
            }
        )
    return {"size": list(image.shape[:2]), "objects": objects}


def _written(mask: np.ndarray, labeling: Labeling) -> dict:
    """A mask as the output has it, with its area, and the holes that were filled."""
    if labeling.polygons is None:
        rle = encode_mask(mask)
        return {"segmentation": rle, "area": int(mask.sum())}
    outline = mask_to_polygons(mask, labeling.polygons)
    rle = mask_util.merge(mask_util.frPyObjects(outline.polygons, *mask.shape))
    written = {"segmentation": outline.polygons, "area": int(mask_util.area(rle))}
    return written | ({"holes": outline.holes} if outline.holes else {})


def _preview(
    predictor: Predictor,
    image: np.ndarray,
    found,
    labeling: Labeling,
    number: int,
    output: str,
    given: bool,
) -> None:
    if number < labeling.previews:
        path = os.path.join(f"{os.path.splitext(output)[0]}_previews", f"{number + 1:06d}.png")
        save_png(path, overlay(image, found, predictor, given=given))


def _write(
    data: dict, results: dict, of_image: dict | None, output: str, predictor: Predictor
) -> Report:
    """Put the results of all images into the file, in its order."""
    report = Report()
    unreadable = []
    for number, record in enumerate(data["images"]):
        result = results[number]
        if of_image is None:
            record["height"], record["width"] = result["size"]
            for entry in result["objects"]:
                report.labeled += 1
                report.filled_holes += entry.pop("holes", 0)
                entry = {
                    "id": report.labeled,
                    "image_id": record["id"],
                    **entry,
                    "source": predictor.source,
                }
                data["annotations"].append(entry)
            continue
        annotations = of_image[read_id(record["id"])]
        if "unreadable" in result:
            unreadable.append(result["unreadable"])
            report.left[UNREADABLE] += len(annotations)
            continue
        report.left.update(result["reasons"].values())
        for row, mask in result["masks"].items():
            report.labeled += 1
            report.filled_holes += mask.pop("holes", 0)
            annotations[int(row)].update(mask, source=predictor.source)
    if of_image is None:
        data["categories"] = [
            {"id": i, "name": name} for i, name in enumerate(predictor.class_names, start=1)
        ]
    with written_at_once(output) as file:
        json.dump(data, file)
    with written_at_once(f"{os.path.splitext(output)[0]}.report.json") as file:
        counts = {"labeled": report.labeled, "left": dict(report.left)}
        json.dump(counts | {"unreadable": unreadable}, file, indent=1)
    return report
