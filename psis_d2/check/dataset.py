"""Read a COCO json without believing it, and its images."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from psis_d2.check.findings import Findings
from psis_d2.data.coco import file_name_of
from psis_d2.data.points import usable_points
from psis_d2.data.records import has_area, is_box, is_side, read_flag, read_id
from psis_d2.data.segmentation import read_segmentation
from psis_d2.errors import UserError

import numpy as np
from PIL import Image
from pycocotools import mask as mask_util
from tqdm import tqdm

TINY = 4  # pixels
_EXIF_ORIENTATION = 0x0112
_PLAIN_MODES = ("RGB", "L", "P", "RGBA", "1", "CMYK", "YCbCr", "LA")


@dataclass
class CategoryCounts:
    """Objects of one category; crowd regions are counted apart."""

    name: str
    objects: int = 0
    masks: int = 0
    points: int = 0
    """Objects with annotated points."""
    crowds: int = 0


@dataclass
class DatasetCheck:
    """All that was found out about one json and its images."""

    json_file: str
    images: int = 0
    categories: dict = field(default_factory=dict)
    """Category id -> :class:`CategoryCounts`."""
    findings: Findings = field(default_factory=Findings)
    box_sides: list[float] = field(default_factory=list)
    """Square root of the area of every box, in pixels."""
    mask_shares: list[float] = field(default_factory=list)
    """Share of its box that every mask fills."""
    samples: list[dict] = field(default_factory=list)
    """Images to look at: ``file``, ``record`` and ``annotations``."""

    @property
    def objects(self) -> int:
        """Objects that training uses."""
        return sum(x.objects for x in self.categories.values())

    @property
    def points(self) -> int:
        """Objects with annotated points, with or without a mask."""
        return sum(x.points for x in self.categories.values())

    @property
    def masks(self) -> int:
        """Objects with a usable mask."""
        return sum(x.masks for x in self.categories.values())

    def as_dict(self) -> dict:
        """Plain values, for a json."""
        return {
            "json": self.json_file,
            "images": self.images,
            "objects": self.objects,
            "masks": self.masks,
            "points": self.points,
            "categories": [
                {**vars(counts), "seen": counts.masks > 0} for counts in self.categories.values()
            ],
            "findings": [
                {
                    "kind": x.kind,
                    "severity": x.severity,
                    "count": x.count,
                    "examples": x.examples,
                    "remedy": x.remedy,
                }
                for x in self.findings
            ],
        }


def check_dataset(
    json_file: str, image_root: str, *, decode: bool = True, samples: int = 8, threads: int = 0
) -> DatasetCheck:
    """Look at every annotation and every image of a COCO json.

    Args:
        json_file: the json.
        image_root: folder of its images.
        decode: read all pixels, which finds damaged files; else only the headers.
        samples: images to keep for looking at.
        threads: files read at a time; 0 = twice the cores.

    Raises:
        UserError: there is no json, or it is not in COCO's format at all.
    """
    content = _read(json_file)
    if not os.path.isdir(image_root):
        raise UserError(f"The image folder {image_root} does not exist; check the path.")
    check = DatasetCheck(json_file, images=len(content["images"]))
    _check_categories(content["categories"], check)
    records = _check_records(content["images"], image_root, check)
    objects = _check_annotations(content["annotations"], records, check)
    for key, record in records.items():
        if not objects.get(key):
            check.findings.add("no objects", record["file_name"])
    for counts in check.categories.values():
        if not counts.objects:
            check.findings.add("no object at all", counts.name)
        elif not counts.masks:
            check.findings.add("no mask at all", counts.name)
    _check_files(records, image_root, decode, threads or 2 * (os.cpu_count() or 1), check)
    check.samples = _choose_samples(records, objects, image_root, samples)
    return check


def check_validation(training: DatasetCheck, validation: DatasetCheck) -> None:
    """Add to the validation data's findings what does not fit the training data."""
    known = {counts.name for counts in training.categories.values()}
    for counts in validation.categories.values():
        if counts.name not in known:
            validation.findings.add("category unknown to training", counts.name)


def _read(json_file: str) -> dict:
    try:
        with open(json_file, encoding="utf-8-sig") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"Cannot read {json_file} ({error}); give a COCO json.") from error
    content = content if isinstance(content, dict) else {}
    if content:
        content.setdefault("annotations", [])  # a list of images to predict on has none
    for name in ("images", "annotations", "categories"):
        entries = content.get(name)
        if not isinstance(entries, list) or not all(isinstance(x, dict) for x in entries):
            raise UserError(f"{json_file} has no list of {name}; give a COCO json.")
    return content


