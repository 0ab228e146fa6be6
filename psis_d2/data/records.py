"""The one road of data: what must hold of dataset dicts, from a json or a registered function.

Whatever reads a data set hands its dicts to :func:`usable_records`: bad input ends there, with one
sentence, and no library sees a value that it would silently coerce.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from psis_d2.data.plausibility import warn_of_crowds, warn_of_units
from psis_d2.data.points import read_points
from psis_d2.data.supervision import clean_annotations
from psis_d2.errors import UserError, check_choice

import numpy as np
from detectron2.structures import BoxMode

logger = logging.getLogger(__name__)

CROWDS = ("ignore", "instances")
"""What ``PSIS.CROWDS`` may be."""

# No pixel coordinate is that large; infinities and not-a-number fail the comparison too.
_HUGE = 1e9
# Nor an image's side: Pillow refuses far smaller ones.
_LONGEST_SIDE = 100_000
# A box of thinner sides has no area in float32, which training computes in.
_THINNEST = 1e-18
_BOX_MODES = (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
_FLAGS = {"0": False, "false": False, "1": True, "true": True}


def usable_records(
    dicts: Sequence[dict],
    where: str,
    class_names: Sequence[str] | None = None,
    *,
    crowds: str = "ignore",
    repeated_ids: bool = False,
    in_place: bool = False,
) -> list[dict]:
    """Check dataset dicts and bring them into one form. The arguments are not modified.

    * Numbers and arrays of NumPy become Python's, flags in text (0, 1, true, false) become flags.
    * ``image_id`` stays as it is: an integer of any size or a text. It is unique.
    * ``id`` of an annotation is unique and fits into 64 bits. If one of the data set is missing, a
      text or larger, all are numbered from 1, and an annotation's own id is kept as ``json_id``.
    * Boxes are four finite numbers, XYXY_ABS or XYWH_ABS; those of zero width or height are left
      out, with one warning that counts them.
    * ``area`` stays only if it is a positive number.
    * Points are checked, see :mod:`psis_d2.data.points`.
    * Masks are cleaned by :func:`~psis_d2.data.supervision.clean_annotations`.
    * Coordinates that look as if they were in another unit, and crowds that look like single
      objects, are warned of.

    Args:
        dicts: standard dataset dicts, category ids contiguous.
        where: what they come from, for messages: a path, or a data set's name.
        class_names: the data set's categories, None if they are unknown.
        crowds: ``ignore`` leaves crowd regions what they are; ``instances`` takes annotations with
            ``iscrowd`` as objects, which some tools write for every mask that was painted.
        repeated_ids: annotation ids may occur twice.
        in_place: the annotations may be modified, which saves a copy of each.

    Raises:
        UserError: something is not as it must be.
    """
    check_choice("PSIS.CROWDS", crowds, CROWDS)
    if not isinstance(dicts, (list, tuple)):
        raise UserError(f"{_start(where)} is no list of dicts but {type(dicts).__name__}.")
    records = []
    image_ids = set()
    for record in dicts:
        record = _read_image(record, where, in_place)
        if record["image_id"] in image_ids:
            raise UserError(
                f"{_start(where)} lists image id {record['image_id']} twice; image ids must be "
                "unique."
            )
        image_ids.add(record["image_id"])
        records.append(record)
    annotations = [annotation for record in records for annotation in record["annotations"]]
    number_annotations(annotations, where, repeated_ids)
    flat = taken = 0
    for record in records:
        annotations = record["annotations"]
        for annotation in annotations:
            taken += _read_annotation(annotation, where, class_names, crowds)
        record["annotations"] = [a for a in annotations if _has_extent(a)]
        flat += len(annotations) - len(record["annotations"])
    if flat:
        logger.warning(
            "%s: %d annotations have a box of zero width or height and are left out",
            *(where, flat),
        )
    if taken:
        logger.info("%s: PSIS.CROWDS takes %d crowd regions as instances", where, taken)
    warn_of_units(records, where)
    clean_annotations(records)
    warn_of_crowds(records, where, class_names)
    return records


def read_id(value) -> int | str | None:
    """An id as Python's integer or text, None for anything else."""
    if type(value) in (int, str):
        return value
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, (float, np.floating)) and np.isfinite(value) and value == int(value):
        return int(value)
    return None


