"""BDD100K as COCO-format jsons: 7k images with masks, and with them 60k that have boxes alone.

The files are those of its download page, unpacked into one folder::

    images/10k/{train,val}/*.jpg                images/100k/{train,val}/*.jpg
    labels/ins_seg/bitmasks/{train,val}/*.png   and, or instead,
    labels/ins_seg/{rles,polygons}/ins_seg_{train,val}.json
    labels/det_20/det_train.json                or labels/bdd100k_labels_images_train.json

An image's bitmask has four bytes a pixel: category (1 to 8), attributes (8 truncated, 4 occluded,
2 crowd, 1 ignored) and two bytes of the object's number. The jsons are lists of frames in
Scalabel's format: ``name`` and ``labels``, a label has ``category``, ``attributes`` and ``box2d``,
``rle`` or ``poly2d``, whose curves are cubic (a vertex of type C is a control point).

What becomes of it follows ShapeProp (Zhou et al., CVPR 2020, sec. 4.2): boxes of the detection
labels join the masks. The 10k images are no subset of the 100k, but many are in both: an image
that has masks is used with these, and one of validation is never trained on.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from psis_d2.data.datasets.conversion import (
    clip_box,
    mask_annotation,
    numbered,
    read_json,
    read_pixels,
    rle_annotation,
    write_json,
)
from psis_d2.data.segmentation import read_segmentation
from psis_d2.errors import UserError

import numpy as np
from pycocotools import mask as mask_util
from tqdm import tqdm

logger = logging.getLogger(__name__)

CATEGORIES = ("pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
SIZE = (720, 1280)
"""Height and width of all images."""
SPLITS = ("train", "val")
MASKS = ("bitmasks", "rles", "polygons")
"""Where masks come from, the best first: the official evaluation reads bitmasks."""

# Other spellings, of the releases of 2018.
_NAMES = {
    "bike": "bicycle",
    "caravan": "car",
    "motor": "motorcycle",
    "person": "pedestrian",
    "van": "car",
}
# Neither objects nor background, as the official converter has it.
_IGNORED = {"other person": "pedestrian", "other vehicle": "car", "trailer": "truck"}
_CROWD, _IGNORE = 2, 1
_DETECTION = ("det_20/det_{}.json", "bdd100k_labels_images_{}.json")
_CURVE_STEPS = 8


def json_path(folder: str, name: str) -> str:
    """Path of the annotations ``train``, ``val`` or ``train_boxes`` in BDD100K's folder."""
    return os.path.join(folder, "annotations", f"instances_{name}.json")


def prepare(folder: str, masks: str = "", boxes: bool = True, progress: bool = True) -> dict:
    """Write ``annotations/instances_{train,val}.json``, and ``instances_train_boxes.json``.

    The first two are the 10k images with masks. The third has those of ``train`` and the images of
    the detection labels, with boxes alone.

    Args:
        folder: see the head of this file.
        masks: one of :data:`MASKS`; "" = the first that is there.
        boxes: write the third file.
        progress: show how far it is.

    Returns:
        {name of the file: counts of images, objects and what was left out}.

    Raises:
        UserError: a file is missing or not as it must be, or the folder cannot be written.
    """
    found = masks or _find_masks(folder)
    contents, counts = {}, {}
    for split in SPLITS:
        contents[split], counts[split] = _with_masks(folder, split, found, progress)
    if boxes:
        joined, count = _with_boxes(folder, contents, progress)
        contents["train_boxes"], counts["train_boxes"] = joined, count + counts["train"]
    categories = [{"id": i, "name": name} for i, name in enumerate(CATEGORIES, start=1)]
    for name, content in contents.items():
        write_json(json_path(folder, name), numbered(content, categories))
        counts[name]["images"] = len(content["images"])
        counts[name]["objects"] = len(content["annotations"])
    return counts


def _find_masks(folder: str) -> str:
    for kind in MASKS:
        if os.path.exists(_mask_source(folder, kind, "train")):
            return kind
    raise UserError(
        f"{folder} has no masks: none of {', '.join(f'labels/ins_seg/{x}' for x in MASKS)}; unpack "
        "BDD100K's instance segmentation labels there."
    )


