"""One PartialShapes image: what stands where, what covers what, and how it is painted.

The appearance of a category (pattern kind, hues) is fixed in the *catalog*; an image draws pose,
period, jitter and clutter. The background uses the same ten pattern kinds in random hues, so
"textured" does not mean "object", and an unseen category's texture is background wherever a method
is taught that everything but the masked objects is background.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from psis_d2.data.datasets import shapes_drawing as drawing
from psis_d2.data.splits import SHAPES_SEEN_NAMES as SEEN_SHAPES
from psis_d2.data.splits import SHAPES_UNSEEN_NAMES as UNSEEN_SHAPES
from psis_d2.optional import require

import numpy as np

cv2 = require("cv2")

SHAPE_NAMES = (*SEEN_SHAPES, *UNSEEN_SHAPES)
"""The 20 categories; the category at position ``i`` has id ``i + 1`` in the json."""

IMAGE_SIZE = 128
SPLITS = ("train", "val")
MIN_VISIBLE = 0.5
"""Every object shows at least this share of its area (what lies outside the image is hidden)."""

CATALOG_SEED = 7
_RADIUS = (16.0, 34.0)
_MAX_ROTATION = math.radians(29)
_STRETCH = (0.85, 1.15)
_OBJECTS = (3, 7)  # half-open, like all integer ranges below
_DISTRACTORS = (0, 4)
_REGIONS = (0, 3)
_OVERLAP_PROBABILITY = 0.8
_OVERLAP_DISTANCE = (0.55, 1.0)  # of the sum of both radii
_PLACEMENT_TRIES = 20
_PERIOD = (6.0, 10.0)
_ANGLE_JITTER = math.radians(20)
_HUE_JITTER_SD = 0.04
_SATURATION = 0.75
_BACKGROUND_SATURATION = 0.55
_SATURATION_JITTER = 0.15
_VALUE = 0.82
_VALUE_JITTER = 0.2
_BLUR_SD = 0.6
_NOISE_SD = 8.0


@dataclass(frozen=True)
class Appearance:
    """How a category, or a piece of clutter, is painted.

    Attributes:
        kind: pattern kind.
        hue: main hue in turns.
        second_hue: hue of the pattern's second color in turns.
        second_value: brightness of the second color relative to the main one.
        angle: direction of the pattern in radians.
        saturation: mean saturation of both colors.
    """

    kind: str
    hue: float
    second_hue: float
    second_value: float
    angle: float
    saturation: float


@dataclass(frozen=True)
class Pose:
    """How an outline is placed: the arguments of ``drawing.place_outline``."""

    center: tuple[float, float]
    radius: float
    rotation: float
    stretch: float
    flip: bool


@dataclass
class PlacedObject:
    """An object of an image.

    Attributes:
        category_id: 1 to 20.
        mask: visible part, bool ``[H, W]``.
        full_area: pixels of the whole shape, covered parts and parts outside the image included.
        pose: where the shape lies.
    """

    category_id: int
    mask: np.ndarray
    full_area: int
    pose: Pose


@cache
def catalog() -> tuple[Appearance, ...]:
    """Appearance of the 20 categories, in the order of :data:`SHAPE_NAMES`.

    Each pattern kind occurs once among the seen and once among the unseen categories; the 20 main
    hues are evenly spaced and every other one is seen.
    """
    rng = np.random.default_rng(CATALOG_SEED)
    kinds = [rng.permutation(10), rng.permutation(10)]
    hues = [rng.permutation(10), rng.permutation(10)]
    entries = []
    for side in range(2):
        for kind, hue in zip(kinds[side], hues[side], strict=True):
            main = (2 * hue + side) / 20
            entries.append(
                Appearance(
                    kind=drawing.PATTERN_KINDS[kind],
                    hue=main,
                    second_hue=(main + 0.5 + rng.uniform(-0.15, 0.15)) % 1,
                    second_value=rng.uniform(0.35, 0.65),
                    angle=rng.uniform(0, np.pi),
                    saturation=_SATURATION,
                )
            )
    return tuple(entries)


def random_appearance(rng: np.random.Generator, saturation: float) -> Appearance:
    """A look that is no category's."""
    hue = rng.random()
    return Appearance(
        kind=drawing.PATTERN_KINDS[rng.integers(len(drawing.PATTERN_KINDS))],
        hue=hue,
        second_hue=hue + 0.5 + rng.uniform(-0.15, 0.15),
        second_value=rng.uniform(0.35, 0.65),
        angle=rng.uniform(0, np.pi),
        saturation=saturation,
    )


def paint_texture(
    rng: np.random.Generator, look: Appearance, height: int, width: int
) -> np.ndarray:
    """One specimen of an appearance, with its jitter: float32 RGB ``[height, width, 3]``."""
    hue_shift = rng.normal(0, _HUE_JITTER_SD)
    saturation = min(
        1.0, look.saturation * rng.uniform(1 - _SATURATION_JITTER, 1 + _SATURATION_JITTER)
    )
    value = _VALUE * rng.uniform(1 - _VALUE_JITTER, 1 + _VALUE_JITTER)
    colors = (
        drawing.hsv_to_rgb(look.hue + hue_shift, saturation, value),
        drawing.hsv_to_rgb(look.second_hue + hue_shift, saturation, value * look.second_value),
    )
    return drawing.texture(
        look.kind,
        rng,
        height,
        width,
        colors=colors,
        period=rng.uniform(*_PERIOD),
        angle=look.angle + rng.uniform(-_ANGLE_JITTER, _ANGLE_JITTER),
    )


