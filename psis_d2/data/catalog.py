"""Registered data sets by name: their dicts, their category names, the making of their files."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass

from psis_d2.data.coco import CocoReader, load_categories, load_coco
from psis_d2.data.records import usable_records
from psis_d2.errors import UserError
from psis_d2.garbage import without_collector

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

# Whose functions read a json as Detectron2 does, which drops objects with a malformed mask, and for
# LVIS asks for one more library.
_DETECTRON2_READERS = ("detectron2.data.datasets.coco", "detectron2.data.datasets.lvis")


def get_dataset_dicts(name: str, crowds: str = "ignore") -> list[dict]:
    """Read a registered data set, checked and cleaned (:mod:`psis_d2.data.records`).

    What a registered function returns is used as it is returned, and checked as a json is. Only
    data sets of :func:`~psis_d2.data.coco.register_coco_json` and of Detectron2's
    ``register_coco_instances`` are read by :func:`psis_d2.data.coco.load_coco`.

    Args:
        name: a name in Detectron2's ``DatasetCatalog``.
        crowds: see :func:`~psis_d2.data.records.usable_records`.

    Returns:
        Detectron2's standard dataset dicts; records and annotations are the caller's, boxes and
        masks are not.

    Raises:
        UserError: the name is unknown or the data is not as it must be.
    """
    with without_collector():
        return copy_dicts(shared_dataset_dicts(name, crowds))


def copy_dicts(dicts: list[dict]) -> list[dict]:
    """Dataset dicts with annotations that can be changed; boxes and masks are shared."""
    return [
        {**record, "annotations": [dict(a) for a in record.get("annotations", ())]}
        for record in dicts
    ]


@dataclass(frozen=True)
class _Read:
    """A json as it was read: what tells it from another one, and its dicts."""

    stamp: tuple
    dicts: list[dict]


_read: dict[tuple[str, str], _Read] = {}


def shared_dataset_dicts(name: str, crowds: str = "ignore") -> list[dict]:
    """What :func:`get_dataset_dicts` copies: a json is read once for all of a process.

    It is read again when it has changed; what other functions register is called every time.

    Args:
        name: a registered data set.
        crowds: see :func:`~psis_d2.data.records.usable_records`.

    Returns:
        Standard dataset dicts, which no one may change.

    Raises:
        UserError: as :func:`get_dataset_dicts`.
    """
    metadata = prepare_dataset(name)
    reader = coco_reader(name)
    if reader is None:
        dicts = _call(name)
        class_names = metadata.get("thing_classes")
        return usable_records(dicts, f"data set '{name}'", class_names, crowds=crowds)
    known, stamp = _read.get((name, crowds)), _stamp(reader, name)
    if known is not None and stamp is not None and known.stamp == stamp:
        return known.dicts
    _read.pop((name, crowds), None)  # no memory for both
    # Not called, which would prepare its files once more.
    dicts = load_coco(reader.json_file, reader.image_root, name, crowds)
    stamp = _stamp(reader, name)
    if stamp is not None:
        _read[name, crowds] = _Read(stamp, dicts)
    return dicts


def forget_dataset_dicts(names: Iterable[str]) -> None:
    """Free the memory of data sets that have gone where they were needed."""
    for key in [key for key in _read if key[0] in set(names)]:
        del _read[key]


def _stamp(reader: CocoReader, name: str) -> tuple | None:
    """What changes with a json and what is known of it; None if it is not on this machine."""
    if not os.path.isfile(reader.json_file):
        return None
    stat = os.stat(reader.json_file)
    classes = MetadataCatalog.get(name).get("thing_classes")
    if classes is None or (reader.image_root and not os.path.isdir(reader.image_root)):
        return None
    file = reader.json_file, reader.image_root, stat.st_mtime_ns, stat.st_size
    return *file, tuple(classes)


def coco_reader(name: str) -> CocoReader | None:
    """The reader of a registered data set that is nothing but a COCO-format json, else None."""
    function = DatasetCatalog[name]
    if isinstance(function, CocoReader):
        return function
    if getattr(function, "__module__", None) not in _DETECTRON2_READERS:
        return None
    metadata = MetadataCatalog.get(name)
    return CocoReader(metadata.json_file, metadata.image_root, name)


def _call(name: str):
    """What a registered function returns; a library that it lacks is one sentence."""
    try:
        return DatasetCatalog.get(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"Data set '{name}' needs the library {error.name}, which is not installed; run: pip "
            f"install {error.name}"
        ) from error


def get_class_names(name: str) -> list[str]:
    """Category names of a data set; the position is the contiguous id.

    Reads the json only when the metadata does not know them yet.

    Raises:
        UserError: the data set is unknown, cannot be read, or has no category names.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None:
        metadata = prepare_dataset(name)
        reader = coco_reader(name)
        if reader is not None:
            return load_categories(reader.json_file, name)
        _call(name)
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
