"""Visual Genome's boxes as a COCO-format data set of its most frequent synsets.

The files are Visual Genome's own (version 1.2 and later): ``objects.json`` is a list of images,
each with ``image_id`` and ``objects``, an object has ``object_id``, ``x``, ``y``, ``w``, ``h``,
``names`` and ``synsets``; ``image_data.json`` lists ``image_id``, ``width``, ``height``, ``url``
and ``coco_id``; images lie in ``VG_100K`` and ``VG_100K_2``.

What becomes of it follows "Learning to Segment Every Thing" (Hu et al., CVPR 2018, sec. 5) and its
released code: the 3,000 most frequent synsets, images of COCO's val2017 for validation only.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence

from psis_d2.data.datasets.conversion import read_json, write_json
from psis_d2.errors import UserError

import numpy as np
from pycocotools import mask as mask_util
from tqdm import tqdm

logger = logging.getLogger(__name__)

NUM_CLASSES = 3000
SEVERAL_SYNSETS = ("skip", "first")
IMAGE_FOLDERS = ("VG_100K", "VG_100K_2")
SPLITS = ("train", "val")
MAP_FILE = "coco_categories.json"

# Boxes of one class that overlap at least that much are one object, drawn twice.
DUPLICATE_IOU = 0.9

# COCO's categories that no synset has the name of, as the released code of Hu et al. maps them. A
# suitcase is labeled bag.n.06 in Visual Genome, a fire hydrant water_faucet.n.01.
COCO_SYNSETS = {
    "cell phone": "cellular_telephone.n.01",
    "couch": "sofa.n.01",
    "dining table": "dinner_table.n.01",
    "donut": "doughnut.n.02",
    "fire hydrant": "water_faucet.n.01",
    "hair drier": "hand_blower.n.01",
    "handbag": "bag.n.04",
    "hot dog": "hotdog.n.01",
    "orange": "orange.n.01",
    "potted plant": "plant.n.01",
    "remote": "remote_control.n.01",
    "skis": "ski.n.01",
    "sports ball": "ball.n.01",
    "stop sign": "sign.n.02",
    "suitcase": "bag.n.06",
    "teddy bear": "teddy.n.01",
    "tv": "television.n.01",
    "wine glass": "wineglass.n.01",
}


def json_path(folder: str, split: str) -> str:
    """Path of the annotations of ``train`` or ``val`` in Visual Genome's folder."""
    return os.path.join(folder, "annotations", f"instances_{split}.json")


def prepare(
    folder: str,
    coco_val_json: str,
    num_classes: int = NUM_CLASSES,
    several_synsets: str = "skip",
    progress: bool = True,
) -> dict[str, Counter]:
    """Write ``annotations/instances_{train,val}.json`` and the map of COCO's categories.

    Args:
        folder: has ``objects.json``, ``image_data.json`` and the image folders.
        coco_val_json: COCO's annotations whose images must not be trained on.
        num_classes: number of synsets that become categories.
        several_synsets: see :func:`convert`.
        progress: show how far it is.

    Returns:
        The counts of :func:`convert`.

    Raises:
        UserError: a file is missing or not as it must be, or the folder cannot be written.
    """
    images = _read_list(os.path.join(folder, "image_data.json"))
    objects = _read_list(os.path.join(folder, "objects.json"))
    coco = read_json(coco_val_json)
    try:
        coco_ids = {image["id"] for image in coco["images"]}
        coco_names = [category["name"] for category in coco["categories"]]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{coco_val_json} is not in COCO format: it needs 'images' with ids and 'categories' "
            "with names; give COCO's instances_val2017.json."
        ) from error
    if not any(os.path.isdir(os.path.join(folder, name)) for name in IMAGE_FOLDERS):
        raise UserError(
            f"{folder} has none of the image folders {', '.join(IMAGE_FOLDERS)}; unpack Visual "
            "Genome's images there."
        )
    contents, counts = convert(
        objects,
        images,
        coco_ids,
        num_classes=num_classes,
        several_synsets=several_synsets,
        is_file=lambda name: os.path.isfile(os.path.join(folder, name)),
        progress=progress,
    )
    class_names = [category["name"] for category in contents["train"]["categories"]]
    category_map = map_coco_categories(coco_names, class_names)
    unmapped = [name for name, target in category_map.items() if target is None]
    if unmapped:
        logger.warning(
            "%d of COCO's %d categories are not among the %d synsets: %s",
            *(len(unmapped), len(coco_names), len(class_names), ", ".join(unmapped)),
        )
    files = {os.path.join(folder, "annotations", MAP_FILE): category_map}
    files |= {json_path(folder, split): contents[split] for split in SPLITS[::-1]}
    for path, content in files.items():
        write_json(path, content)
    return counts


