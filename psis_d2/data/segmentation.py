"""What a ``segmentation`` says: every spelling that is plain, in the two forms that libraries read.

The two forms are a list of polygons ``[x0, y0, x1, y1, ...]`` in pixels (lists or, from a json,
``array("d")``), and a compressed RLE
``{"size": [height, width], "counts": text}``. Exports of labeling tools also have a polygon that is
not in a list, points as pairs, run lengths as floats, and arrays; what they mean is plain, and they
are taken so.
"""

from __future__ import annotations

import itertools
import numbers
from array import array

import numpy as np
from pycocotools import mask as mask_util

# Polygon points further outside than this many image sides cannot be meant: the rasterizer walks
# along every edge, so that one stray 1e9 would take all memory.
REACH = 10
# No outline in an image is as long (pixels); the rasterizer keeps some 40 bytes of every pixel.
LONGEST_OUTLINE = 1e7


def read_segmentation(segmentation, height: int, width: int) -> tuple[list | dict | None, int]:
    """The usable part of a segmentation.

    Args:
        segmentation: anything.
        height: of the image.
        width: of the image.

    Returns:
        Polygons or a compressed RLE that cover at least one pixel, or None; and the number of
        malformed pieces. A segmentation whose pieces are all well-formed but cover no pixel counts
        as one malformed piece.
    """
    if isinstance(segmentation, dict):
        if not segmentation:
            return None, 0
        rle = _read_rle(segmentation, height, width)
        return rle, int(rle is None)
    if isinstance(segmentation, np.ndarray) and segmentation.ndim == 2:
        # As Detectron2 has it, a mask of the image; but two columns are points.
        if segmentation.shape == (height, width):
            return _encode(segmentation)
        segmentation = segmentation.tolist()
    pieces = _pieces(segmentation)
    if pieces is None:
        # An empty text is one more way in which tools write "no mask".
        nothing = segmentation is None or (isinstance(segmentation, str) and not segmentation)
        return None, int(not nothing)
    reach = REACH * max(height, width)
    good = [piece for piece in map(_polygon, pieces) if _is_polygon(piece, reach)]
    bad = len(pieces) - len(good)
    if not any(_has_pixel(piece, height, width) for piece in good):
        return None, max(bad, int(bool(pieces)))
    return good, bad


def polygon_points(segmentation) -> list[list] | None:
    """The flat coordinate lists of a polygon segmentation, in whatever unit and quality.

    None for what is no list of polygons.
    """
    if isinstance(segmentation, dict):
        return None
    pieces = _pieces(segmentation)
    return None if pieces is None else [piece for piece in map(_polygon, pieces) if piece]


def _pieces(segmentation) -> list | None:
    """The polygons of a segmentation, empty ones left out; None for what is no list."""
    if isinstance(segmentation, np.ndarray):
        segmentation = segmentation.tolist()
    if not isinstance(segmentation, (list, tuple)):
        return None
    # So is [[]].
    pieces = [piece for piece in segmentation if not _is_empty(piece)]
    if pieces and all(map(_is_number, pieces)):
        return [pieces]  # a polygon without a list around it
    if len(pieces) > 2 and all(map(_is_pair, pieces)):
        return [pieces]  # its points in pairs
    return pieces


def _polygon(piece) -> list | array | None:
    """The flat coordinates of a piece, which may be an array or have its points in pairs."""
    if type(piece) is array:  # of our own parser
        return piece
    if isinstance(piece, np.ndarray):
        piece = piece.tolist()
    if not isinstance(piece, (list, tuple)):
        return None
    if piece and all(map(_is_pair, piece)):
        return list(itertools.chain.from_iterable(piece))
    return list(piece) if isinstance(piece, tuple) else piece


def _is_empty(piece) -> bool:
    return piece is None or (isinstance(piece, (list, tuple, np.ndarray)) and len(piece) == 0)


def _is_number(value) -> bool:
    return type(value) in (int, float) or (
        isinstance(value, numbers.Real) and not isinstance(value, bool)
    )


def _is_pair(value) -> bool:
    if isinstance(value, np.ndarray):
        return value.shape == (2,)
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_number, value))


def _is_polygon(points: list | None, reach: float) -> bool:
    if points is None or len(points) < 6 or len(points) % 2:
        return False
    # The set of types is by far the fastest test, and nearly always enough.
    if not set(map(type, points)) <= {int, float} and not all(map(_is_number, points)):
        return False
    # min and max may overlook a NaN, depending on its place; a sum does not. Integers that no float
    # holds fail the comparisons and never reach it.
    if not (-reach <= min(points) and max(points) <= reach):
        return False
    total = sum(points)
    if total != total:
        return False
    longest = len(points) * (max(points) - min(points))
    return longest <= LONGEST_OUTLINE or _outline(points) <= LONGEST_OUTLINE


def _outline(points: list) -> float:
    """Length of a closed polygon, along the axes."""
    corners = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).sum())


def _has_pixel(polygon: list, height: int, width: int) -> bool:
    (rle,) = mask_util.frPyObjects([polygon], height, width)
    return mask_util.area(rle) > 0


def _encode(mask: np.ndarray) -> tuple[dict | None, int]:
    if mask.dtype.kind not in "bui" or mask.min() < 0 or mask.max() > 1:
        return None, 1
    if not mask.any():
        return None, 1
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}, 0


def _read_rle(rle: dict, height: int, width: int) -> dict | None:
    size, counts = (_listed(rle.get(key)) for key in ("size", "counts"))
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        return None
    size = [height, width]
    if isinstance(counts, (list, tuple)):
        if not counts or not all(_is_number(run) and 0 <= run <= height * width for run in counts):
            return None
        runs = [int(run) for run in counts]
        if runs != list(counts) or sum(runs) != height * width or not any(runs[1::2]):
            return None
        packed = mask_util.frPyObjects({"size": size, "counts": runs}, height, width)
        return {"size": size, "counts": packed["counts"].decode("ascii")}
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", errors="replace")
    if not isinstance(counts, str):
        return None
    runs = rle_runs(counts)
    if runs is None or runs.sum() != height * width or not runs[1::2].any():
        return None
    return {"size": size, "counts": counts}


def _listed(value):
    return value.tolist() if isinstance(value, np.ndarray) else value


def rle_runs(counts: str) -> np.ndarray | None:
    """Run lengths of a compressed RLE, or None if the text is none.

    The format: each number is written in base 32, lowest five bits first, one character
    ``chr(48 + bits)`` each, 32 added on all but the last; bit 16 of the last one is the sign. From
    the fourth number on, what is written is the difference to the run two before.
    """
    try:
        codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        return None
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    last = np.flatnonzero(codes < 32)
    first = np.concatenate([[0], last[:-1] + 1])
    if (last - first).max() > 6:
        return None
    place = 5 * (np.arange(len(codes)) - np.repeat(first, last - first + 1))
    values = np.add.reduceat((codes & 31) << place, first)
    values -= np.where(codes[last] & 16, np.int64(1) << (place[last] + 5), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return None if values.min() < 0 else values