def draw_pose(rng: np.random.Generator, earlier: list[Pose]) -> Pose:
    """A pose; with the overlap probability it leans on an earlier object."""
    radius = rng.uniform(*_RADIUS)
    low, high = 0.6 * radius, IMAGE_SIZE - 0.6 * radius
    if earlier and rng.random() < _OVERLAP_PROBABILITY:
        other = earlier[rng.integers(len(earlier))]
        distance = rng.uniform(*_OVERLAP_DISTANCE) * (radius + other.radius)
        direction = rng.uniform(0, 2 * np.pi)
        x = min(max(other.center[0] + distance * math.cos(direction), low), high)
        y = min(max(other.center[1] + distance * math.sin(direction), low), high)
    else:
        x, y = rng.uniform(low, high, 2)
    return Pose(
        center=(x, y),
        radius=radius,
        rotation=rng.uniform(-_MAX_ROTATION, _MAX_ROTATION),
        stretch=rng.uniform(*_STRETCH),
        flip=bool(rng.integers(2)),
    )


def rasterize_shape(shape: str, pose: Pose, size: int = IMAGE_SIZE) -> tuple[np.ndarray, int]:
    """The mask in a square image, bool ``[size, size]``, and the area with what lies outside."""
    contours = drawing.place_outline(
        drawing.OUTLINES[shape], pose.center, pose.radius, pose.rotation, pose.stretch, pose.flip
    )
    window, left, top = drawing.rasterize(contours)
    mask = np.zeros((size, size), dtype=bool)
    y0, y1 = max(top, 0), min(top + window.shape[0], size)
    x0, x1 = max(left, 0), min(left + window.shape[1], size)
    mask[y0:y1, x0:x1] = window[y0 - top : y1 - top, x0 - left : x1 - left]
    return mask, int(window.sum())


def place_objects(rng: np.random.Generator) -> list[PlacedObject]:
    """Draw categories and poses; later objects cover earlier ones.

    A placement that would leave any object, itself included, less than :data:`MIN_VISIBLE` visible
    is refused and drawn anew; after 20 refusals the object is left out.
    """
    placed: list[PlacedObject] = []
    poses: list[Pose] = []
    for _ in range(rng.integers(*_OBJECTS)):
        category = int(rng.integers(len(SHAPE_NAMES)))
        for _ in range(_PLACEMENT_TRIES):
            pose = draw_pose(rng, poses)
            mask, full_area = rasterize_shape(SHAPE_NAMES[category], pose)
            remaining = [item.mask & ~mask for item in placed]
            visible = [*remaining, mask]
            areas = [*(item.full_area for item in placed), full_area]
            if all(v.sum() >= MIN_VISIBLE * a for v, a in zip(visible, areas, strict=True)):
                for item, rest in zip(placed, remaining, strict=True):
                    item.mask = rest
                placed.append(PlacedObject(category + 1, mask, full_area, pose))
                poses.append(pose)
                break
    return placed


def paint_mask(
    rng: np.random.Generator, canvas: np.ndarray, mask: np.ndarray, look: Appearance
) -> None:
    """Paint an appearance where the mask ``[H, W]`` is set."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(ys):
        return
    window = np.s_[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
    part = mask[window]
    canvas[window][part] = paint_texture(rng, look, *part.shape)[part]


def _paint_background(rng: np.random.Generator) -> np.ndarray:
    """Base texture, warped regions and unlabeled shapes: float32 RGB ``[H, W, 3]``."""
    size = IMAGE_SIZE
    canvas = paint_texture(rng, random_appearance(rng, _BACKGROUND_SATURATION), size, size)
    for _ in range(rng.integers(*_REGIONS)):
        field = drawing.smooth_noise(rng, size, size, wavelength=96)
        region = field > np.quantile(field, rng.uniform(0.55, 0.8))
        paint_mask(rng, canvas, region, random_appearance(rng, _BACKGROUND_SATURATION))
    for _ in range(rng.integers(*_DISTRACTORS)):
        shape = SHAPE_NAMES[rng.integers(len(SHAPE_NAMES))]
        mask, _ = rasterize_shape(shape, draw_pose(rng, []))
        paint_mask(rng, canvas, mask, random_appearance(rng, _BACKGROUND_SATURATION))
    return canvas


def compose_image(seed: int, split: str, index: int) -> tuple[np.ndarray, list[PlacedObject]]:
    """Draw image ``index`` of a split.

    Args:
        seed: non-negative seed of the data set.
        split: ``train`` or ``val``.
        index: position in the split. The image depends on nothing but these three.

    Returns:
        RGB image, uint8 ``[128, 128, 3]``, and its objects in the order of painting.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    canvas = _paint_background(rng)
    objects = place_objects(rng)
    for item in objects:
        paint_mask(rng, canvas, item.mask, catalog()[item.category_id - 1])
    return finish(rng, canvas), objects


def finish(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Blur and noise: float32 RGB ``[H, W, 3]`` to uint8."""
    canvas = cv2.GaussianBlur(canvas, (3, 3), _BLUR_SD)
    canvas += _NOISE_SD * rng.standard_normal(canvas.shape, dtype=np.float32)
    return np.clip(np.round(canvas), 0, 255).astype(np.uint8)


def render_category(name: str, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """One category alone: RGB uint8 ``[size, size, 3]`` on gray and its mask ``[size, size]``."""
    pose = Pose((size / 2, size / 2), radius=0.46 * size, rotation=0, stretch=1, flip=False)
    mask, _ = rasterize_shape(name, pose, size)
    canvas = np.full((size, size, 3), 40, dtype=np.float32)
    look = catalog()[SHAPE_NAMES.index(name)]
    paint_mask(np.random.default_rng(CATALOG_SEED), canvas, mask, look)
    return np.clip(np.round(canvas), 0, 255).astype(np.uint8), mask
