"""Warnings about data that can be read but hardly means what it says.

Nothing is changed here: what is likely wrong is named, with the likely cause.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from psis_d2.data.segmentation import polygon_points, read_segmentation

import numpy as np
from detectron2.structures import BoxMode
from PIL import Image, ImageDraw
from pycocotools import mask as mask_util

logger = logging.getLogger(__name__)

# Objects that are looked at, evenly spread over a data set.
_SAMPLE = 2000
_CROWD_SAMPLE = 20
# Less than this share of odd objects may be true: amodal boxes, or boxes that reach out of images.
_MANY = 0.3
_NEARLY_ALL = 0.8
_SAME_PLACE = 0.5  # intersection over union
_CROWD_SIDE = 64


def warn_of_units(records: Sequence[dict], where: str) -> bool:
    """Warn when many boxes lie outside their images or many masks outside their boxes.

    Tried as causes are coordinates from 0 to 1, percentages, and boxes that are two corners where
    width and height belong.

    Args:
        records: dataset dicts, boxes in their form, masks not cleaned yet.
        where: what they come from.

    Returns:
        Whether it warned.
    """
    boxes, extents, sizes = _rectangles(records)
    if len(boxes) == 0:
        return False
    scale = np.concatenate([sizes, sizes], axis=1)
    shares_boxes = (boxes >= 0).all(1) & (boxes <= 1).all(1) & (sizes > 4).all(1)
    if shares_boxes.mean() >= _NEARLY_ALL:
        logger.warning(
            "%s: nearly all boxes lie between 0 and 1, as shares of the image would; coordinates "
            "are pixels: multiply them by width and height",
            where,
        )
        return True
    # As if x, y, width, height were two corners.
    corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    slack = np.maximum(2, 0.05 * scale)
    outside = ((boxes < -slack) | (boxes > scale + slack)).any(1)
    masked = np.isfinite(extents).all(1)
    apart = masked & ~(_overlap(extents, boxes) >= _SAME_PLACE)
    many_apart = masked.any() and apart.sum() >= _MANY * masked.sum()
    if outside.mean() < _MANY and not many_apart:
        return False
    fits = (corners[:, 2:] > corners[:, :2]).all(1) & (corners <= scale + slack).all(1)
    if masked.any():
        fits = fits & (~masked | (_overlap(extents, corners) >= _SAME_PLACE))
    if fits.mean() >= _NEARLY_ALL:
        logger.warning(
            "%s: nearly all boxes look like two corners x0, y0, x1, y1, but are read as x, y, "
            "width, height, so that %d of %d reach out of their images; write width and height",
            *(where, int(outside.sum()), len(boxes)),
        )
        return True
    if many_apart:
        for factor, name in ((scale, "shares from 0 to 1"), (scale / 100, "percentages")):
            same = _overlap(extents * factor, boxes) >= _SAME_PLACE
            if same[masked].mean() >= _NEARLY_ALL:
                logger.warning(
                    "%s: the masks look like %s of width and height, while their boxes are in "
                    "pixels; multiply their coordinates",
                    *(where, name),
                )
                return True
        logger.warning(
            "%s: %d of %d masks that were looked at lie outside of their boxes; check that both "
            "are in pixels of the image as it is on disk, and boxes x, y, width, height",
            *(where, int(apart.sum()), int(masked.sum())),
        )
        return True
    logger.warning(
        "%s: %d of %d boxes that were looked at reach out of their images; check that they are in "
        "pixels of the image as it is on disk, and x, y, width, height",
        *(where, int(outside.sum()), len(boxes)),
    )
    return True


def warn_of_crowds(
    records: Iterable[dict], where: str, class_names: Sequence[str] | None = None
) -> list[int]:
    """Warn when all objects of a category are crowd regions that look like single objects.

    Args:
        records: dataset dicts with cleaned annotations.
        where: what they come from.
        class_names: for the message.

    Returns:
        Contiguous ids of these categories.
    """
    crowds, with_instances = defaultdict(list), set()
    for record in records:
        for annotation in record["annotations"]:
            category = annotation["category_id"]
            if annotation["iscrowd"]:
                crowds[category].append((record, annotation))
            else:
                with_instances.add(category)
    suspects = []
    for category in sorted(crowds.keys() - with_instances):
        masked = [pair for pair in crowds[category] if "segmentation" in pair[1]]
        looked_at = list(_spread(masked, _CROWD_SAMPLE))
        single = sum(_is_one_piece(record, annotation) for record, annotation in looked_at)
        if looked_at and 2 * single >= len(looked_at):
            suspects.append(category)
    if suspects:
        names = [str(i) if class_names is None else f"'{class_names[i]}'" for i in suspects]
        more = f" and {len(names) - 5} more" * (len(names) > 5)
        logger.warning(
            "%s: all %d annotations of %s%s are crowd regions (iscrowd 1), from which nothing is "
            "learned, but look like single objects, as CVAT writes painted masks; PSIS.CROWDS "
            "instances takes them as instances",
            *(where, sum(len(crowds[i]) for i in suspects), ", ".join(names[:5]), more),
        )
    return suspects


def _spread(items: Sequence, count: int) -> Iterator:
    """At most `count` items, evenly spread."""
    step = max(1, -(-len(items) // count))
    return iter(items[::step])


def _rectangles(records: Sequence[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a sample: boxes and the masks' extents (XYXY [N, 4], nan without), (width, height)."""
    pairs = [(record, annotation) for record in records for annotation in record["annotations"]]
    boxes, extents, sizes = [], [], []
    for record, annotation in _spread(pairs, _SAMPLE):
        boxes.append(BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS))
        extents.append(_extent(annotation.get("segmentation"), record))
        sizes.append([record["width"], record["height"]])
    shape = (-1, 4)
    return (
        np.array(boxes, dtype=np.float64).reshape(shape),
        np.array(extents, dtype=np.float64).reshape(shape),
        np.array(sizes, dtype=np.float64).reshape(-1, 2),
    )


