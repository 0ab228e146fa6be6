"""PASCAL VOC 2012's segmentation images as COCO-format jsons, with SBD's masks if they are there.

The folder is ``VOCdevkit/VOC2012`` as it is unpacked::

    ImageSets/Segmentation/{train,val}.txt   JPEGImages/*.jpg       Annotations/*.xml
    SegmentationObject/*.png                 SegmentationClass/*.png

In both kinds of PNG, 0 is background and 255 the border between objects, which belongs to none. A
value of ``SegmentationObject`` is an object, and ``SegmentationClass`` says of what category.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Sequence

from psis_d2.data.datasets.conversion import (
    clip_box,
    mask_annotation,
    numbered,
    read_pixels,
    write_json,
)
from psis_d2.errors import UserError
from psis_d2.optional import require

import numpy as np
from PIL import Image
from pycocotools import mask as mask_util
from tqdm import tqdm

CATEGORIES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
SPLITS = ("train", "val")
_BORDER = 255
# A box of the xml and an object's mask that overlap so much are of one object.
_SAME_IOU = 0.5


def json_path(folder: str, name: str) -> str:
    """Path of the annotations ``train``, ``val``, ``train_boxes`` or ``train_sbd``.

    Not in ``annotations``: some file systems take that for VOC's own ``Annotations``.
    """
    return os.path.join(folder, "coco", f"instances_{name}.json")


def prepare(
    folder: str, boxes: bool = False, sbd: str | None = None, progress: bool = True
) -> dict[str, Counter]:
    """Write ``coco/instances_{train,val}.json`` and further training files.

    Args:
        folder: see the head of this file.
        boxes: also write ``instances_train_boxes.json``: beside ``train``, the images of
            ``ImageSets/Main/trainval.txt`` that are not in ``val``, with boxes alone.
        sbd: folder with SBD's ``inst/*.mat``, for ``instances_train_sbd.json``: beside ``train``,
            the images with SBD's masks that are not in ``val``.
        progress: show how far it is.

    Returns:
        {name of the file: counts of images, objects and what was left out}.

    Raises:
        UserError: a file is missing or not as it must be, or the folder cannot be written.
    """
    names = {split: _read_names(folder, "Segmentation", split) for split in SPLITS}
    taken = set().union(*names.values())
    parts = {split: _Part(folder, split, progress) for split in SPLITS}
    for split, part in parts.items():
        part.add(names[split], _of_masks)
    if boxes:
        others = [x for x in _read_names(folder, "Main", "trainval") if x not in taken]
        parts["train_boxes"] = parts["train"].copy("boxes")
        parts["train_boxes"].add(others, _of_xml)
    if sbd:
        others = [x for x in _sbd_names(sbd) if x not in taken]
        parts["train_sbd"] = parts["train"].copy("SBD")
        parts["train_sbd"].add(others, lambda *image: _of_sbd(sbd, *image))
    categories = [{"id": i, "name": name} for i, name in enumerate(CATEGORIES, start=1)]
    for name, part in parts.items():
        write_json(json_path(folder, name), numbered(part.content, categories))
        part.count["images"] = len(part.content["images"])
        part.count["objects"] = len(part.content["annotations"])
    return {name: part.count for name, part in parts.items()}


class _Part:
    """A json in the making."""

    def __init__(self, folder: str, title: str, progress: bool):
        self.folder, self.title, self.progress = folder, title, progress
        self.content: dict[str, list] = {"images": [], "annotations": []}
        self.count: Counter = Counter()

    def copy(self, title: str) -> _Part:
        """Another one with the same images to begin with."""
        other = _Part(self.folder, title, self.progress)
        other.content = {key: list(entries) for key, entries in self.content.items()}
        other.count = self.count.copy()
        return other

    def add(self, names: Sequence[str], read) -> None:
        """Add images, with the annotations that `read` finds."""
        for name in tqdm(names, desc=self.title, unit="image", disable=not self.progress):
            path = os.path.join(self.folder, "JPEGImages", f"{name}.jpg")
            if not os.path.isfile(path):
                self.count["images without a file"] += 1
                continue
            with Image.open(path) as image:
                width, height = image.size
            record = {"id": _image_id(name), "file_name": f"JPEGImages/{name}.jpg"}
            self.content["images"].append(record | {"height": height, "width": width})
            for annotation in read(self.folder, name, height, width, self.count):
                self.content["annotations"].append({"image_id": record["id"], **annotation})


def _image_id(name: str) -> int | str:
    """2008_000123 is image 2008000123."""
    digits = name.replace("_", "")
    return int(digits) if digits.isdigit() else name


def _read_names(folder: str, task: str, split: str) -> list[str]:
    path = os.path.join(folder, "ImageSets", task, f"{split}.txt")
    try:
        with open(path, encoding="utf-8") as file:
            names = [line.split()[0] for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Cannot read {path} ({reason}); unpack VOC 2012 into {folder}.") from error
    if not names:
        raise UserError(f"{path} lists no images; unpack VOC 2012 again.")
    return list(dict.fromkeys(names))


def _of_masks(folder: str, name: str, height: int, width: int, count: Counter) -> list[dict]:
    """The objects of an image of the segmentation task.

    An object of the xml that has no mask keeps its box, a difficult one as a crowd region.
    """
    maps = []
    for kind in ("SegmentationObject", "SegmentationClass"):
        path = os.path.join(folder, kind, f"{name}.png")
        pixels = read_pixels(path)
        if pixels.shape != (height, width):
            raise UserError(
                f"{path} is no map of the {width}x{height} pixels of its image: its shape is "
                f"{pixels.shape}; take VOC's own PNGs, which have a palette."
            )
        maps.append(pixels)
    found = list(_objects(*maps, count))
    if not os.path.isdir(os.path.join(folder, "Annotations")):
        count["images without an xml"] += 1
        return found
    return found + _without_mask(_of_xml(folder, name, height, width, Counter()), found, count)


def _objects(instances: np.ndarray, classes: np.ndarray, count: Counter) -> Iterable[dict]:
    """Annotations of the objects of two maps."""
    for value in np.unique(instances).tolist():
        if value in (0, _BORDER):
            continue
        mask = instances == value
        of_class = np.bincount(classes[mask], minlength=256)
        of_class[[0, _BORDER]] = 0
        category = int(of_class.argmax())
        if not of_class[category]:
            count["masks without a category"] += 1
        elif category > len(CATEGORIES):
            raise UserError(
                f"A class map has a category {category}, but VOC's are 1 to {len(CATEGORIES)}; "
                "take VOC's own PNGs, which have a palette."
            )
        else:
            yield {"category_id": category, "iscrowd": 0, **mask_annotation(mask)}


def _without_mask(boxed: Sequence[dict], masked: Sequence[dict], count: Counter) -> list[dict]:
    """The objects of the xml that none of the masks is of."""
    free, left = [True] * len(masked), []
    for annotation in boxed:
        places = [
            k
            for k, other in enumerate(masked)
            if free[k] and other["category_id"] == annotation["category_id"]
        ]
        boxes = np.array([masked[k]["bbox"] for k in places]).reshape(-1, 4)
        own = np.array([annotation["bbox"]])
        ious = mask_util.iou(own, boxes, [0] * len(places))[0] if places else np.zeros(0)
        if len(ious) and ious.max() >= _SAME_IOU:
            free[places[int(ious.argmax())]] = False
        else:
            count["objects with a box alone"] += 1
            left.append(annotation)
    return left


def _of_xml(folder: str, name: str, height: int, width: int, count: Counter) -> list[dict]:
    """The boxes of an image's xml; a difficult object is a crowd region, as VOC ignores it."""
    path = os.path.join(folder, "Annotations", f"{name}.xml")
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Cannot read {path} ({reason}); unpack VOC 2012 again.") from error
    found = []
    for thing in root.findall("object"):
        category = (thing.findtext("name") or "").strip()
        if category not in CATEGORIES:
            raise UserError(f"{path} has an object '{category}', which is no category of VOC.")
        try:
            x0, y0, x1, y1 = (
                float(thing.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"{path} has an object without a bndbox of four numbers.") from error
        # VOC counts pixels from 1, and the last one is part of the box.
        box = clip_box(x0 - 1, y0 - 1, x1, y1, height, width)
        if box is None:
            count["boxes outside of their image"] += 1
            continue
        difficult = (thing.findtext("difficult") or "0").strip() == "1"
        count["difficult objects"] += difficult
        entry = {"category_id": CATEGORIES.index(category) + 1, "iscrowd": int(difficult)}
        found.append(entry | {"bbox": box, "area": box[2] * box[3]})
    return found


def _sbd_names(sbd: str) -> list[str]:
    try:
        names = sorted(
            name[:-4] for name in os.listdir(os.path.join(sbd, "inst")) if name[-4:] == ".mat"
        )
    except OSError as error:
        raise UserError(
            f"{sbd} has no folder inst ({error.strerror}); give SBD's benchmark_RELEASE/dataset."
        ) from error
    if not names:
        raise UserError(f"{sbd}/inst has no .mat files; give SBD's benchmark_RELEASE/dataset.")
    return names


def _of_sbd(sbd: str, folder: str, name: str, height: int, width: int, count: Counter):
    """The objects of one of SBD's files."""
    path = os.path.join(sbd, "inst", f"{name}.mat")
    matlab = require("scipy.io.matlab")
    broken = (OSError, KeyError, ValueError, IndexError, TypeError, NotImplementedError)
    try:
        record = matlab.loadmat(path)["GTinst"][0, 0]
        instances = np.asarray(record["Segmentation"])
        categories = np.asarray(record["Categories"]).ravel().astype(int)
    except (*broken, matlab.MatReadError) as error:
        raise UserError(f"{path} is not SBD's ({error}); get the file again.") from error
    if instances.shape != (height, width) or not (
        instances.max(initial=0) <= len(categories)
        and all(1 <= c <= len(CATEGORIES) for c in categories)
    ):
        raise UserError(
            f"{path} does not fit its image of {width}x{height} pixels and VOC's categories."
        )
    for number, category in enumerate(categories.tolist(), start=1):
        mask = instances == number
        if mask.any():
            yield {"category_id": category, "iscrowd": 0, **mask_annotation(mask)}
        else:
            count["masks without a pixel"] += 1