def read_flag(value, name: str, owner, where: str) -> bool:
    """A flag that may be a number or a text.

    Args:
        value: 0, 1, true or false in any spelling; None is false.
        name: of the flag, for the error.
        owner: the id of what has it, for the error.
        where: see :func:`usable_records`.

    Raises:
        UserError: it is something else.
    """
    if value is None:
        return False
    if isinstance(value, str):
        flag = _FLAGS.get(value.strip().lower())
    elif isinstance(value, (bool, int, float, np.bool_, np.number)):
        flag = bool(value) if value in (0, 1) else None
    else:
        flag = None
    if flag is None:
        raise UserError(
            f"{name} of {owner} in {where} is {_shown(value)}; write 0 or 1, or true or false."
        )
    return flag


def _start(where: str) -> str:
    return where[0].upper() + where[1:] if where.startswith("data set") else where


def _shown(value, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _read_image(record: dict, where: str, in_place: bool) -> dict:
    if not isinstance(record, dict):
        raise UserError(f"{_start(where)} has an image that is no dict: {_shown(record)}.")
    missing = {"file_name", "image_id", "height", "width"} - record.keys()
    if missing:
        raise UserError(
            f"{_start(where)} has an image without {' and '.join(sorted(missing))}: "
            f"{record.get('file_name', record.get('image_id'))}; add it to what the data set gives."
        )
    key, name = read_id(record["image_id"]), record["file_name"]
    if key is None or not isinstance(name, (str, os.PathLike)):
        raise UserError(
            f"{_start(where)} has an image whose id is no integer or text, or whose file name is "
            f"no text: {_shown(record['image_id'])}, {_shown(name)}."
        )
    sides = [record["height"], record["width"]]
    if not all(map(is_side, sides)):
        raise UserError(
            f"Image {_shown(os.path.basename(os.fspath(name)))[1:-1]} (id {key}) in {where} has no "
            f"usable height and width (found {_shown(sides[0])} and {_shown(sides[1])}); write its "
            "size in pixels there."
        )
    annotations = record.get("annotations", ())
    if not isinstance(annotations, (list, tuple)) or not all(
        isinstance(annotation, dict) for annotation in annotations
    ):
        raise UserError(f"Image id {key} in {where} has annotations that are no list of dicts.")
    return {
        **record,
        "file_name": os.fspath(name),
        "image_id": key,
        "height": int(sides[0]),
        "width": int(sides[1]),
        "box_only": read_flag(record.get("box_only"), "box_only", f"image id {key}", where),
        "annotations": annotations if in_place else [dict(x) for x in annotations],
    }


def is_side(value) -> bool:
    """Whether a value can be an image's height or width."""
    return is_real(value) and 1 <= value <= _LONGEST_SIDE and value == int(value)


def is_real(value) -> bool:
    """Whether a value is a number, Python's or NumPy's, and no flag."""
    return type(value) in (int, float) or isinstance(value, (np.integer, np.floating))


def is_box(value) -> bool:
    """Whether a value is a list of four finite numbers, none beyond any pixel coordinate."""
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        return False
    if not set(map(type, value)) <= {int, float} and not all(map(is_real, value)):
        return False
    a, b, c, d = value
    return -_HUGE < a < _HUGE and -_HUGE < b < _HUGE and -_HUGE < c < _HUGE and -_HUGE < d < _HUGE


def has_area(width: float, height: float) -> bool:
    """Whether a box of these sides, in pixels, has an area that training can compute with."""
    return width > _THINNEST and height > _THINNEST


def number_annotations(annotations: Sequence[dict], where: str, repeated_ids: bool = False) -> None:
    """Give every annotation a unique ``id`` of 64 bits, its own if all are such. In place.

    Otherwise all are numbered from 1, and what an annotation had becomes its ``json_id``.

    Args:
        annotations: of a whole data set, in its order.
        where: see :func:`usable_records`.
        repeated_ids: whether ids may occur twice.

    Raises:
        UserError: an id is neither an integer nor a text, or occurs twice.
    """
    ids = [annotation.get("id") for annotation in annotations]
    # Nearly always; what follows would find nothing to change.
    plain = set(map(type, ids)) <= {int} and (repeated_ids or len(set(ids)) == len(ids))
    if plain and (not ids or (min(ids) >= -(2**63) and max(ids) < 2**63)):
        return
    known, all_small = set(), True
    for position, annotation in enumerate(annotations, start=1):
        raw = annotation.get("id")
        key = read_id(raw)
        if key is None and raw is not None:
            raise UserError(
                f"Annotation number {position} in {where} has the id {_shown(raw)}, which is "
                "neither an integer nor a text; number the annotations."
            )
        if key is not None and key in known and not repeated_ids:
            raise UserError(
                f"{_start(where)} has two annotations with id {key}; annotation ids must be unique."
            )
        known.add(key)
        all_small = all_small and type(key) is int and -(2**63) <= key < 2**63
        annotation["id"] = key
    if all_small:
        return
    for number, annotation in enumerate(annotations, start=1):
        if annotation["id"] is not None:
            annotation["json_id"] = annotation["id"]
        annotation["id"] = number


def _read_annotation(
    annotation: dict, where: str, class_names: Sequence[str] | None, crowds: str
) -> bool:
    """Check one annotation and bring all but its mask into one form. In place.

    Returns:
        Whether it is a crowd region that is taken as an instance.
    """
    category = read_id(annotation.get("category_id"))
    limit = len(class_names) if class_names is not None else _HUGE
    if type(category) is not int or not 0 <= category < limit:
        range_ = f"from 0 to {limit - 1}" if class_names is not None else "from 0 on"
        raise UserError(
            f"Annotation {_own_id(annotation)} in {where} has category id "
            f"{_shown(annotation.get('category_id'))}; the ids that a registered function gives "
            f"count its categories {range_}."
        )
    box = annotation.get("bbox")
    box = box.tolist() if isinstance(box, np.ndarray) else box
    mode = annotation.get("bbox_mode")
    if not is_box(box):
        corners = isinstance(mode, int) and mode == BoxMode.XYXY_ABS
        raise UserError(
            f"Annotation {_own_id(annotation)} in {where} has no usable bbox (found "
            f"{_shown(box)}); it must be four finite numbers: "
            f"{'x0, y0, x1, y1' if corners else 'x, y, width, height'}."
        )
    if type(mode) is not BoxMode:
        mode = BoxMode(mode) if isinstance(mode, (int, np.integer)) and mode in _BOX_MODES else mode
    if mode not in _BOX_MODES:
        raise UserError(
            f"Annotation {_own_id(annotation)} in {where} has the bbox_mode "
            f"{getattr(mode, 'name', mode)!s}; convert its box to XYXY_ABS or "
            "XYWH_ABS."
        )
    crowd, ignored = annotation.get("iscrowd"), None
    if "ignore" in annotation:  # an older spelling of a region that is not an instance
        ignored = annotation.pop("ignore")
    if type(crowd) is not int or not 0 <= crowd <= 1 or ignored is not None:
        owner = f"annotation {_own_id(annotation)}"
        crowd = read_flag(crowd, "iscrowd", owner, where)
        ignored = read_flag(ignored, "ignore", owner, where)
    taken = bool(crowd) and crowds == "instances"
    annotation["bbox"] = list(map(float, box))
    annotation["bbox_mode"] = mode
    annotation["category_id"] = category
    annotation["iscrowd"] = int(bool(ignored) or (bool(crowd) and not taken))
    if "point_coords" in annotation or "point_labels" in annotation:
        read_points(annotation, _own_id(annotation), where)
    if "area" in annotation:
        area = annotation["area"]
        if is_real(area) and 0 < area < _HUGE**2:
            annotation["area"] = float(area)
        else:
            del annotation["area"]
    return taken


def _own_id(annotation: dict):
    return annotation.get("json_id", annotation["id"])


def _has_extent(annotation: dict) -> bool:
    a, b, c, d = annotation["bbox"]
    if annotation["bbox_mode"] == BoxMode.XYXY_ABS:
        c, d = c - a, d - b
    return has_area(c, d)
