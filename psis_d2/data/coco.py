"""Read a COCO-format json in which any object may lack a mask.

Detectron2's own reader drops an instance, box included, when its polygon is malformed; this one
keeps the box. It also reads categories from the json for any data set and speaks one clear sentence
when something is wrong with the file.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence

from psis_d2.data.supervision import clean_annotations
from psis_d2.errors import UserError

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

logger = logging.getLogger(__name__)

# No pixel coordinate is that large; infinities and not-a-number fail the comparison too.
_HUGE = 1e9


def register_coco_json(name: str, json_file: str, image_root: str) -> None:
    """Make a COCO-format json known as data set ``name``. Nothing is read before it is used.

    Registering the same paths again does nothing, so every process of a distributed run can do it.

    Raises:
        UserError: the name is taken by other paths.
    """
    metadata = MetadataCatalog.get(name)
    if name in DatasetCatalog:
        known = (metadata.get("json_file"), metadata.get("image_root"))
        if [_absolute(path) for path in known] != [_absolute(json_file), _absolute(image_root)]:
            raise UserError(
                f"The data set name '{name}' is already taken by the json {known[0]} with images "
                f"in {known[1]}; choose another name."
            )
        return
    DatasetCatalog.register(name, lambda: load_coco(json_file, image_root, name))
    metadata.set(json_file=json_file, image_root=image_root, evaluator_type="coco")


def load_coco(json_file: str, image_root: str, dataset_name: str) -> list[dict]:
    """Read a COCO-format json into Detectron2's standard dataset dicts.

    Sets ``thing_classes`` and ``thing_dataset_id_to_contiguous_id`` of the data set's metadata
    (categories in the order of their ids). What the metadata holds already is respected. Boxes of
    zero width or height are left out, with one warning that counts them. Images are not opened.

    Args:
        json_file: path of the json.
        image_root: folder that the file names in the json are relative to.
        dataset_name: name in Detectron2's ``MetadataCatalog``.

    Returns:
        One dict an image, sorted by image id, with ``file_name``, ``height``, ``width``,
        ``image_id`` and ``annotations``; each annotation has ``id``, ``bbox``, ``bbox_mode``
        (XYWH_ABS), ``category_id`` (contiguous), ``iscrowd`` and, only where the json has a usable
        one, ``segmentation`` and ``area`` (pixels). An image of LVIS has ``neg_category_ids`` and
        ``not_exhaustive_category_ids``, contiguous.

    Raises:
        UserError: the file or the folder is missing, or the json is not what COCO's format asks.
    """
    content = _read_json(json_file)
    if image_root and not PathManager.isdir(image_root):
        raise UserError(
            f"The image folder {image_root} of data set '{dataset_name}' does not exist; check the "
            "path."
        )
    ids = _set_categories(content["categories"], json_file, dataset_name)
    records = _image_records(content["images"], json_file, image_root, ids)
    _add_annotations(records, content["annotations"], ids, json_file)
    dicts = list(records.values())
    logger.info("read %d images from %s", len(dicts), json_file)
    clean_annotations(dicts)
    return dicts


def load_categories(json_file: str, dataset_name: str) -> list[str]:
    """Read only the categories of a json and set them in the metadata, as :func:`load_coco` does.

    Returns:
        The category names; the position is the contiguous id.

    Raises:
        UserError: as :func:`load_coco`, for the file and its categories.
    """
    _set_categories(_read_json(json_file)["categories"], json_file, dataset_name)
    return list(MetadataCatalog.get(dataset_name).thing_classes)


def _absolute(path: str | None) -> str | None:
    if path is None or "://" in path:
        return path
    return os.path.abspath(path)


def _read_json(json_file: str) -> dict:
    if not PathManager.isfile(json_file):
        raise UserError(f"The annotation file {json_file} does not exist; check the path.")
    try:
        with PathManager.open(json_file, "r", encoding="utf-8-sig") as file:
            content = json.load(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the annotation file {json_file}: {error}.") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"The annotation file {json_file} is not valid JSON: {error}; it may be cut off."
        ) from error
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict):
        raise UserError(
            f"The annotation file {json_file} is not in COCO format: it must hold an object with "
            f"the lists {', '.join(keys)}."
        )
    # A list of images to predict on, as COCO's image_info_*.json, has no annotations at all.
    content.setdefault("annotations", [])
    missing = [
        key
        for key in keys
        if not isinstance(content.get(key), list)
        or not all(isinstance(entry, dict) for entry in content[key])
    ]
    if missing:
        raise UserError(
            f"The annotation file {json_file} is not in COCO format: it lacks a list of objects "
            f"named {' and '.join(missing)}."
        )
    return content


def _set_categories(categories: Sequence[dict], json_file: str, dataset_name: str) -> dict:
    """Agree with the metadata on the categories; return category id -> contiguous id."""
    names = {}
    for category in categories:
        key, name = category.get("id"), category.get("name")
        if type(key) is not int or not isinstance(name, str):
            raise UserError(
                f"{json_file} has a category without an integer id and a name: {category}."
            )
        if key in names or name in names.values():
            raise UserError(
                f"{json_file} has two categories with id {key} or name '{name}'; both must be "
                "unique."
            )
        names[key] = name
    if not names:
        raise UserError(f"{json_file} lists no categories; add them to its 'categories'.")

    metadata = MetadataCatalog.get(dataset_name)
    classes = metadata.get("thing_classes")
    ids = metadata.get("thing_dataset_id_to_contiguous_id")
    if classes is None:
        classes = [names[key] for key in sorted(names)]
        metadata.thing_classes = classes
    if ids is None:
        places = {name: place for place, name in enumerate(classes)}
        ids = {key: places[names[key]] for key in sorted(names) if names[key] in places}
        if len(ids) == len(names):
            metadata.thing_dataset_id_to_contiguous_id = ids
    for key, name in names.items():
        known = classes[ids[key]] if key in ids else None
        if known != name:
            raise UserError(
                f"{json_file} calls category {key} '{name}', but data set '{dataset_name}' is "
                f"known with {repr(known) if known else 'no such category'}; register the json "
                "under a name of its own."
            )
    return ids


def _image_records(
    images: Sequence[dict], json_file: str, image_root: str, category_ids: dict
) -> dict:
    """Standard dicts without annotations, by image id, sorted by it."""
    records = {}
    for image in images:
        key, name = image.get("id"), image.get("file_name")
        if not isinstance(key, (int, str)) or not isinstance(name, str):
            raise UserError(f"{json_file} has an image without id and file_name: {image}.")
        if key in records:
            raise UserError(f"{json_file} lists image id {key} twice; image ids must be unique.")
        height, width = image.get("height"), image.get("width")
        if not (_is_size(height) and _is_size(width)):
            raise UserError(
                f"Image {name} (id {key}) in {json_file} has no usable height and width (found "
                f"{height} and {width}); write its size in pixels there."
            )
        record = {
            "file_name": os.path.join(image_root, name),
            "height": int(height),
            "width": int(width),
            "image_id": key,
            "annotations": [],
        }
        if image.get("box_only"):
            record["box_only"] = True
        # LVIS: what was looked for and is not there; what is there and not all annotated.
        for of_lvis in ("neg_category_ids", "not_exhaustive_category_ids"):
            if isinstance(image.get(of_lvis), list):
                record[of_lvis] = [category_ids[i] for i in image[of_lvis] if i in category_ids]
        records[key] = record
    # Sorted, so that the order of the file does not change the order of training.
    return dict(sorted(records.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _is_size(value) -> bool:
    return type(value) in (int, float) and 1 <= value < _HUGE and value == int(value)


def _add_annotations(
    records: dict, annotations: Sequence[dict], category_ids: dict, json_file: str
) -> None:
    """Append every annotation to its image's record."""
    # COCO 2014's published minival files have annotation ids that occur twice.
    unique_ids = "minival" not in os.path.basename(json_file)
    seen_ids = set()
    flat = 0
    for position, annotation in enumerate(annotations):
        key = annotation.get("id")
        if type(key) is not int:
            raise UserError(
                f"Annotation number {position + 1} in {json_file} has no integer id (found "
                f"{key!r}); number the annotations."
            )
        if key in seen_ids and unique_ids:
            raise UserError(
                f"{json_file} has two annotations with id {key}; annotation ids must be unique."
            )
        seen_ids.add(key)
        image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
        if not isinstance(image_id, (int, str)) or image_id not in records:
            raise UserError(
                f"Annotation {key} in {json_file} belongs to image id {image_id!r}, which is not "
                "in its 'images'."
            )
        if type(category_id) is not int or category_id not in category_ids:
            raise UserError(
                f"Annotation {key} in {json_file} has category id {category_id!r}, which is not in "
                "its 'categories'."
            )
        box = annotation.get("bbox")
        if not _is_box(box):
            raise UserError(
                f"Annotation {key} in {json_file} has no usable bbox (found {box!r}); it must be "
                "four finite numbers: x, y, width, height."
            )
        if box[2] <= 0 or box[3] <= 0:
            flat += 1
            continue
        entry = {
            "id": key,
            "bbox": [float(value) for value in box],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": category_ids[category_id],
            # "ignore" is an older spelling of a region that is not an instance.
            "iscrowd": int(bool(annotation.get("iscrowd") or annotation.get("ignore"))),
        }
        if "segmentation" in annotation:
            entry["segmentation"] = annotation["segmentation"]
        area = annotation.get("area")
        # COCO sorts objects into small, medium and large by it; it is not quite the mask's pixels.
        if type(area) in (int, float) and 0 < area < math.inf:
            entry["area"] = area
        records[image_id]["annotations"].append(entry)
    if flat:
        logger.warning(
            "%s: %d annotations have a box of zero width or height and are left out",
            *(json_file, flat),
        )


def _is_box(box) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(type(value) in (int, float) and -_HUGE < value < _HUGE for value in box)
    )
