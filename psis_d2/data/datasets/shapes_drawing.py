"""Outlines, pattern textures and colors: the vocabulary that PartialShapes is drawn with.

Lengths are in pixels of the image, or in radii where an outline is meant: every outline fits into
the unit circle or nearly so (x to the right, y down). Shapes: ``[n, 2]`` points, ``[h, w]`` pixel
arrays. Every random choice comes from the generator that the caller passes in.
"""

from __future__ import annotations

import math

from psis_d2.optional import require

import numpy as np

cv2 = require("cv2")

_SUPERSAMPLING = 4
_FIXED_POINT_BITS = 4  # cv2.fillPoly takes integers: sixteenths of a (supersampled) pixel


def _arc(
    cx: float, cy: float, radius: float, start: float, stop: float, steps: int = 24
) -> np.ndarray:
    """Points of a circular arc from angle ``start`` to ``stop`` in degrees (90 points down)."""
    angle = np.radians(np.linspace(start, stop, steps))
    return np.stack([cx + radius * np.cos(angle), cy + radius * np.sin(angle)], axis=1)


def _polygon(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, dtype=np.float64)


def _rectangle(half_width: float, half_height: float) -> np.ndarray:
    x, y = half_width, half_height
    return _polygon((-x, -y), (x, -y), (x, y), (-x, y))


def _polar(radius_of_angle) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radius = radius_of_angle(angle)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _crescent() -> np.ndarray:
    # The unit disk without a disk of radius .8 around (.5, 0); they cross where x = .61.
    crossing = math.degrees(math.acos(0.61))
    inner = math.degrees(math.acos((0.61 - 0.5) / 0.8))
    outer_arc = _arc(0, 0, 1, crossing, 360 - crossing, 48)
    return np.concatenate([outer_arc, _arc(0.5, 0, 0.8, 360 - inner, inner, 32)])


def _dumbbell() -> np.ndarray:
    radius, center, half_bar = 0.4, 0.62, 0.13
    joint = math.degrees(math.asin(half_bar / radius))
    right = _arc(center, 0, radius, joint - 180, 180 - joint, 32)
    return np.concatenate([right, -right])