def convert(
    objects: Sequence[dict],
    image_data: Sequence[dict],
    coco_val_ids: Collection[int],
    *,
    num_classes: int = NUM_CLASSES,
    several_synsets: str = "skip",
    is_file: Callable[[str], bool] = lambda name: True,
    progress: bool = False,
) -> tuple[dict[str, dict], dict[str, Counter]]:
    """Visual Genome's lists as two COCO-format jsons with boxes only.

    * An object's class is its synset; its names are not looked at, so that aliases are one class.
      Objects without a synset are left out.
    * Objects with several synsets are left out ("skip", as in the released code) or belong to the
      first ("first").
    * The categories are the most frequent synsets of all images, each synset of an object counting
      once; of equally frequent ones the first by name. Ids count from 1 in that order.
    * Boxes are cut at the image's border; those that are then empty are left out.
    * Of boxes of one class in an image with an IoU of :data:`DUPLICATE_IOU` or more, the first in
      the file stays.

    Args:
        objects: content of ``objects.json``.
        image_data: content of ``image_data.json``.
        coco_val_ids: ids of the COCO images that go to ``val``; all others go to ``train``.
        num_classes: how many synsets.
        several_synsets: one of :data:`SEVERAL_SYNSETS`.
        is_file: whether an image file is there, by its name below the data set's folder; images
            without one are left out.
        progress: show a bar.

    Returns:
        {split: json content}, and {split: how many images, boxes and reasons for leaving out}.

    Raises:
        UserError: an entry is not as it must be, or there are fewer synsets.
    """
    if several_synsets not in SEVERAL_SYNSETS:
        raise UserError(
            f"--several-synsets is '{several_synsets}'; choose one of {', '.join(SEVERAL_SYNSETS)}."
        )
    records = _image_records(image_data, is_file)
    class_ids = _class_ids(objects, num_classes)
    categories = [{"id": i, "name": name} for name, i in class_ids.items()]
    contents = {
        split: {"images": [], "annotations": [], "categories": categories} for split in SPLITS
    }
    counts = {split: Counter() for split in SPLITS}
    done = set()
    for entry in tqdm(objects, desc="Visual Genome", unit="image", disable=not progress):
        image_id = entry["image_id"]
        if image_id in done:
            raise UserError(f"objects.json lists image {image_id} twice; image ids must be unique.")
        done.add(image_id)
        if image_id not in records:
            raise UserError(
                f"objects.json has image {image_id}, which image_data.json does not list; take "
                "both files of the same release."
            )
        record = records[image_id]
        split = "val" if record["coco_id"] in coco_val_ids else "train"
        content, count = contents[split], counts[split]
        if record["file_name"] is None:
            count["images without a file"] += 1
            continue
        content["images"].append(record)
        for kept in _boxes(entry["objects"], record, class_ids, several_synsets, count):
            # Numbered anew: the COCO code wants ids that are unique and not 0.
            content["annotations"].append({"id": len(content["annotations"]) + 1, **kept})
        count["images"] += 1
    for split in SPLITS:
        counts[split]["boxes"] = len(contents[split]["annotations"])
    return contents, counts


def map_coco_categories(
    coco_names: Iterable[str], class_names: Sequence[str]
) -> dict[str, str | None]:
    """The synset of each COCO category, None if it is not among the classes.

    It is that of :data:`COCO_SYNSETS`, else the first class, which is the most frequent one, whose
    synset has the category's name.
    """
    by_word = {}
    for name in class_names:
        by_word.setdefault(name.split(".")[0].replace("_", " "), name)
    targets = {name: COCO_SYNSETS.get(name, by_word.get(name)) for name in coco_names}
    return {name: target if target in class_names else None for name, target in targets.items()}