def _mask_source(folder: str, kind: str, split: str) -> str:
    inside = split if kind == "bitmasks" else f"ins_seg_{split}.json"
    return os.path.join(folder, "labels", "ins_seg", kind, inside)


# ---------------------------------------------------------------------------------- masks


def _with_masks(folder: str, split: str, kind: str, progress: bool) -> tuple[dict, Counter]:
    """Images and annotations of the 10k images of a split."""
    content, count = {"images": [], "annotations": []}, Counter()
    source = _mask_source(folder, kind, split)
    if kind == "bitmasks":
        try:
            names = sorted(n for n in os.listdir(source) if n.endswith(".png"))
        except OSError as error:
            raise UserError(f"Cannot read the folder {source} ({error.strerror}).") from error
        entries: list = [(f"{name[:-4]}.jpg", os.path.join(source, name)) for name in names]
        read: Callable = _of_bitmask
    else:
        entries = [(frame["name"], frame) for frame in _frames(source)]
        read = _of_frame
    if not entries:
        raise UserError(f"{source} has no images; unpack BDD100K's labels again.")
    for name, entry in tqdm(entries, desc=f"masks, {split}", unit="image", disable=not progress):
        place = f"images/10k/{split}/{name}"
        if not os.path.isfile(os.path.join(folder, place)):
            count["images without a file"] += 1
            continue
        record = _image(content, place)
        for annotation in read(entry, count):
            content["annotations"].append({"image_id": record["id"], **annotation})
    return content, count


def _image(content: dict, place: str) -> dict:
    """A new image of a json."""
    height, width = SIZE
    record = {
        "id": len(content["images"]) + 1,
        "file_name": place,
        "height": height,
        "width": width,
    }
    content["images"].append(record)
    return record


def _of_bitmask(path: str, count: Counter) -> Iterable[dict]:
    """The objects of a bitmask."""
    pixels = read_pixels(path)
    if pixels.shape != (*SIZE, 4):
        raise UserError(
            f"{path} is no bitmask: it must have {SIZE[1]}x{SIZE[0]} pixels of four bytes, but its "
            f"shape is {pixels.shape}."
        )
    kinds, flags = pixels[..., 0], pixels[..., 1]
    numbers = pixels[..., 2].astype(np.int32) << 8 | pixels[..., 3]
    keys = kinds.astype(np.int32) << 16 | numbers
    for key in np.unique(keys[kinds > 0]).tolist():
        category = key >> 16
        if category > len(CATEGORIES):
            raise UserError(
                f"{path} has a category {category}, but those of objects are 1 to "
                f"{len(CATEGORIES)}; give the bitmasks of instance segmentation (ins_seg)."
            )
        mask = keys == key
        special = int(np.bitwise_or.reduce(flags[mask])) & (_CROWD | _IGNORE)
        count["crowds and ignored objects"] += bool(special)
        yield {"category_id": category, "iscrowd": int(bool(special)), **mask_annotation(mask)}


def _frames(path: str) -> list[dict]:
    """The frames of a json of Scalabel's."""
    content = read_json(path)
    frames = content.get("frames") if isinstance(content, dict) else content
    if not isinstance(frames, list) or not all(
        isinstance(frame, dict) and isinstance(frame.get("name"), str) for frame in frames
    ):
        raise UserError(f"{path} is not BDD100K's: it must hold a list of frames with names.")
    return frames


def _labels(frame: Mapping, count: Counter) -> Iterable[tuple[int, bool, Mapping]]:
    """Category id, whether it is a crowd, and label, of a frame's labels that are objects."""
    for label in frame.get("labels") or ():
        name = label.get("category")
        name = _NAMES.get(name, name)
        attributes = label.get("attributes") or {}
        crowd = bool(attributes.get("crowd")) or name in _IGNORED
        name = _IGNORED.get(name, name)
        if name not in CATEGORIES:
            count[f"labels of other categories ({name})"] += 1
            continue
        count["crowds and ignored objects"] += crowd
        yield CATEGORIES.index(name) + 1, crowd, label


