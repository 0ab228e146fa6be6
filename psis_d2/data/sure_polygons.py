"""Tell good polygons from those that need a closer look, many at a time.

Rasterizing every polygon of a large data set only to see whether it covers a pixel takes most of
the time of reading it. For nearly all, one column of pixels is proof enough.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

# The COCO code's rasterizer works on a grid of so many points a pixel; along a side.
_GRID = 5
# Its rounding moves where an outline crosses a column by less than 2 grid points. Two crossings
# that lie this far apart are in different pixels, whatever it rounds: 5 + 2 * 2.
_APART = 9
# Columns that are tried, as shares of a polygon's width.
_COLUMNS = (0.5, 0.25, 0.75)
_AT_A_TIME = 20_000


def surely_masks(
    polygons: Sequence[array], sizes: np.ndarray, reach: float, longest: float
) -> np.ndarray:
    """Which polygons are surely well-formed and surely cover a pixel of their image.

    Args:
        polygons: N arrays of doubles x0, y0, x1, y1, ...
        sizes: int [N, 2], height and width of their images.
        reach: in image sides, how far outside of the image a coordinate may be.
        longest: outline, in pixels.

    Returns:
        bool [N]; false says nothing.
    """
    sure = np.zeros(len(polygons), dtype=bool)
    for first in range(0, len(polygons), _AT_A_TIME):
        window = slice(first, first + _AT_A_TIME)
        part, size = polygons[window], sizes[window]
        good = _well_formed(part, size, reach, longest)
        found = np.zeros(len(part), dtype=bool)
        for share in _COLUMNS:
            places = np.flatnonzero(good & ~found)
            if len(places):
                found[places] = _cover([part[i] for i in places], size[places], share)
        sure[window] = found
    return sure


def _join(polygons: Sequence[array]) -> tuple[np.ndarray, np.ndarray]:
    """All coordinates, and how many each polygon has."""
    lengths = np.fromiter(map(len, polygons), dtype=np.int64, count=len(polygons))
    return np.frombuffer(b"".join(polygons), dtype=np.float64), lengths


def _well_formed(
    polygons: Sequence[array], sizes: np.ndarray, reach: float, longest: float
) -> np.ndarray:
    flat, lengths = _join(polygons)
    good = (lengths >= 6) & (lengths % 2 == 0)
    starts = np.cumsum(lengths) - lengths
    # Comparisons with a NaN are false, and reductions hand it on.
    low, high = np.minimum.reduceat(flat, starts), np.maximum.reduceat(flat, starts)
    limit = reach * sizes.max(axis=1)
    with np.errstate(over="ignore", invalid="ignore"):  # numbers that are no coordinates
        return good & (low >= -limit) & (high <= limit) & (lengths * (high - low) <= longest)


def _cover(polygons: Sequence[array], sizes: np.ndarray, share: float) -> np.ndarray:
    """Whether the first two crossings of one column are clearly apart.

    A pixel belongs to a mask if an odd number of crossings lie above it in its column. There is an
    even number of them, as the outline is closed; if the second is in another pixel than the first,
    those between belong to the mask.
    """
    flat, lengths = _join(polygons)
    grid = np.trunc(_GRID * flat + 0.5)
    x, y = grid[::2], grid[1::2]
    counts = lengths // 2
    ends = np.cumsum(counts)
    starts = ends - counts
    following = np.arange(1, len(x) + 1)
    following[ends - 1] = starts
    low, high = np.minimum.reduceat(x, starts), np.maximum.reduceat(x, starts)
    column = np.floor((low + share * (high - low)) / _GRID).clip(0, sizes[:, 1] - 1)
    line = _GRID * column + 2  # what crosses from here to the next point of the grid counts
    left = x <= np.repeat(line, counts)
    edges = np.flatnonzero(left != left[following])
    if not len(edges):
        return np.zeros(len(polygons), dtype=bool)
    owner = np.searchsorted(ends, edges, side="right")
    x0, y0, x1, y1 = x[edges], y[edges], x[following[edges]], y[following[edges]]
    crossing = y0 + (y1 - y0) * (line[owner] + 0.5 - x0) / (x1 - x0)
    crossing = crossing.clip(0, _GRID * sizes[owner, 0])
    order = np.lexsort((crossing, owner))
    owner, crossing = owner[order], crossing[order]
    firsts = np.flatnonzero(np.diff(owner, prepend=-1))
    seconds = np.minimum(firsts + 1, len(owner) - 1)
    apart = (owner[seconds] == owner[firsts]) & (crossing[seconds] - crossing[firsts] >= _APART)
    result = np.zeros(len(polygons), dtype=bool)
    result[owner[firsts]] = apart
    return result
