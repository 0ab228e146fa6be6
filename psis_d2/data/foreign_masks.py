"""Masks that are no annotations: drawn by a model, by SAM or by GrabCut, in a json of their own.

They are found by the ids of image and annotation, so that a file belongs to one data set. Two kinds
of json hold them, see :func:`read_mask_file`.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psis_d2.data.records import read_id
from psis_d2.data.segmentation import read_segmentation
from psis_d2.errors import UserError

from pycocotools import mask as mask_util

logger = logging.getLogger(__name__)

# Why an entry of a file is left out, as the log says it.
UNKNOWN = "of no object of the data"
OTHER_SIZE = "of an image of another size"
NO_PIXEL = "malformed or without a pixel"
BAD_SCORE = "with a score that is no number from 0 to 1"
REPEATED = "beside a better one of the same object"
LOW_SCORE = "with a score that is too low"
HIDDEN = "the very annotation that training may not see"
_FITTING = (REPEATED, LOW_SCORE)


@dataclass(frozen=True)
class ForeignMask:
    """A mask that is no annotation."""

    segmentation: list | dict
    """Polygons or a compressed RLE, see :mod:`psis_d2.data.segmentation`."""
    score: float
    """0 to 1; 1 if the file says nothing."""


@dataclass(frozen=True)
class MaskFile:
    """What a json of masks holds, not yet matched with data."""

    path: str
    entries: Sequence[dict]
    """Those with a ``segmentation``."""
    sizes: Mapping
    """image id -> (height, width), of a data set's json; {} of a result list."""
    is_dataset: bool
    """Whether ids are those of a json, or those that this project has given its annotations."""


@dataclass(frozen=True)
class MatchedMasks:
    """The masks of a file that are of the objects of a data set."""

    masks: Mapping[tuple, ForeignMask]
    """(image id, annotation id) -> the best mask of each object."""
    left: Counter
    """Reason -> how many masks of objects of the data set are not among them."""
    known: frozenset[int]
    """Places in the file of all masks of objects of the data set."""


def names_file(value: str) -> bool:
    """Whether ``PSIS.MISSING_MASKS`` or ``TEST.MASKS`` names a json."""
    return value.lower().endswith(".json")


