"""One image of PartialShapes 2: objects of several parts, each painted in its own way.

As an animal or a vehicle has parts of other colors, a category is three parts that differ in
pattern and hue; which, and where the parts lie in the object, is fixed in the *catalog*. The
background is painted with the looks of those very parts. A box's content therefore does not fall
into "object" and "rest" by color alone, which is what GrabCut needs, while what belongs together
can be learned. Outlines, poses and occlusion are those of the first edition
(:mod:`psis_d2.data.datasets.shapes_scene`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from psis_d2.data.datasets import shapes_drawing as drawing
from psis_d2.data.datasets import shapes_scene as scene
from psis_d2.data.datasets.shapes_scene import Appearance, PlacedObject, Pose
from psis_d2.optional import require

import numpy as np

cv2 = require("cv2")

SPLITS = ("train", "val", "test")
LAYOUTS = ("bands", "shells", "sides", "spots")
"""How the parts of an object lie: see :func:`part_map`."""

CATALOG_SEED = 11
EDITION = 2  # in every image's seed: none is the first edition's in other paint
_SATURATION = 0.75
_SHARED_LOOKS = 0.3  # share of background pieces that look like a part of some object
_REGIONS = (0, 3)  # half-open, like all integer ranges below
_REGION_SHARE = (0.15, 0.4)
_REGION_WAVELENGTH = 64.0
_DISTRACTORS = (0, 2)


@dataclass(frozen=True)
class PartedAppearance:
    """How a category is painted.

    Attributes:
        layout: one of :data:`LAYOUTS`.
        angle: direction of the layout in the object, radians.
        looks: of its three parts.
    """

    layout: str
    angle: float
    looks: tuple[Appearance, Appearance, Appearance]


@cache
def catalog() -> tuple[PartedAppearance, ...]:
    """Appearance of the 20 categories, in the order of ``SHAPE_NAMES``.

    The first part looks as the category does in the first edition. The others have a hue of the
    same side, seen or unseen, and any pattern.
    """
    rng = np.random.default_rng(CATALOG_SEED)
    entries = []
    for number, look in enumerate(scene.catalog()):
        side = number // 10
        looks = [look]
        for _ in range(2):
            hue = (2 * int(rng.integers(10)) + side) / 20
            looks.append(
                Appearance(
                    kind=drawing.PATTERN_KINDS[rng.integers(len(drawing.PATTERN_KINDS))],
                    hue=hue,
                    second_hue=(hue + 0.5 + rng.uniform(-0.15, 0.15)) % 1,
                    second_value=rng.uniform(0.35, 0.65),
                    angle=rng.uniform(0, np.pi),
                    saturation=_SATURATION,
                )
            )
        angle = rng.uniform(0, 2 * np.pi)
        entries.append(PartedAppearance(LAYOUTS[number % len(LAYOUTS)], angle, tuple(looks)))
    return tuple(entries)


def object_coordinates(pose: Pose, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixels of an image lie in an object's outline, before it was placed.

    Args:
        pose: of the object.
        size: height and width of the image.

    Returns:
        x and y in radii, float64 ``[size, size]`` each: what ``drawing.place_outline`` maps to the
        pixel's center.
    """
    rows, columns = np.mgrid[:size, :size] + 0.5
    dx, dy = columns - pose.center[0], rows - pose.center[1]
    cos, sin = math.cos(pose.rotation), math.sin(pose.rotation)
    x = (cos * dx + sin * dy) / (pose.radius * pose.stretch)
    y = (cos * dy - sin * dx) * pose.stretch / pose.radius
    return (-x if pose.flip else x), y


def part_map(layout: str, angle: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which part of an object lies where.

    "bands" divides by two parallel lines; "shells" has a core, a ring around it and the rest;
    "sides" has a stripe through the middle and what lies on its two sides; "spots" has two disks
    on the rest.

    Args:
        layout: one of :data:`LAYOUTS`.
        angle: direction, radians.
        x, y: position in the object, radii.

    Returns:
        int64 of the same shape: 0, 1 or 2.
    """
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = cos * x + sin * y, cos * y - sin * x
    if layout == "bands":
        first, second = u > 0.35, u < -0.35
    elif layout == "shells":
        radius = np.hypot(u, v)
        first, second = radius > 0.72, radius < 0.4
    elif layout == "sides":
        first, second = np.abs(v) < 0.25, v >= 0.25
    else:
        first, second = np.hypot(u - 0.5, v) < 0.38, np.hypot(u + 0.5, v) < 0.38
    return np.where(first, 1, np.where(second, 2, 0))


def _background_look(rng: np.random.Generator) -> Appearance:
    if rng.random() < _SHARED_LOOKS:
        looks = catalog()[rng.integers(len(catalog()))].looks
        return looks[rng.integers(len(looks))]
    return scene.random_appearance(rng, _SATURATION)


def _paint_background(rng: np.random.Generator) -> np.ndarray:
    """Base, warped regions and unlabeled shapes of one look each: float32 RGB ``[H, W, 3]``."""
    size = scene.IMAGE_SIZE
    canvas = scene.paint_texture(rng, _background_look(rng), size, size)
    for _ in range(rng.integers(*_REGIONS)):
        field = drawing.smooth_noise(rng, size, size, _REGION_WAVELENGTH)
        region = field > np.quantile(field, 1 - rng.uniform(*_REGION_SHARE))
        scene.paint_mask(rng, canvas, region, _background_look(rng))
    for _ in range(rng.integers(*_DISTRACTORS)):
        shape = scene.SHAPE_NAMES[rng.integers(len(scene.SHAPE_NAMES))]
        mask, _ = scene.rasterize_shape(shape, scene.draw_pose(rng, []))
        scene.paint_mask(rng, canvas, mask, _background_look(rng))
    return canvas


def _paint_object(rng: np.random.Generator, canvas: np.ndarray, item: PlacedObject) -> None:
    appearance = catalog()[item.category_id - 1]
    x, y = object_coordinates(item.pose, len(canvas))
    parts = part_map(appearance.layout, appearance.angle, x, y)
    for number, look in enumerate(appearance.looks):
        scene.paint_mask(rng, canvas, item.mask & (parts == number), look)


def compose_image(seed: int, split: str, index: int) -> tuple[np.ndarray, list[PlacedObject]]:
    """Draw image ``index`` of a split.

    Args:
        seed: non-negative seed of the data set.
        split: ``train``, ``val`` or ``test``.
        index: position in the split. The image depends on nothing but these three.

    Returns:
        RGB image, uint8 ``[128, 128, 3]``, and its objects in the order of painting.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index, EDITION])
    canvas = _paint_background(rng)
    objects = scene.place_objects(rng)
    for item in objects:
        _paint_object(rng, canvas, item)
    return scene.finish(rng, canvas), objects


def render_category(name: str, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """One category alone: RGB uint8 ``[size, size, 3]`` on gray and its mask ``[size, size]``."""
    pose = Pose((size / 2, size / 2), radius=0.46 * size, rotation=0, stretch=1, flip=False)
    mask, area = scene.rasterize_shape(name, pose, size)
    canvas = np.full((size, size, 3), 40, dtype=np.float32)
    item = PlacedObject(scene.SHAPE_NAMES.index(name) + 1, mask, area, pose)
    _paint_object(np.random.default_rng(CATALOG_SEED), canvas, item)
    return np.clip(np.round(canvas), 0, 255).astype(np.uint8), mask
