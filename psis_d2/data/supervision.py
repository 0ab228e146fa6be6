"""The supervision contract: a mask that training may not see is gone, not merely ignored.

Masks that are no annotations have keys of their own, see :func:`add_foreign_masks`, and count as
masks nowhere.

After :func:`clean_annotations` the key ``segmentation`` of an annotation exists only where it holds
a usable mask; after :func:`restrict_masks` it exists only where training may use it. A data set
that never had those masks looks exactly the same.

Annotations are those of Detectron2's standard dataset dicts. A usable ``segmentation`` is a list of
polygons ``[x0, y0, x1, y1, ...]`` in pixels with at least three points each, or an RLE dict
``{"size": [height, width], "counts": ...}``, compressed (text) or not (list of run lengths).
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from psis_d2.data.segmentation import LONGEST_OUTLINE, REACH, read_segmentation
from psis_d2.data.sure_polygons import surely_masks
from psis_d2.errors import UserError

import numpy as np

logger = logging.getLogger(__name__)

_NO_POLYGON = array("d", [0.0])


@dataclass(frozen=True)
class MaskCounts:
    """How many instances have a mask. Crowd regions are not instances and are not counted.

    Attributes:
        instances: annotations that are not crowd regions.
        with_mask: instances with a usable mask.
        bad_masks: instances whose segmentation was not empty but unusable; they keep the box.
        bad_polygons: unusable polygons left out of masks that are usable without them.
        crowds: crowd regions.
    """

    instances: int = 0
    with_mask: int = 0
    bad_masks: int = 0
    bad_polygons: int = 0
    crowds: int = 0

    @property
    def without_mask(self) -> int:
        """Instances with a box only."""
        return self.instances - self.with_mask


def usable_segmentation(segmentation, height: int, width: int) -> bool:
    """Whether ``segmentation`` holds a mask of an image of ``height`` x ``width`` pixels.

    False for ``None``, an empty list, a list without one good polygon (three points or more, an
    even number of finite numbers), an RLE whose size is not the image's or whose counts do not
    decode to exactly that size, and whatever covers no pixel: a line, a point, a polygon outside.
    """
    return read_segmentation(segmentation, height, width)[0] is not None


def clean_annotations(dicts: Iterable[dict]) -> MaskCounts:
    """Bring every spelling of "no mask" into one state: no key ``segmentation``. In place.

    ``None``, ``[]``, a missing key, malformed polygons and RLEs, and all masks of an image flagged
    ``box_only`` end the same. Good polygons beside a bad one are kept. No annotation is dropped and
    no box is touched. Uncompressed RLEs are compressed. One log line counts.

    Args:
        dicts: standard dataset dicts with ``height``, ``width`` and ``annotations``.

    Returns:
        The counts over all instances.
    """
    instances = with_mask = bad_masks = bad_polygons = crowds = 0
    dicts = list(dicts)
    plain = iter(_plainly_good(dicts))
    for record in dicts:
        box_only = bool(record.pop("box_only", False))
        for annotation in record.get("annotations", ()):
            mask, bad = None, 0
            good = next(plain)
            if good and not box_only:
                mask = annotation["segmentation"]
            elif not box_only:
                mask, bad = read_segmentation(
                    annotation.get("segmentation"), record["height"], record["width"]
                )
            if mask is None:
                annotation.pop("segmentation", None)
            else:
                annotation["segmentation"] = mask
            if annotation.get("iscrowd", 0):
                crowds += 1
                continue
            instances += 1
            if mask is not None:
                with_mask += 1
                bad_polygons += bad
            elif bad:
                bad_masks += 1
    counts = MaskCounts(instances, with_mask, bad_masks, bad_polygons, crowds)
    logger.log(
        logging.WARNING if bad_masks or bad_polygons else logging.INFO,
        "annotations: %d instances, %d with a mask, %d with a box only, and %d crowd regions; %d "
        "masks are malformed or without a pixel and are lost (the box stays), %d malformed "
        "polygons were left out of a mask",
        *(counts.instances, counts.with_mask, counts.without_mask, counts.crowds),
        *(counts.bad_masks, counts.bad_polygons),
    )
    return counts


def _plainly_good(dicts: Sequence[dict]) -> list[bool]:
    """For each annotation in order, whether its segmentation surely is polygons of which all count.

    Others need :func:`read_segmentation`, which would find the same of these, one by one.
    """
    polygons, owners, heights, widths = [], [], [], []
    number = -1
    for record in dicts:
        for annotation in record.get("annotations", ()):
            number += 1
            pieces = annotation.get("segmentation")
            if type(pieces) is not list:
                continue
            for piece in pieces:
                packed = type(piece) is array and piece.typecode == "d" and len(piece)
                polygons.append(piece if packed else _NO_POLYGON)
                owners.append(number)
                heights.append(record["height"])
                widths.append(record["width"])
    good = np.zeros(number + 1, dtype=bool)
    if polygons:
        sizes = np.array([heights, widths]).T
        sure = surely_masks(polygons, sizes, REACH, LONGEST_OUTLINE)
        good[owners] = True
        good[np.array(owners)[~sure]] = False
    return good.tolist()


def count_masks(dicts: Iterable[dict]) -> MaskCounts:
    """Count instances and masks of dataset dicts that :func:`clean_annotations` has seen."""
    instances = with_mask = 0
    for record in dicts:
        for annotation in record.get("annotations", ()):
            if not annotation.get("iscrowd", 0):
                instances += 1
                with_mask += "segmentation" in annotation
    return MaskCounts(instances, with_mask)


def masked_classes(dicts: Iterable[dict]) -> set[int]:
    """Contiguous ids of the categories with at least one instance that has a mask."""
    return {
        annotation["category_id"]
        for record in dicts
        for annotation in record.get("annotations", ())
        if "segmentation" in annotation and not annotation.get("iscrowd", 0)
    }


def restrict_masks(
    dicts: Iterable[dict],
    seen_ids: Collection[int] | None = None,
    keep_images: Collection | None = None,
) -> None:
    """Remove the masks that training may not see. In place.

    Args:
        dicts: standard dataset dicts.
        seen_ids: contiguous ids of the categories that keep masks; None for all.
        keep_images: ``image_id`` of the images that keep masks; None for all.
    """
    seen = None if seen_ids is None else frozenset(seen_ids)
    images = None if keep_images is None else frozenset(keep_images)
    for record in dicts:
        image_stays = images is None or record["image_id"] in images
        for annotation in record.get("annotations", ()):
            if not image_stays or (seen is not None and annotation["category_id"] not in seen):
                annotation.pop("segmentation", None)


def keep_classes(dicts: Iterable[dict], class_ids: Collection[int]) -> None:
    """Remove the annotations of all other categories, boxes too. In place."""
    kept = frozenset(class_ids)
    for record in dicts:
        annotations = record.get("annotations", ())
        record["annotations"] = [a for a in annotations if a["category_id"] in kept]


def add_foreign_masks(
    dicts: Iterable[dict], masks: Mapping[tuple, tuple[list | dict, float]]
) -> None:
    """Give objects without a mask one that is no annotation. In place; crowds stay as they are.

    Such a mask is the annotation's ``foreign_segmentation``, beside ``foreign_weight``, the factor
    of its losses; ``segmentation`` stays away, so that nothing takes it for an annotated mask.

    Args:
        dicts: standard dataset dicts of one data set.
        masks: {(image id, annotation id): (segmentation, weight)}, usable ones. Objects without an
            entry stay without, and so do those whose weight is 0.
    """
    for record in dicts:
        for annotation in record.get("annotations", ()):
            if "segmentation" in annotation or annotation.get("iscrowd", 0):
                continue
            mask, weight = masks.get((record["image_id"], annotation["id"]), (None, 0.0))
            if weight > 0:
                annotation["foreign_segmentation"] = mask
                annotation["foreign_weight"] = weight


def select_images(image_ids: Iterable, fraction: float, seed: int, key: str) -> set:
    """Draw a share of the images.

    The choice depends on the ids and the seed, not on the order; with one seed, a smaller fraction
    gives a subset of a larger one.

    Args:
        image_ids: distinct image ids, or with repetitions that count once.
        fraction: share of the images, 0 to 1; the number is rounded to the nearest.
        seed: any integer.
        key: the config key of the fraction, for the error.

    Returns:
        The selected ids.

    Raises:
        UserError: the fraction is not between 0 and 1.
    """
    if not 0 <= fraction <= 1:
        raise UserError(
            f"{key} is {fraction}; it is a share of images and must lie between 0 and 1."
        )
    ranked = sorted(set(image_ids), key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())
    return set(ranked[: math.floor(fraction * len(ranked) + 0.5)])


def read_image_list(path: str) -> set[str]:
    """Read a list of images: one image id or file name a line, blank and ``#`` lines skipped.

    Raises:
        UserError: the file is missing, is not text or lists nothing.
    """
    if not os.path.isfile(path):
        raise UserError(f"The image list PSIS.MASK_IMAGES {path} does not exist; check the path.")
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the image list {path} as text: {error}.") from error
    entries = {line for line in lines if line and not line.startswith("#")}
    if not entries:
        raise UserError(
            f"The image list {path} names no image; write one image id or file name a line."
        )
    return entries


def match_image_list(dicts: Iterable[dict], entries: Collection[str]) -> tuple[set, set[str]]:
    """Find the images that a list means.

    An entry means an image if it is its id, its file name, or the end of its path after a ``/``.

    Args:
        dicts: standard dataset dicts.
        entries: what :func:`read_image_list` gave.

    Returns:
        The ``image_id`` of all images meant, and the entries that mean none.
    """
    wanted = {entry.replace(os.sep, "/") for entry in entries}
    images, found = set(), set()
    for record in dicts:
        parts = str(record["file_name"]).replace(os.sep, "/").split("/")
        spellings = {"/".join(parts[i:]) for i in range(len(parts))} | {str(record["image_id"])}
        hits = spellings & wanted
        if hits:
            images.add(record["image_id"])
            found |= hits
    return images, wanted - found