def _check_categories(categories: list[dict], check: DatasetCheck) -> None:
    for category in categories:
        key, name = read_id(category.get("id")), str(category.get("name"))
        if key is None:
            check.findings.add("no id", f"category {name}: {category.get('id')!r}")
        elif key in check.categories:
            check.findings.add("duplicate category id", f"{name} (id {key})")
        else:
            check.categories[key] = CategoryCounts(name)


def _check_records(images: list[dict], root: str, check: DatasetCheck) -> dict:
    """Images by id, those that can be used."""
    records: dict = {}
    names: set[str] = set()
    for image in images:
        key, name = read_id(image.get("id")), file_name_of(image, root)
        if key is None:
            check.findings.add("no id", f"image {name}: {image.get('id')!r}")
            continue
        if name is None:
            check.findings.add("no file name", f"image id {key}: {image.get('file_name')!r}")
            continue
        if key in records:
            check.findings.add("duplicate image id", f"{name} (id {key})")
            continue
        if name in names:
            check.findings.add("duplicate file name", name)
        names.add(name)
        size = image.get("height"), image.get("width")
        if not all(map(is_side, size)):
            check.findings.add("no size", f"{name} ({size[1]} x {size[0]})")
        box_only = _flag(image, "box_only", f"image id {key}", check)
        records[key] = {**image, "file_name": name, "box_only": box_only}
    return records


def _flag(entry: dict, name: str, owner: str, check: DatasetCheck) -> bool:
    """A flag; false with a finding where it is none."""
    try:
        return read_flag(entry.get(name), name, owner, "the json")
    except UserError:
        check.findings.add("bad flag", f"{name} of {owner}: {entry[name]!r}")
        return False


def _check_annotations(annotations: list[dict], records: dict, check: DatasetCheck) -> dict:
    """Usable annotations by image id, with masks as they are read."""
    objects: dict = {}
    ids: Counter = Counter()
    for position, annotation in enumerate(annotations):
        raw = annotation.get("id")
        key = read_id(raw)
        label = f"annotation {f'number {position + 1}' if key is None else key}"
        if raw is not None and key is None:
            check.findings.add("no id", f"{label}: {raw!r}")
        elif key is not None:
            ids[key] += 1
            if ids[key] > 1:
                check.findings.add("duplicate annotation id", label)
        image = read_id(annotation.get("image_id"))
        category = read_id(annotation.get("category_id"))
        if image not in records:
            check.findings.add("unknown image", f"{label}: {annotation.get('image_id')!r}")
        elif category not in check.categories:
            check.findings.add("unknown category", f"{label}: {annotation.get('category_id')!r}")
        elif _check_box(annotation, records[image], label, check):
            counts = check.categories[category]
            flags = [_flag(annotation, name, label, check) for name in ("iscrowd", "ignore")]
            if any(flags):
                counts.crowds += 1
                check.findings.add("crowd", label)
                continue
            counts.objects += 1
            mask = _check_mask(annotation, records[image], label, check)
            counts.masks += mask is not None
            counts.points += _check_points(annotation, records[image], label, check)
            read = {**annotation, "segmentation": mask, "category_id": category}
            objects.setdefault(image, []).append(read)
    return objects


def _check_box(annotation: dict, record: dict, label: str, check: DatasetCheck) -> bool:
    """Whether an annotation has a box that training can use."""
    box = annotation.get("bbox")
    label = f"{label} in {record['file_name']}"
    if not is_box(box):
        check.findings.add("bad box", f"{label}: {box!r}")
        return False
    x, y, width, height = box
    if not has_area(width, height):
        check.findings.add("flat box", f"{label}: {box}")
        return False
    size = record.get("width"), record.get("height")
    if all(map(is_side, size)) and (
        x < -1 or y < -1 or x + width > size[0] + 1 or y + height > size[1] + 1
    ):
        check.findings.add("box outside", f"{label}: {box} in {size[0]} x {size[1]}")
    if min(width, height) < TINY:
        check.findings.add("tiny object", f"{label}: {width:.4g} x {height:.4g}")
    check.box_sides.append(math.sqrt(width * height))
    return True