def read_mask_file(path: str, key: str) -> MaskFile:
    """Read a json of masks.

    * A COCO data set, as ``psis-d2 autolabel`` and ``psis-d2 prompt-sam`` write it: ``annotations``
      with ``id``, ``image_id``, ``segmentation`` and, if it is known, ``score``. With ``images``,
      their sizes are compared, too.
    * A COCO result list whose entries have the ``id`` of their annotation, as the evaluator of
      given boxes writes it (``given_box_results.json``).

    Args:
        path: of the json.
        key: the config key that names it, for messages.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
    except FileNotFoundError as error:
        raise UserError(
            f"The json of masks {key} {path} does not exist; check the path."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"Cannot read the masks {key} {path} as JSON: {error}.") from error
    is_dataset = isinstance(content, dict)
    entries = content.get("annotations") if is_dataset else content
    images = content.get("images", []) if is_dataset else []
    if not all(
        isinstance(listed, list) and all(isinstance(entry, dict) for entry in listed)
        for listed in (entries, images)
    ):
        raise UserError(
            f"{key} {path} has no masks; give a COCO json with annotations, or a COCO result list "
            "whose entries have the id of their annotation."
        )
    return MaskFile(
        path=path,
        entries=[entry for entry in entries if entry.get("segmentation")],
        sizes={read_id(x.get("id")): (x.get("height"), x.get("width")) for x in images},
        is_dataset=is_dataset,
    )


def match_masks(
    file: MaskFile,
    dicts: Sequence[dict],
    *,
    min_score: float = 0.0,
    hidden: Mapping[tuple, list | dict] | None = None,
) -> MatchedMasks:
    """The masks of a file by the objects that they are of.

    Args:
        file: see :func:`read_mask_file`.
        dicts: standard dataset dicts of one data set.
        min_score: masks of a lower score are left out.
        hidden: {(image id, annotation id): segmentation} that training may not see: a mask that is
            the same is left out.

    Returns:
        Those that fit; a crowd region is no object.
    """
    objects = {}
    for record in dicts:
        for annotation in record.get("annotations", ()):
            if not annotation.get("iscrowd", 0):
                own = annotation.get("json_id") if file.is_dataset else None
                own = annotation["id"] if own is None else own
                objects[record["image_id"], own] = record, annotation["id"]
    masks: dict[tuple, ForeignMask] = {}
    left: Counter = Counter()
    known = set()
    for place, entry in enumerate(file.entries):
        image_id = read_id(entry.get("image_id"))
        record, own = objects.get((image_id, read_id(entry.get("id"))), (None, None))
        if record is None:
            continue
        known.add(place)
        key = image_id, own
        mask, reason = _read_entry(entry, record, file.sizes.get(image_id))
        if reason is None and mask.score < min_score:
            reason = LOW_SCORE
        if reason is None and hidden and _is_same(mask.segmentation, hidden.get(key), record):
            reason = HIDDEN
        if reason is None and key in masks:
            reason = REPEATED
            masks[key] = max(masks[key], mask, key=lambda one: one.score)
        if reason is None:
            masks[key] = mask
        else:
            left[reason] += 1
    return MatchedMasks(masks, left, frozenset(known))


def report_matches(file: MaskFile, key: str, matched: Mapping[str, MatchedMasks]) -> None:
    """One log line about what fits and what was left out.

    Args:
        file: see :func:`read_mask_file`.
        key: the config key that names it.
        matched: what :func:`match_masks` found in each data set, by its name.

    Raises:
        UserError: not one mask fits the data, or a mask fits objects of two data sets.
    """
    names = ", ".join(matched)
    known = frozenset().union(*(one.known for one in matched.values()))
    if len(known) < sum(len(one.known) for one in matched.values()):
        raise UserError(
            f"Masks of {key} {file.path} fit objects of more than one of the data sets {names}, "
            "whose ids are alike; use one of these at a time."
        )
    fit = sum(len(one.masks) for one in matched.values())
    left = sum((one.left for one in matched.values()), Counter())
    if len(known) < len(file.entries):
        left[UNKNOWN] = len(file.entries) - len(known)
    reasons = ", ".join(f"{count} {reason}" for reason, count in left.most_common())
    if not fit and not any(left[reason] for reason in _FITTING):
        raise UserError(
            f"None of the {len(file.entries)} masks of {key} {file.path} fits an object of "
            f"{names}{f' ({reasons})' if reasons else ''}; give a file that was made for this data."
        )
    logger.info(
        "%s: %d of %d masks fit objects of %s%s",
        *(file.path, fit, len(file.entries), names),
        f"; left out: {reasons}" if reasons else "",
    )


def _read_entry(
    entry: dict, record: dict, size: tuple | None
) -> tuple[ForeignMask | None, str | None]:
    """The mask of an entry, or why it has none."""
    height, width = record["height"], record["width"]
    if size is not None and None not in size and tuple(size) != (height, width):
        return None, OTHER_SIZE
    segmentation = entry["segmentation"]
    if isinstance(segmentation, dict) and list(segmentation.get("size", ())) != [height, width]:
        return None, OTHER_SIZE
    mask, _ = read_segmentation(segmentation, height, width)
    if mask is None:
        return None, NO_PIXEL
    score = entry.get("score")
    score = 1.0 if score is None else score
    if type(score) not in (int, float) or not math.isfinite(score) or not 0 <= score <= 1:
        return None, BAD_SCORE
    return ForeignMask(mask, float(score)), None


def _is_same(one: list | dict, other: list | dict | None, record: dict) -> bool:
    """Whether two segmentations of an image cover the same pixels."""
    if other is None:
        return False
    if one == other:
        return True
    counts = [as_rle(x, record["height"], record["width"])["counts"] for x in (one, other)]
    return counts[0] == counts[1]


def as_rle(segmentation: list | dict, height: int, width: int) -> dict:
    """A usable segmentation as a compressed RLE with counts in bytes."""
    if isinstance(segmentation, list):
        return mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    counts = segmentation["counts"]
    return {**segmentation, "counts": counts.encode() if isinstance(counts, str) else counts}