def _extent(segmentation, record: dict) -> list[float]:
    nothing = [np.nan] * 4
    polygons = polygon_points(segmentation)
    if polygons is None:
        rle, _ = read_segmentation(segmentation, record["height"], record["width"])
        if rle is None:
            return nothing
        x, y, w, h = mask_util.toBbox(rle)
        return [x, y, x + w, y + h]
    try:
        points = np.array([value for polygon in polygons for value in polygon], dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return nothing
    if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
        return nothing
    if np.abs(points).max() > 1e9:
        return nothing
    x, y = points[::2], points[1::2]
    extent = [x.min(), y.min(), x.max(), y.max()]
    return extent if extent[2] > extent[0] and extent[3] > extent[1] else nothing


def _overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of rectangles [N, 4] row by row; nan where one is not there."""
    low, high = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])
    common = (high - low).clip(0).prod(1)
    areas = [(r[:, 2:] - r[:, :2]).clip(0).prod(1) for r in (one, other)]
    return common / np.maximum(areas[0] + areas[1] - common, 1e-9)


def _is_one_piece(record: dict, annotation: dict) -> bool:
    """Whether a mask is connected, seen from so far that a grain of it does not count."""
    mask = annotation["segmentation"]
    if not isinstance(mask, dict):
        rles = mask_util.frPyObjects(mask, record["height"], record["width"])
        mask = mask_util.merge(rles)
    x, y, w, h = (int(value) for value in mask_util.toBbox(mask))
    picture = Image.fromarray(mask_util.decode(mask)[y : y + h, x : x + w] * np.uint8(255))
    picture.thumbnail((_CROWD_SIDE, _CROWD_SIDE), Image.Resampling.BOX)
    seen = np.asarray(picture) >= 128
    if not seen.any():
        return False
    picture = Image.fromarray(seen.astype(np.uint8)).copy()  # its own memory, to be drawn in
    row, column = np.argwhere(seen)[0]
    ImageDraw.floodfill(picture, (int(column), int(row)), 0)
    return not np.asarray(picture).any()