def _of_frame(frame: Mapping, count: Counter) -> Iterable[dict]:
    """The objects of a frame with RLEs or polygons; a broken one has its box, if there is one."""
    for category, crowd, label in _labels(frame, count):
        found = {"category_id": category, "iscrowd": int(crowd)}
        segmentation = label.get("rle")
        if segmentation is None:
            segmentation = [polygon(part) for part in label.get("poly2d") or ()]
        mask, _ = read_segmentation(segmentation, *SIZE)
        if isinstance(mask, list):
            mask = mask_util.merge(mask_util.frPyObjects(mask, *SIZE))
        if mask is not None:
            yield found | rle_annotation(mask)
            continue
        count["objects without a usable mask"] += 1
        box = _box(label)
        if box is not None:
            yield found | {"bbox": box, "area": box[2] * box[3]}


def polygon(part: Mapping) -> list[float]:
    """The points of a polygon of Scalabel's, flat, its curves in pieces of lines.

    A vertex of type ``C`` is a control point; two of them stand between the ends of a cubic curve,
    of which the last one may be the polygon's first vertex. What has other types is all lines.
    """
    vertices = part.get("vertices") or []
    types = part.get("types") or "L" * len(vertices)
    if len(types) != len(vertices) or types[:1] != "L":
        return [value for vertex in vertices for value in vertex]
    points, place, steps = [], 0, np.linspace(0, 1, _CURVE_STEPS + 1)[1:, None]
    closed = [*vertices, vertices[0]]
    while place < len(vertices):
        points.append(list(vertices[place]))
        if types[place + 1 : place + 3] == "CC" and place + 3 < len(closed):
            a, b, c, d = np.array(closed[place : place + 4], dtype=np.float64)
            t, s = steps, 1 - steps
            curve = s**3 * a + 3 * s**2 * t * b + 3 * s * t**2 * c + t**3 * d
            points += curve[:-1].tolist()  # the end is the next vertex
            place += 2
        place += 1
    return [float(value) for point in points for value in point]


def _box(label: Mapping) -> list[float] | None:
    """XYWH of a label inside the image, None without one."""
    box = label.get("box2d")
    if not isinstance(box, Mapping):
        return None
    corners = [box.get(key) for key in ("x1", "y1", "x2", "y2")]
    if not all(type(value) in (int, float) for value in corners):
        raise UserError(f"A label of BDD100K has no box of four numbers x1, y1, x2, y2: {box}.")
    return clip_box(*corners, *SIZE)


# ---------------------------------------------------------------------------------- boxes


def _with_boxes(folder: str, masked: Mapping, progress: bool) -> tuple[dict, Counter]:
    """The images of ``train`` with masks, and those of the detection labels with boxes."""
    places = [os.path.join(folder, "labels", name.format("train")) for name in _DETECTION]
    path = next(filter(os.path.isfile, places), None)
    if path is None:
        raise UserError(
            f"{folder} has no detection labels: neither of {', '.join(places)}; unpack them there, "
            "or do without (--no-boxes)."
        )
    used = {
        split: {os.path.basename(x["file_name"]) for x in masked[split]["images"]}
        for split in SPLITS
    }
    content = {key: list(masked["train"][key]) for key in ("images", "annotations")}
    count: Counter = Counter()
    for frame in tqdm(_frames(path), desc="boxes", unit="image", disable=not progress):
        name = frame["name"]
        if name in used["train"]:
            count["box labels of images with masks"] += 1
            continue
        if name in used["val"]:
            count["images of validation"] += 1
            continue
        if frame.get("labels") is None:
            count["images that were not labeled"] += 1
            continue
        place = f"images/100k/train/{name}"
        if not os.path.isfile(os.path.join(folder, place)):
            count["images without a file"] += 1
            continue
        record = _image(content, place)
        for category, crowd, label in _labels(frame, count):
            box = _box(label)
            if box is None:
                count["labels without a box in the image"] += 1
                continue
            found = {"category_id": category, "iscrowd": int(crowd), "bbox": box}
            content["annotations"].append(
                {"image_id": record["id"], **found, "area": box[2] * box[3]}
            )
        count["images with boxes alone"] += 1
    return content, count
