"""Masks as polygons."""

from psis_d2.inference.polygons import mask_to_polygons

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_util


def rasterize(polygons, shape):
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, *shape))).astype(bool)


def blob(seed, shape=(80, 100)):
    noise = np.random.default_rng(seed).random(shape).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 6)
    return smooth > np.quantile(smooth, 0.7)


def without_holes(mask):
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(mask.shape, np.uint8), outlines, -1, 1, -1).astype(bool)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_a_rectangle_by_hand():
    mask = np.zeros((10, 12), bool)
    mask[2:6, 3:9] = True
    outline = mask_to_polygons(mask)
    assert outline.holes == 0
    (polygon,) = outline.polygons
    corners = {tuple(point) for point in np.array(polygon).reshape(-1, 2)}
    assert corners == {(3, 2), (9, 2), (9, 6), (3, 6)}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("tolerance, least", [(0, 1.0), (1, 0.95), (2, 0.9)])
def test_polygons_cover_the_mask_with_its_holes_filled(seed, tolerance, least):
    mask = blob(seed)
    outline = mask_to_polygons(mask, tolerance)
    assert iou(rasterize(outline.polygons, mask.shape), without_holes(mask)) >= least


def test_simplifying_saves_points():
    exact, simple = (mask_to_polygons(blob(0), x).polygons for x in (0, 1.5))
    assert sum(map(len, simple)) < sum(map(len, exact)) / 2
    assert len(exact) == len(simple)


def test_parts_and_holes_are_counted():
    mask = np.zeros((40, 60), bool)
    mask[5:25, 5:25] = True
    mask[10:15, 10:15] = False
    mask[18:21, 18:21] = False
    mask[5:9, 40:50] = True
    outline = mask_to_polygons(mask)
    assert (len(outline.polygons), outline.holes) == (2, 2)


def test_masks_at_the_border_and_of_one_pixel():
    full = np.ones((6, 7), bool)
    assert rasterize(mask_to_polygons(full).polygons, (6, 7)).all()
    dot = np.zeros((6, 7), bool)
    dot[2, 3] = True
    (polygon,) = mask_to_polygons(dot, tolerance=3).polygons
    assert len(polygon) >= 6
    assert mask_to_polygons(np.zeros((6, 7), bool)).polygons == []
