"""Read a COCO-format json in which any object may lack a mask.

Detectron2's own reader drops an instance, box included, when its polygon is malformed; this one
keeps the box. It also reads categories from the json for any data set and speaks one clear sentence
when something is wrong with the file.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from psis_d2.data import points
from psis_d2.data.json_reading import find_list, pack_polygons, parse_dataset
from psis_d2.data.records import number_annotations, read_id, usable_records
from psis_d2.errors import UserError
from psis_d2.garbage import without_collector

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

logger = logging.getLogger(__name__)

# Of an image that LVIS lists, its data set's folders and names are behind this part of its url.
_URL_PARTS = 2
# All that is read of an annotation.
_READ_KEYS = frozenset(
    (
        *("id", "image_id", "category_id", "bbox", "iscrowd", "ignore", "segmentation", "area"),
        *points.KEYS,
    )
)
_LVIS_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")


@dataclass(frozen=True)
class CocoReader:
    """Reads a COCO-format json when it is called: what ``DatasetCatalog`` holds of one.

    Attributes:
        json_file, image_root, dataset_name: see :func:`load_coco`.
        prepare: makes the files if they are not there.
    """

    json_file: str
    image_root: str
    dataset_name: str
    prepare: Callable[[], None] | None = None

    def __call__(self, crowds: str = "ignore") -> list[dict]:
        """What :func:`load_coco` gives."""
        if self.prepare is not None:
            self.prepare()
        return load_coco(self.json_file, self.image_root, self.dataset_name, crowds)


def register_coco_json(
    name: str, json_file: str, image_root: str, prepare: Callable[[], None] | None = None
) -> None:
    """Make a COCO-format json known as data set ``name``. Nothing is read before it is used.

    Registering the same paths again does nothing, so every process of a distributed run can do it.

    Args:
        name: of the data set.
        json_file: see :func:`load_coco`.
        image_root: see :func:`load_coco`.
        prepare: makes the files if they are not there; also becomes ``psis_prepare`` of the
            metadata, which runs once before a run starts its processes.

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
    DatasetCatalog.register(name, CocoReader(json_file, image_root, name, prepare))
    metadata.set(json_file=json_file, image_root=image_root, evaluator_type="coco")
    if prepare is not None:
        metadata.psis_prepare = prepare


def load_coco(
    json_file: str, image_root: str, dataset_name: str, crowds: str = "ignore"
) -> list[dict]:
    """Read a COCO-format json into Detectron2's standard dataset dicts.

    Sets ``thing_classes`` and ``thing_dataset_id_to_contiguous_id`` of the data set's metadata
    (categories in the order of their ids). What the metadata holds already is respected. A json
    without ``annotations`` lists images to predict on. Images are not opened.

    Args:
        json_file: path of the json.
        image_root: folder that the file names in the json are relative to.
        dataset_name: name in Detectron2's ``MetadataCatalog``.
        crowds: see :func:`~psis_d2.data.records.usable_records`.

    Returns:
        One dict an image, sorted by image id, with ``file_name``, ``height``, ``width``,
        ``image_id`` and ``annotations``; each annotation has ``id``, ``bbox``, ``bbox_mode``
        (XYWH_ABS), ``category_id`` (contiguous), ``iscrowd`` and, only where there is a usable one,
        ``segmentation`` (polygons as ``array("d")``, or an RLE) and ``area``. See
        :func:`~psis_d2.data.records.usable_records`. Images of LVIS keep ``neg_category_ids`` and
        ``not_exhaustive_category_ids``, contiguous.

    Raises:
        UserError: the file or the folder is missing, or the json is not what COCO's format asks.
    """
    with without_collector():
        return _load_coco(json_file, image_root, dataset_name, crowds)


def _load_coco(json_file: str, image_root: str, dataset_name: str, crowds: str) -> list[dict]:
    content = _read_json(json_file)
    if image_root and not PathManager.isdir(image_root):
        raise UserError(
            f"The image folder {image_root} of data set '{dataset_name}' does not exist; check the "
            "path."
        )
    ids = _set_categories(content, json_file, dataset_name)
    # COCO 2014's published minival files have annotation ids that occur twice.
    repeated_ids = "minival" in os.path.basename(json_file)
    _number(content["annotations"], json_file, repeated_ids)
    records = _image_records(content["images"], json_file, image_root, ids)
    _add_annotations(records, content["annotations"], ids, json_file)
    del content
    logger.info("read %d images from %s", len(records), json_file)
    return usable_records(
        list(records.values()),
        json_file,
        MetadataCatalog.get(dataset_name).thing_classes,
        crowds=crowds,
        repeated_ids=repeated_ids,
        in_place=True,
    )


