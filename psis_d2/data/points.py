"""Annotated points: a kind of annotation between a box and a mask.

As in Detectron2's PointSup project an annotation has ``point_coords``, a list of [x, y] in pixels
of the image, and ``point_labels``, 1 for each point on the object and 0 for each beside it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence

from psis_d2.errors import UserError

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import Instances

logger = logging.getLogger(__name__)

KEYS = ("point_coords", "point_labels")


def usable_points(annotation: dict) -> list[tuple[float, float, int]] | None:
    """The points of an annotation, [] without any; None if they are not as they must be."""
    found = [annotation.get(key) for key in KEYS]
    coords, labels = (x.tolist() if isinstance(x, np.ndarray) else x for x in found)
    if coords is None and labels is None:
        return []
    pairs = isinstance(coords, (list, tuple)) and isinstance(labels, (list, tuple))
    if not pairs or len(coords) != len(labels):
        return None
    points = []
    for place, label in zip(coords, labels, strict=True):
        place = place.tolist() if isinstance(place, np.ndarray) else place
        if not isinstance(place, (list, tuple)) or len(place) != 2 or not all(map(_is_real, place)):
            return None
        if not _is_real(label) or label not in (0, 1):
            return None
        points.append((float(place[0]), float(place[1]), int(label)))
    return points


def _is_real(value) -> bool:
    number = isinstance(value, (int, float, np.integer, np.floating))
    return number and not isinstance(value, bool) and math.isfinite(value)


def read_points(annotation: dict, own_id, where: str) -> None:
    """Bring the points of an annotation into one form: lists, or no key. In place.

    Raises:
        UserError: they are malformed; `own_id` and `where` say of which annotation.
    """
    points = usable_points(annotation)
    if points is None:
        raise UserError(
            f"Annotation {own_id} in {where} has points that cannot be used; point_coords must be "
            "a list of [x, y] in pixels, and point_labels as many 0 and 1."
        )
    for key in KEYS:
        annotation.pop(key, None)
    if points:
        annotation["point_coords"] = [[x, y] for x, y, _ in points]
        annotation["point_labels"] = [label for _, _, label in points]


def report_points(dicts: Iterable[dict], used: bool) -> None:
    """One log line about objects with points and no mask that training may see.

    Args:
        dicts: standard dataset dicts as training gets them.
        used: whether ``PSIS.POINTS`` is on.
    """
    objects = [a for x in dicts for a in x.get("annotations", ()) if not a.get("iscrowd", 0)]
    with_points = [a for a in objects if "point_coords" in a and "segmentation" not in a]
    if used and not with_points:
        logger.warning(
            "PSIS.POINTS is True, but no object without a mask has points: add point_coords and "
            "point_labels to the json, or set it to False"
        )
    elif used:
        number = sum(len(a["point_labels"]) for a in with_points)
        logger.info("points: %d objects learn from %d points", len(with_points), number)
    elif with_points:
        logger.info(
            "points: %d objects without a mask have points; PSIS.POINTS True learns from them",
            len(with_points),
        )


def add_points(
    instances: Instances, annotations: Sequence[dict], transforms: T.TransformList
) -> None:
    """Give instances the points of their annotations, moved as the image was. In place.

    Adds ``gt_points`` (float32, N x P x 2, pixels of the augmented image, possibly outside of it)
    and ``gt_point_labels`` (int64, N x P): 1 on the object, 0 beside it, -1 where there is no
    point. P is the largest number of points of an object of the image, 0 without any.

    Args:
        instances: N of them.
        annotations: one each.
        transforms: the image's.
    """
    most = max((len(a.get("point_labels", ())) for a in annotations), default=0)
    points = np.zeros((len(annotations), most, 2))
    labels = np.full((len(annotations), most), -1, dtype=np.int64)
    for row, annotation in enumerate(annotations):
        own = annotation.get("point_labels", ())
        if len(own):
            coords = np.asarray(annotation["point_coords"], dtype=np.float64)
            points[row, : len(own)] = transforms.apply_coords(coords)
            labels[row, : len(own)] = own
    instances.gt_points = torch.as_tensor(points, dtype=torch.float32)
    instances.gt_point_labels = torch.from_numpy(labels)
