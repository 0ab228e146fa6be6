"""Drawn rectangles are what transforms make of whole masks."""

import itertools

import psis_d2  # noqa: F401
from psis_d2.data.drawing import draw_masks

import numpy as np
import pytest
from detectron2.data import transforms as T
from pycocotools import mask as mask_util

HEIGHT, WIDTH = 30, 44
AUGMENTATIONS = {
    "none": T.NoOpTransform(),
    "larger": T.ResizeTransform(HEIGHT, WIDTH, 53, 81),
    "smaller": T.ResizeTransform(HEIGHT, WIDTH, 11, 17),
    "mirrored": T.HFlipTransform(WIDTH),
    "upside down": T.VFlipTransform(HEIGHT),
    "cut": T.CropTransform(5, 7, 20, 16),
    "turned": T.RotationTransform(HEIGHT, WIDTH, 20),
}


def random_polygon(rng):
    """Corners anywhere, also outside of the image; the outline may cross itself."""
    corners = rng.uniform(-10, 55, (rng.integers(3, 9), 2))
    return corners.round(int(rng.integers(0, 3))).ravel().tolist()


def random_segmentations(rng):
    """Polygons, several at once, RLEs with and without an empty first run, and no mask."""
    masks = [np.zeros((HEIGHT, WIDTH), np.uint8) for _ in range(4)]
    y, x = rng.integers(0, 20, 2)
    masks[0][y : y + 9, x : x + 9] = rng.random((9, 9)) > 0.5
    masks[1][:] = 1
    masks[2][rng.integers(HEIGHT), rng.integers(WIDTH)] = 1
    masks[3][-1, -1] = masks[3][0, 0] = 1
    rles = [mask_util.encode(np.asfortranarray(mask)) for mask in masks]
    texts = [{**rle, "counts": rle["counts"].decode()} for rle in rles]
    polygons = [[random_polygon(rng)], [random_polygon(rng) for _ in range(3)]]
    return [*polygons, None, *texts]


def literal(segmentation, transforms, size):
    """The whole mask: bool of `size`."""
    if segmentation is None:
        return np.zeros(size, dtype=bool)
    if isinstance(segmentation, dict):
        return transforms.apply_segmentation(mask_util.decode(segmentation)).astype(bool)
    polygons = [
        transforms.apply_coords(np.array(polygon).reshape(-1, 2)).ravel().tolist()
        for polygon in segmentation
    ]
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, *size))).astype(bool)


@pytest.mark.parametrize(
    "names",
    [
        *((name,) for name in AUGMENTATIONS),
        *itertools.permutations(["mirrored", "cut", "upside down"], 2),
        ("larger",),
        ("smaller",),
    ],
    ids=" then ".join,
)
def test_every_augmentation(names):
    rng = np.random.default_rng(len(names))
    transforms = T.TransformList([AUGMENTATIONS[name] for name in names])
    size = transforms.apply_image(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).shape[:2]
    for _ in range(12):
        segmentations = random_segmentations(rng)
        drawn = draw_masks(segmentations, transforms, size)
        expected = np.stack([literal(one, transforms, size) for one in segmentations])
        np.testing.assert_array_equal(drawn.tensor.numpy(), expected)
        assert drawn.nonempty().tolist() == expected.any(axis=(1, 2)).tolist()


def test_the_segmentation_stays_what_it_is():
    polygon = np.array([4.0, 4, 20, 4, 20, 20])
    before = polygon.copy()
    draw_masks([[polygon]], T.TransformList([AUGMENTATIONS["larger"]]), (53, 81))
    assert (polygon == before).all()