def _wave() -> np.ndarray:
    # A band of constant width around one period of a sine.
    x = np.linspace(-0.96, 0.96, 40)
    middle = np.stack([x, -0.52 * np.sin(np.pi * x / 0.96)], axis=1)
    tangent = np.gradient(middle, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
    normal *= 0.2 / np.linalg.norm(normal, axis=1, keepdims=True)
    return np.concatenate([middle + normal, (middle - normal)[::-1]])


def _cross(half_width: float) -> np.ndarray:
    w = half_width
    quarter = _polygon((w, -1), (w, -w), (1, -w))
    turns = [np.array([[0, 1], [-1, 0]]), -np.eye(2), np.array([[0, -1], [1, 0]])]
    return np.concatenate([quarter, *(quarter @ turn for turn in turns)])


OUTLINES: dict[str, list[np.ndarray]] = {
    "disk": [_arc(0, 0, 1, 0, 360, 64)],
    "ellipse": [_arc(0, 0, 1, 0, 360, 64) * (1, 0.6)],
    "square": [_rectangle(0.83, 0.83)],
    "bar": [_rectangle(1, 0.45)],
    "triangle": [_polygon((0, -0.98), (0.96, 0.78), (-0.96, 0.78))],
    "star": [_polar(lambda a: 0.63 + 0.37 * np.cos(5 * (a + np.pi / 2)))],
    "cross": [_cross(0.29)],
    "ring": [_arc(0, 0, 1, 0, 360, 64), _arc(0, 0, 0.6, 0, 360, 48)],
    "crescent": [_crescent()],
    "ell": [
        _polygon(
            (-0.88, -0.88), (-0.33, -0.88), (-0.33, 0.34), (0.88, 0.34), (0.88, 0.88), (-0.88, 0.88)
        )
    ],
    "hexagon": [_arc(0, 0, 1, 0, 360, 7)],
    "capsule": [
        np.concatenate([_arc(0.56, 0, 0.44, -90, 90), _arc(-0.56, 0, 0.44, 90, 270)]),
    ],
    "halfdisk": [_arc(0, 0.5, 1, 180, 360, 40)],
    "blob": [
        _polar(lambda a: 0.78 + 0.13 * np.cos(2 * a - 1.0) + 0.1 * np.cos(3 * a + 0.4)),
    ],
    "trapeze": [_polygon((-0.48, -0.66), (0.48, -0.66), (0.97, 0.66), (-0.97, 0.66))],
    "tee": [
        _polygon(
            *((-0.95, -0.95), (0.95, -0.95), (0.95, -0.45), (0.24, -0.45)),
            *((0.24, 0.95), (-0.24, 0.95), (-0.24, -0.45), (-0.95, -0.45)),
        )
    ],
    "horseshoe": [
        np.concatenate(
            [
                _arc(0, 0, 1, 180, 360, 32),
                _polygon((1, 0.95), (0.52, 0.95)),
                _arc(0, 0, 0.52, 360, 180, 24),
                _polygon((-0.52, 0.95), (-1, 0.95)),
            ]
        )
    ],
    "hourglass": [
        _polygon((-0.9, -0.95), (0.9, -0.95), (0.09, 0), (0.9, 0.95), (-0.9, 0.95), (-0.09, 0))
    ],
    "dumbbell": [_dumbbell()],
    "wave": [_wave()],
}
"""Contours of every shape by name, filled by the even-odd rule: a second contour is a hole."""


def place_outline(
    contours: list[np.ndarray],
    center: tuple[float, float],
    radius: float,
    rotation: float,
    stretch: float,
    flip: bool,
) -> list[np.ndarray]:
    """Move an outline into the image.

    Args:
        contours: unit outline, ``[n, 2]`` each.
        center: x, y in pixels.
        radius: length of the outline's unit in pixels.
        rotation: radians.
        stretch: the outline becomes ``stretch`` times as wide and ``1 / stretch`` times as high
            (aspect ratio ``stretch`` squared) before it is rotated.
        flip: mirror left and right first.
    """
    scale = np.array([-stretch if flip else stretch, 1 / stretch]) * radius
    cos, sin = math.cos(rotation), math.sin(rotation)
    turn = np.array([[cos, sin], [-sin, cos]])
    return [(points * scale) @ turn + np.asarray(center) for points in contours]


def rasterize(contours: list[np.ndarray]) -> tuple[np.ndarray, int, int]:
    """Fill contours by the even-odd rule.

    A pixel belongs to the shape if at least half of its area does.

    Args:
        contours: ``[n, 2]`` each, pixels; pixel (0, 0) covers ``[0, 1) x [0, 1)``.

    Returns:
        The bool mask ``[h, w]`` of a window around the shape and the window's left and top edge;
        the window is not clipped to any image.
    """
    points = np.concatenate(contours)
    left, top = np.floor(points.min(axis=0)).astype(int) - 1
    right, bottom = np.ceil(points.max(axis=0)).astype(int) + 1
    s = _SUPERSAMPLING
    canvas = np.zeros(((bottom - top) * s, (right - left) * s), dtype=np.uint8)
    # cv2 means the center of a pixel where its coordinates are integers, hence the half.
    fixed = [
        np.round(((points - (left, top)) * s - 0.5) * (1 << _FIXED_POINT_BITS)).astype(np.int32)
        for points in contours
    ]
    cv2.fillPoly(canvas, fixed, 1, shift=_FIXED_POINT_BITS)
    coverage = canvas.reshape(bottom - top, s, right - left, s).sum(axis=(1, 3), dtype=np.int32)
    return coverage * 2 >= s * s, int(left), int(top)


def smooth_noise(
    rng: np.random.Generator, height: int, width: int, wavelength: float
) -> np.ndarray:
    """Smooth random field, float32 ``[height, width]``, bumps about ``wavelength`` pixels apart."""
    rows = max(4, math.ceil(2 * height / wavelength) + 2)
    cols = max(4, math.ceil(2 * width / wavelength) + 2)
    coarse = rng.standard_normal((rows, cols), dtype=np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _frac(x: np.ndarray) -> np.ndarray:
    return x - np.floor(x)


def _triangle_wave(x: np.ndarray) -> np.ndarray:
    """Period 1, from 0 up to 1 and back."""
    return 1 - np.abs(2 * _frac(x) - 1)


def _plain(rng, u, v, period):
    return np.zeros_like(u)


def _stripes(rng, u, v, period):
    return _frac(u / period) < 0.5


def _checker(rng, u, v, period):
    return (_frac(u / period) < 0.5) ^ (_frac(v / period) < 0.5)


def _dots(rng, u, v, period):
    return np.hypot(_frac(u / period) - 0.5, _frac(v / period) - 0.5) < 0.3


def _rings(rng, u, v, period):
    # Around a point off to the side, so that an object shows arcs rather than a target.
    cx, cy = rng.uniform(-0.6, 0.6, 2) * u.shape[::-1]
    return _frac(np.hypot(u - cx, v - cy) / period) < 0.5


def _blotch(rng, u, v, period):
    return smooth_noise(rng, *u.shape, wavelength=1.6 * period) > 0.15


def _gradient(rng, u, v, period):
    return _triangle_wave(u / (6 * period))


def _diamond(rng, u, v, period):
    # A net of lines that runs diagonally to the other patterns' axes.
    a, b = (u + v) / (1.5 * period), (u - v) / (1.5 * period)
    return np.maximum(np.abs(_frac(a) - 0.5), np.abs(_frac(b) - 0.5)) > 0.37


def _zigzag(rng, u, v, period):
    return _frac(v / period + 0.8 * _triangle_wave(u / (1.8 * period))) < 0.5


def _speckle(rng, u, v, period):
    height, width = u.shape
    cells = rng.random((math.ceil(height / 1.5), math.ceil(width / 1.5)), dtype=np.float32) < 0.42
    return cv2.resize(cells.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)


_PATTERNS = {
    "plain": _plain,
    "stripes": _stripes,
    "checker": _checker,
    "dots": _dots,
    "rings": _rings,
    "blotch": _blotch,
    "gradient": _gradient,
    "diamond": _diamond,
    "zigzag": _zigzag,
    "speckle": _speckle,
}

PATTERN_KINDS = tuple(_PATTERNS)
"""Names of the ten pattern kinds."""


def pattern(
    kind: str, rng: np.random.Generator, height: int, width: int, period: float, angle: float
) -> np.ndarray:
    """Draw one pattern as a map of where its second color goes.

    Args:
        kind: one of :data:`PATTERN_KINDS`.
        rng: draws the phase and what is irregular.
        height, width: size in pixels.
        period: distance of repetition in pixels.
        angle: radians.

    Returns:
        float32 ``[height, width]`` between 0 (first color) and 1 (second color).
    """
    phase_x, phase_y = rng.uniform(0, 2 * period, 2)
    x = np.arange(width, dtype=np.float32)[None, :] - np.float32(0.5 * width)
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32(0.5 * height)
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    u = cos * x + sin * y + np.float32(phase_x)
    v = cos * y - sin * x + np.float32(phase_y)
    return np.asarray(_PATTERNS[kind](rng, u, v, np.float32(period)), dtype=np.float32)


def hsv_to_rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """Color as float32 ``[3]`` in 0..255. Hue counts turns (any real number), the rest is 0..1."""
    # The closed form of the HSV hexcone: each channel is a clipped triangle wave of the hue.
    offset = (np.array([5.0, 3.0, 1.0]) + 6 * hue) % 6
    ramp = np.clip(np.minimum(offset, 4 - offset), 0, 1)
    return (255 * value * (1 - saturation * ramp)).astype(np.float32)


def shade(rng: np.random.Generator, height: int, width: int, strength: float = 0.15) -> np.ndarray:
    """Brightness factor ``[height, width]``: falls off linearly in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    ramp = np.float32(math.cos(angle)) * x + np.float32(math.sin(angle)) * y
    return 1 + np.float32(0.7 * strength) * ramp


def texture(
    kind: str,
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    colors: tuple[np.ndarray, np.ndarray],
    period: float,
    angle: float,
) -> np.ndarray:
    """A pattern in two colors with slight shading, float32 RGB ``[height, width, 3]``."""
    first, second = colors
    mix = pattern(kind, rng, height, width, period, angle)[:, :, None]
    return (first + mix * (second - first)) * shade(rng, height, width)[:, :, None]