def _read_list(path: str) -> list[dict]:
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise UserError(
            f"{path} is not Visual Genome's: it must hold a list with an object for each image."
        )
    return content


def _image_records(image_data: Sequence[dict], is_file: Callable[[str], bool]) -> dict[int, dict]:
    records = {}
    for entry in image_data:
        key, width, height = (entry.get(name) for name in ("image_id", "width", "height"))
        url = entry.get("url")
        if not all(type(value) is int and value > 0 for value in (key, width, height)):
            raise UserError(
                f"image_data.json has an image without a positive image_id, width and height: "
                f"{_shown(entry)}."
            )
        if not isinstance(url, str) or url.split("/")[-1] == "":
            raise UserError(f"Image {key} in image_data.json has no url that ends in a file name.")
        file_name = "/".join(url.split("/")[-2:])
        # Some copies have sorted the images otherwise than the urls say.
        places = [file_name, *(f"{name}/{url.split('/')[-1]}" for name in IMAGE_FOLDERS)]
        records[key] = {
            "id": key,
            "file_name": next((place for place in places if is_file(place)), None),
            "width": width,
            "height": height,
            "coco_id": entry.get("coco_id"),
        }
    return records


def _class_ids(objects: Sequence[dict], num_classes: int) -> dict[str, int]:
    """Category id by synset, the most frequent first."""
    frequency = Counter()
    for entry in objects:
        found = entry.get("objects")
        if type(entry.get("image_id")) is not int or not isinstance(found, list):
            raise UserError(
                f"objects.json has an entry without an image_id and a list of objects: "
                f"{_shown(entry)}."
            )
        for thing in found:
            synsets = thing.get("synsets") if isinstance(thing, dict) else None
            if not isinstance(synsets, list) or not all(isinstance(s, str) for s in synsets):
                raise UserError(
                    f"Image {entry['image_id']} in objects.json has an object without a list of "
                    f"synsets: {_shown(thing)}; take Visual Genome's version 1.2 or later."
                )
            frequency.update(synsets)
    if not 1 <= num_classes <= len(frequency):
        raise UserError(
            f"{num_classes} classes are asked for, but objects.json has {len(frequency)} synsets; "
            f"choose from 1 to {len(frequency)}."
        )
    ranked = sorted(frequency, key=lambda synset: (-frequency[synset], synset))
    return {synset: i for i, synset in enumerate(ranked[:num_classes], start=1)}


def _boxes(
    objects: Iterable[dict],
    record: dict,
    class_ids: dict[str, int],
    several_synsets: str,
    count: Counter,
) -> list[dict]:
    """Annotations of one image, without their ids."""
    annotations, of_class = [], defaultdict(list)
    for thing in objects:
        synsets = thing["synsets"]
        if not synsets:
            count["without a synset"] += 1
            continue
        if len(synsets) > 1 and several_synsets == "skip":
            count["with several synsets"] += 1
            continue
        if synsets[0] not in class_ids:
            count["of rarer synsets"] += 1
            continue
        box = _clip(thing, record)
        if box is None:
            count["without a pixel of the image"] += 1
            continue
        category, others = class_ids[synsets[0]], of_class[synsets[0]]
        if others and mask_util.iou(np.array([box]), np.array(others), [0] * len(others)).max() >= (
            DUPLICATE_IOU
        ):
            count["drawn twice"] += 1
            continue
        others.append(box)
        annotations.append(
            {
                "image_id": record["id"],
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                "object_id": thing.get("object_id"),
            }
        )
    return annotations


def _clip(thing: dict, record: dict) -> list[float] | None:
    """XYWH of an object inside its image, or None if nothing is."""
    values = [thing.get(key) for key in ("x", "y", "w", "h")]
    if not all(type(v) in (int, float) and abs(v) < 1e9 for v in values):
        raise UserError(
            f"Object {thing.get('object_id')} of image {record['id']} in objects.json has no box "
            f"of four numbers x, y, w, h: {_shown(thing)}."
        )
    x, y, w, h = values
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + w, record["width"]), min(y + h, record["height"])
    return [float(x0), float(y0), float(x1 - x0), float(y1 - y0)] if x1 > x0 and y1 > y0 else None


def _shown(entry) -> str:
    text = json.dumps(entry)
    return text if len(text) < 160 else f"{text[:157]}..."
