"""Masks as the polygons that labeling tools edit."""

from __future__ import annotations

from dataclasses import dataclass

from psis_d2.optional import require

import numpy as np

cv2 = require("cv2")

# Cells a pixel's side has while its outline is traced: the centers of the outermost cells then
# round to the pixel's own edges.
_CELLS = 3


@dataclass(frozen=True)
class Outline:
    """A mask's outline."""

    polygons: list[list[float]]
    """One ``[x0, y0, x1, y1, ...]`` a part, in pixels; a pixel covers [x, x + 1] x [y, y + 1]."""
    holes: int
    """How many holes the mask has. COCO's polygons cannot have any: they are filled."""


def mask_to_polygons(mask: np.ndarray, tolerance: float = 1.0) -> Outline:
    """The outline of a mask.

    It runs along the edges of the pixels and is then simplified (Douglas and Peucker): no point of
    it is farther than `tolerance` from the result. A part that would keep fewer than three points
    keeps all of them.

    Args:
        mask: bool [H, W].
        tolerance: in pixels; with 0, the polygons cover exactly the mask with its holes filled.

    Returns:
        Polygons of all parts, none for an empty mask.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if len(rows) == 0:
        return Outline([], 0)
    top, left = int(rows[0]), int(columns[0])
    window = mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8)
    cells = window.repeat(_CELLS, axis=0).repeat(_CELLS, axis=1)
    contours, hierarchy = cv2.findContours(cells, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    polygons, holes = [], 0
    for contour, (_, _, _, parent) in zip(contours, hierarchy.reshape(-1, 4), strict=True):
        if parent >= 0:
            holes += 1
            continue
        edges = np.rint((contour[:, 0] + 0.5) / _CELLS).astype(np.float32) + (left, top)
        simple = cv2.approxPolyDP(edges.astype(np.float32)[:, None], tolerance, True)[:, 0]
        chosen = simple if len(simple) >= 3 else edges
        polygons.append([float(v) for v in chosen.ravel()])
    return Outline(polygons, holes)