def _check_mask(
    annotation: dict, record: dict, label: str, check: DatasetCheck
) -> list | dict | None:
    """An annotation's mask as training reads it, None if there is none that it can use."""
    size = record.get("height"), record.get("width")
    if record["box_only"] or not all(map(is_side, size)):
        return None
    height, width = (int(v) for v in size)
    label = f"{label} in {record['file_name']}"
    mask, bad = read_segmentation(annotation.get("segmentation"), height, width)
    if mask is None:
        if bad:
            check.findings.add("bad mask", label)
        return None
    area, inside = _mask_areas(mask, annotation["bbox"], height, width)
    if inside < area / 2:
        check.findings.add("mask outside box", label)
    _, _, box_width, box_height = annotation["bbox"]
    check.mask_shares.append(min(1.0, inside / (box_width * box_height)))
    return mask


def _check_points(annotation: dict, record: dict, label: str, check: DatasetCheck) -> bool:
    """Whether an annotation has points that training can use."""
    points = usable_points(annotation)
    label = f"{label} in {record['file_name']}"
    if points is None:
        check.findings.add("bad points", label)
        return False
    x, y, width, height = annotation["bbox"]
    if not all(x <= px <= x + width and y <= py <= y + height for px, py, _ in points):
        check.findings.add("points outside box", label)
    return bool(points)


def decode_mask(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """A mask as :func:`~psis_d2.data.segmentation.read_segmentation` gives it: uint8 [H, W]."""
    if isinstance(segmentation, list):
        segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    return mask_util.decode(segmentation)


def _mask_areas(segmentation: list | dict, box: list, height: int, width: int) -> tuple[int, int]:
    """Pixels of a mask, and those of them in its box."""
    mask = decode_mask(segmentation, height, width)
    x, y, w, h = box
    rows = slice(max(0, math.floor(y)), max(0, math.ceil(y + h)))
    columns = slice(max(0, math.floor(x)), max(0, math.ceil(x + w)))
    return int(mask.sum()), int(mask[rows, columns].sum())


def _check_files(records: dict, root: str, decode: bool, threads: int, check: DatasetCheck) -> None:
    def look(record: dict) -> tuple[str, str] | None:
        return _fault_of_file(os.path.join(root, record["file_name"]), record, decode)

    with ThreadPoolExecutor(threads) as pool:
        faults = pool.map(look, records.values())
        shown = tqdm(faults, total=len(records), desc="image files", unit="image", delay=2)
        for fault in shown:
            if fault:
                check.findings.add(*fault)


def _fault_of_file(path: str, record: dict, decode: bool) -> tuple[str, str] | None:
    """Kind and example of what is wrong with an image file."""
    name = record["file_name"]
    if not os.path.isfile(path):
        return "missing file", name
    try:
        with Image.open(path) as image:
            size, mode = image.size, image.mode
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
            if decode:
                image.load()
    except Exception as error:  # Pillow reports a damaged file in many ways
        return "unreadable file", f"{name} ({type(error).__name__}: {error})"
    said = record.get("width"), record.get("height")
    shown = size[::-1] if turned else size
    if all(map(is_side, said)) and tuple(said) != shown:
        kind = "rotated" if tuple(said) == shown[::-1] and turned else "other size"
        return kind, f"{name} is {shown[0]} x {shown[1]}, the json says {said[0]} x {said[1]}"
    if mode not in _PLAIN_MODES:
        return "unusual pixels", f"{name} (mode {mode})"
    return None


def _choose_samples(records: dict, objects: dict, root: str, number: int) -> list[dict]:
    """Images that show as many categories as possible, in the order of the file."""
    chosen, shown = [], set()
    candidates = [key for key in records if objects.get(key)]
    for new_only in (True, False):
        for key in candidates:
            kinds = {a["category_id"] for a in objects[key]}
            path = os.path.join(root, records[key]["file_name"])
            taken = any(sample["key"] == key for sample in chosen)
            if len(chosen) == number or taken or (new_only and kinds <= shown):
                continue
            if os.path.isfile(path):
                shown |= kinds
                chosen.append(
                    {"key": key, "file": path, "record": records[key], "annotations": objects[key]}
                )
    return chosen


def histogram(values: list[float], edges: np.ndarray) -> np.ndarray:
    """How many values lie between neighboring edges; the outer bins take what is beyond."""
    return np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
