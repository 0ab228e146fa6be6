"""Draw the masks of an image where its augmentation puts them, and no more than their rectangles.

What comes out is what Detectron2's transforms make of whole masks, pixel for pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

from psis_d2.data.cropped_masks import CroppedMasks, tighten
from psis_d2.data.segmentation import rle_runs

import numpy as np
from detectron2.data import transforms as T
from PIL import Image
from pycocotools import mask as mask_util

# The rectangle of a mask's foreground: uint8 [h, w], and the column and the row where it begins.
Crop = tuple[np.ndarray, int, int]


def draw_masks(
    segmentations: Sequence[list | dict | None],
    transforms: T.TransformList,
    size: tuple[int, int],
) -> CroppedMasks:
    """The masks of one image after its augmentation.

    Args:
        segmentations: usable ones (:mod:`psis_d2.data.segmentation`), None for no mask.
        transforms: what the image went through.
        size: (height, width) of the augmented image.
    """
    size = tuple(map(int, size))
    lookups: dict[tuple, tuple[np.ndarray, np.ndarray] | None] = {}
    crops = []
    for segmentation in segmentations:
        if segmentation is None:
            crops.append(None)
        elif isinstance(segmentation, dict):
            source = tuple(segmentation["size"])
            if source not in lookups:
                lookups[source] = _lookups(transforms, source)
            crops.append(_move_rle(segmentation, transforms, lookups[source]))
        else:
            crops.append(_draw_polygons(segmentation, transforms, size))
    return CroppedMasks.from_crops(crops, size)


def _draw_polygons(
    segmentation: Sequence[Sequence[float]], transforms: T.TransformList, size: tuple[int, int]
) -> Crop | None:
    # The points are moved as they are, also out of the image: the rasterizer clips. (A crop's own
    # polygon clipping would need one more library.)
    polygons = [
        transforms.apply_coords(np.array(polygon, dtype=np.float64).reshape(-1, 2)).ravel()
        for polygon in segmentation
    ]
    rles = mask_util.frPyObjects(polygons, *size)
    return _decode(rles[0] if len(rles) == 1 else mask_util.merge(rles))


def _decode(rle: dict) -> Crop | None:
    """The rectangle of a compressed RLE's foreground."""
    x, y, width, height = map(int, mask_util.toBbox(rle))
    if not width or not height:
        return None
    counts, rows = rle["counts"], rle["size"][0]
    runs = rle_runs(counts if isinstance(counts, str) else counts.decode("ascii"))
    # Only the columns that have foreground. They lie one after the other, as runs go down columns.
    ends = np.cumsum(runs).clip(x * rows, (x + width) * rows)
    values = np.zeros(len(runs), dtype=np.uint8)
    values[1::2] = 1
    columns = np.repeat(values, np.diff(ends, prepend=x * rows)).reshape(width, rows)
    return columns[:, y : y + height].T, x, y


def _move_rle(
    rle: dict, transforms: T.TransformList, lookups: tuple[np.ndarray, np.ndarray] | None
) -> Crop | None:
    if lookups is None:
        return tighten(transforms.apply_segmentation(mask_util.decode(rle)), 0, 0)
    crop = _decode(rle)
    if crop is None:
        return None
    pixels, x, y = crop
    rows, columns = lookups
    down, right = _window(rows, y, pixels.shape[0]), _window(columns, x, pixels.shape[1])
    if down is None or right is None:
        return None
    moved = pixels[(rows[down] - y)[:, None], columns[right] - x]
    return tighten(moved, right.start, down.start)  # small parts may be skipped


def _window(lookup: np.ndarray, first: int, count: int) -> slice | None:
    """The places of a lookup that show `count` rows (or columns) from the first one on."""
    places = np.flatnonzero((lookup >= first) & (lookup < first + count))
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else None


def _lookups(
    transforms: T.TransformList, source: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Which row and which column of the source each row and column of a moved mask show.

    None if a transform does more than moving rows and columns.
    """
    rows, columns = (np.arange(side, dtype=np.int32) for side in source)
    for transform in transforms.transforms:
        kind = type(transform)
        if kind is T.ResizeTransform:
            if (len(rows), len(columns)) != (transform.h, transform.w):
                return None
            rows = _resize(rows, transform.new_h)
            columns = _resize(columns, transform.new_w)
        elif kind is T.HFlipTransform:
            columns = columns[::-1]
        elif kind is T.VFlipTransform:
            rows = rows[::-1]
        elif kind is T.CropTransform:
            rows = rows[transform.y0 : transform.y0 + transform.h]
            columns = columns[transform.x0 : transform.x0 + transform.w]
        elif kind is not T.NoOpTransform:
            return None
    return rows, columns


def _resize(lookup: np.ndarray, length: int) -> np.ndarray:
    """By Pillow itself, whose nearest neighbors it has to be."""
    image = Image.fromarray(np.ascontiguousarray(lookup)[None])
    return np.asarray(image.resize((length, 1), Image.Resampling.NEAREST))[0]
