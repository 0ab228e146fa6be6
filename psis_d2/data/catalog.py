"""Registered data sets by name: their dicts, their category names, the making of their files."""

from __future__ import annotations

import difflib

from psis_d2.data.coco import load_categories, load_coco
from psis_d2.data.supervision import clean_annotations
from psis_d2.errors import UserError

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata


def get_dataset_dicts(name: str) -> list[dict]:
    """Read a registered data set, masks cleaned (see :mod:`psis_d2.data.supervision`).

    A data set with a COCO-format json is read by :func:`psis_d2.data.coco.load_coco`, any other by
    what it registered; its annotations without ``id`` are then numbered from 1 in order.

    Args:
        name: a name in Detectron2's ``DatasetCatalog``.

    Returns:
        Detectron2's standard dataset dicts.

    Raises:
        UserError: the name is unknown or the data is not as it must be.
    """
    metadata = prepare_dataset(name)
    if _has_coco_json(metadata):
        return load_coco(metadata.json_file, metadata.image_root, name)
    dicts = list(DatasetCatalog.get(name))
    for record in dicts:
        missing = {"file_name", "image_id", "height", "width"} - record.keys()
        if missing:
            raise UserError(
                f"Data set '{name}' has an image without {' and '.join(sorted(missing))}: "
                f"{record.get('file_name', record.get('image_id'))}; add it to what the data set "
                "registers."
            )
    annotations = (a for record in dicts for a in record.get("annotations", ()))
    for number, annotation in enumerate(annotations, start=1):
        annotation.setdefault("id", number)
    clean_annotations(dicts)
    return dicts


def get_class_names(name: str) -> list[str]:
    """Category names of a data set; the position is the contiguous id.

    Reads the json only when the metadata does not know them yet.

    Raises:
        UserError: the data set is unknown, cannot be read, or has no category names.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None:
        metadata = prepare_dataset(name)
        if _has_coco_json(metadata):
            return load_categories(metadata.json_file, name)
        DatasetCatalog.get(name)
    if metadata.get("thing_classes") is None:
        raise UserError(
            f"Data set '{name}' has no category names; set thing_classes in its metadata."
        )
    return list(metadata.thing_classes)


def prepare_dataset(name: str) -> Metadata:
    """Check the name and let the data set create its files if it can (``psis_prepare``).

    Reading a data set does this too. Doing it once before a run starts its processes saves each of
    them from creating the same files.

    Returns:
        The metadata of the data set.

    Raises:
        UserError: no data set has the name.
    """
    if name not in DatasetCatalog:
        near = difflib.get_close_matches(name, list(DatasetCatalog), n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise UserError(
            f"No data set is registered as '{name}'{hint}; give --train-json and --val-json for "
            "data of your own."
        )
    metadata = MetadataCatalog.get(name)
    prepare = metadata.get("psis_prepare")
    if prepare is not None:
        prepare()
    return metadata


def _has_coco_json(metadata) -> bool:
    return (
        metadata.get("json_file") is not None
        and metadata.get("image_root") is not None
        and metadata.get("evaluator_type", "coco") == "coco"
    )