def load_categories(json_file: str, dataset_name: str) -> list[str]:
    """Read only the categories of a json and set them in the metadata, as :func:`load_coco` does.

    Returns:
        The category names; the position is the contiguous id.

    Raises:
        UserError: as :func:`load_coco`, for the file and its categories.
    """
    _set_categories(_find_categories(json_file), json_file, dataset_name)
    return list(MetadataCatalog.get(dataset_name).thing_classes)


def match_annotations(dicts: Sequence[dict], annotations: Sequence[dict]) -> dict[tuple, dict]:
    """The entries of a json by the ids that :func:`load_coco` gave them.

    Args:
        dicts: what it returned.
        annotations: ``annotations`` of the json that it read.

    Returns:
        {(image id, annotation id): entry} of all annotations in the dicts.
    """
    entries = [dict(entry) for entry in annotations]
    _number(entries, "the json", repeated_ids=True)
    wanted = {(record["image_id"], a["id"]) for record in dicts for a in record["annotations"]}
    keys = ((read_id(entry.get("image_id")), entry["id"]) for entry in entries)
    pairs = zip(keys, annotations, strict=True)
    return {key: annotation for key, annotation in pairs if key in wanted}


def _number(annotations: Sequence[dict], json_file: str, repeated_ids: bool) -> None:
    """Number a json's annotations in the order of the file. In place."""
    for annotation in annotations:
        annotation.pop("json_id", None)  # ours alone
    number_annotations(annotations, json_file, repeated_ids)


def _absolute(path: str | None) -> str | None:
    if path is None or "://" in path:
        return path
    return os.path.abspath(path)


def _read_text(json_file: str) -> str:
    if not PathManager.isfile(json_file):
        raise UserError(f"The annotation file {json_file} does not exist; check the path.")
    try:
        with PathManager.open(json_file, "r", encoding="utf-8-sig") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the annotation file {json_file}: {error}.") from error


def _find_categories(json_file: str) -> dict:
    """The content of a json, or of a plain one no more than its categories.

    Parsing a million annotations for a few names would take many times as long.
    """
    text = _read_text(json_file)
    found = find_list(text, "categories")
    names = [x.get("name") for x in found or () if isinstance(x, dict)]
    # Annotations decide which one counts of two categories with a name.
    if found and len(found) == len(names) and len(set(map(repr, names))) == len(names):
        return {"categories": found, "annotations": []}
    return _read_json(json_file, text)


def _read_json(json_file: str, text: str | None = None) -> dict:
    try:
        content = parse_dataset(_read_text(json_file) if text is None else text, _pack)
    # ValueError: also an integer of thousands of digits; RecursionError: brackets in brackets.
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"The annotation file {json_file} is not valid JSON: {error}; it may be cut off."
        ) from error
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict):
        raise UserError(
            f"The annotation file {json_file} is not in COCO format: it must hold an object with "
            f"the lists {', '.join(keys)}."
        )
    # Lists of images to predict on, such as COCO's test-dev, have no annotations at all.
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


def _order(key: int | str) -> tuple:
    """Numbers before texts, each in their order."""
    return isinstance(key, str), key


def _pack(annotation):
    """An entry of ``annotations`` in less memory; what is no dict stays for the checks."""
    if type(annotation) is dict:
        for name in annotation.keys() - _READ_KEYS:
            del annotation[name]
        segmentation = annotation.get("segmentation")
        if type(segmentation) is list:
            annotation["segmentation"] = pack_polygons(segmentation)
    return annotation


