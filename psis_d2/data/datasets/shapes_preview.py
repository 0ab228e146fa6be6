"""A picture of PartialShapes: images with boxes, their masks, and the twenty categories."""

from __future__ import annotations

from psis_d2.data.datasets.partial_shapes import EDITIONS, VERSION
from psis_d2.data.datasets.shapes_scene import IMAGE_SIZE, SEEN_SHAPES, SHAPE_NAMES
from psis_d2.optional import require

import numpy as np

cv2 = require("cv2")

_WHITE = (255, 255, 255)
_SEEN_COLOR = (40, 200, 60)
_UNSEEN_COLOR = (225, 50, 60)
_GRAY = (40, 40, 40)


def _enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    return np.ascontiguousarray(image.repeat(scale, axis=0).repeat(scale, axis=1))


def _draw_image(seed: int, split: str, index: int, scale: int, version: str) -> np.ndarray:
    """An image with its boxes above the same image with its masks."""
    image, objects = EDITIONS[version].compose_image(seed, split, index)
    boxed, masked = _enlarge(image, scale), _enlarge(image, scale)
    for item in objects:
        mask = _enlarge(item.mask.astype(np.uint8), scale)
        x, y, width, height = cv2.boundingRect(mask)
        cv2.rectangle(boxed, (x, y), (x + width - 1, y + height - 1), _WHITE, 1)
        seen = SHAPE_NAMES[item.category_id - 1] in SEEN_SHAPES
        color = np.array(_SEEN_COLOR if seen else _UNSEEN_COLOR)
        masked[mask > 0] = (0.35 * masked[mask > 0] + 0.65 * color).astype(np.uint8)
        outline, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(masked, outline, -1, _WHITE, 1)
    gap = np.zeros((4, boxed.shape[1], 3), np.uint8)
    return np.concatenate([boxed, gap, masked])


def _draw_category(name: str, scale: int, version: str) -> np.ndarray:
    icon, _ = EDITIONS[version].render_category(name, 64)
    tile = np.full((64 + 14, 76, 3), _GRAY[0], np.uint8)
    tile[2 : 2 + 64, 6 : 6 + 64] = icon
    tile = _enlarge(tile, scale)
    color = (120, 255, 120) if name in SEEN_SHAPES else (255, 130, 130)
    at = (6 * scale, tile.shape[0] - 4 * scale)
    cv2.putText(tile, name, at, cv2.FONT_HERSHEY_SIMPLEX, 0.23 * scale, color, 1, cv2.LINE_AA)
    return tile


def draw_preview(
    seed: int = 0, split: str = "val", count: int = 8, scale: int = 2, version: str = VERSION
) -> np.ndarray:
    """Draw the first images of a split and the catalog.

    Returns:
        RGB uint8: images with boxes on top, their masks (seen green, unseen red) in the middle, the
        categories below.
    """
    columns = [_draw_image(seed, split, index, scale, version) for index in range(count)]
    top = np.concatenate(columns, axis=1)
    half = len(SHAPE_NAMES) // 2
    rows = [
        np.concatenate([_draw_category(name, scale, version) for name in names], axis=1)
        for names in (SHAPE_NAMES[:half], SHAPE_NAMES[half:])
    ]
    bottom = np.concatenate(rows)
    width = max(count * IMAGE_SIZE * scale, bottom.shape[1])
    padded = []
    for part in (top, bottom):
        left = (width - part.shape[1]) // 2
        right = width - part.shape[1] - left
        padded.append(np.pad(part, ((0, 6), (left, right), (0, 0)), constant_values=_GRAY[0]))
    return np.concatenate(padded)