def _category_names(content: dict, json_file: str) -> dict[int | str, str]:
    """Category names by id, a category left out that only repeats another's name."""
    names, roots = {}, set()
    for category in content["categories"]:
        key, name = read_id(category.get("id")), category.get("name")
        if key is None or not isinstance(name, str):
            raise UserError(f"{json_file} has a category without an id and a name: {category}.")
        if key in names:
            raise UserError(f"{json_file} has two categories with id {key}; ids must be unique.")
        names[key] = name
        if category.get("supercategory") in (None, "", "none"):
            roots.add(key)
    if not names:
        raise UserError(f"{json_file} lists no categories; add them to its 'categories'.")
    of_name: dict[str, list[int]] = {}
    for key, name in names.items():
        of_name.setdefault(name, []).append(key)
    repeated = {name: keys for name, keys in of_name.items() if len(keys) > 1}
    if repeated:
        used = {read_id(a.get("category_id")) for a in content["annotations"]}
        for name, keys in repeated.items():
            # Roboflow puts a root above the classes, which may have the name of one of them.
            kept = [k for k in keys if k in used] or [k for k in keys if k not in roots]
            if len(kept) != 1:
                raise UserError(
                    f"{json_file} has two categories with the name '{name}' (ids "
                    f"{', '.join(map(str, keys))}); names must be unique."
                )
            for key in set(keys) - set(kept):
                del names[key]
                logger.info(
                    "%s: category %s '%s' repeats a name and is unused", json_file, key, name
                )
    return names


def _set_categories(content: dict, json_file: str, dataset_name: str) -> dict:
    """Agree with the metadata on the categories; return category id -> contiguous id."""
    names = _category_names(content, json_file)
    metadata = MetadataCatalog.get(dataset_name)
    classes = metadata.get("thing_classes")
    ids = metadata.get("thing_dataset_id_to_contiguous_id")
    if classes is None:
        classes = [names[key] for key in sorted(names, key=_order)]
        metadata.thing_classes = classes
    if ids is None:
        places = {name: place for place, name in enumerate(classes)}
        ids = {key: places[names[key]] for key in sorted(names, key=_order) if names[key] in places}
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
    """Dataset dicts without annotations, by image id, sorted by it."""
    records = {}
    for image in images:
        key, name = read_id(image.get("id")), file_name_of(image, image_root)
        if key is None or name is None:
            raise UserError(f"{json_file} has an image without id and file_name: {image}.")
        if key in records:
            raise UserError(f"{json_file} lists image id {key} twice; image ids must be unique.")
        records[key] = {
            "file_name": os.path.join(image_root, name),
            "height": image.get("height"),
            "width": image.get("width"),
            "image_id": key,
            "box_only": image.get("box_only"),
            "annotations": [],
        }
        for lvis_key in _LVIS_KEYS:
            listed = image.get(lvis_key)
            if isinstance(listed, list):
                known = (category_ids.get(read_id(value)) for value in listed)
                records[key][lvis_key] = [value for value in known if value is not None]
    # Sorted, so that the order of the file does not change the order of training.
    return dict(sorted(records.items(), key=lambda item: _order(item[0])))


def file_name_of(image: dict, image_root: str = "") -> str | None:
    """The file name of a json's image, below the folder of images; None if it has none."""
    name, url = image.get("file_name"), image.get("coco_url")
    if isinstance(name, str):
        return name
    if name is not None or not isinstance(url, str):
        return None
    # LVIS v1: http://images.cocodataset.org/train2017/000000391895.jpg
    parts = url.split("/")[-_URL_PARTS:]
    below = os.path.join(*parts)
    return below if os.path.isfile(os.path.join(image_root, below)) else parts[-1]


def _add_annotations(
    records: dict, annotations: Sequence[dict], category_ids: dict, json_file: str
) -> None:
    """Append every annotation to its image's record, in the form of a standard dict. In place."""
    for annotation in annotations:
        image = annotation.pop("image_id", None)
        image_id, category = read_id(image), annotation.get("category_id")
        if image_id is None or image_id not in records:
            raise UserError(
                f"{_named(annotation)} in {json_file} belongs to image id {image!r}, which is not "
                "in its 'images'."
            )
        category_id = category_ids.get(read_id(category))
        if category_id is None:
            raise UserError(
                f"{_named(annotation)} in {json_file} has category id {category!r}, which is not "
                "in its 'categories'."
            )
        annotation["category_id"] = category_id
        annotation["bbox_mode"] = BoxMode.XYWH_ABS
        records[image_id]["annotations"].append(annotation)


def _named(annotation: dict) -> str:
    return f"Annotation {annotation.get('json_id', annotation['id'])}"
