"""What is sure without rasterizing is true, and most of what is true is sure."""

from array import array

import psis_d2  # noqa: F401
from psis_d2.data import sure_polygons
from psis_d2.data.segmentation import LONGEST_OUTLINE, REACH, read_segmentation
from psis_d2.data.sure_polygons import surely_masks

import numpy as np
import pytest

HEIGHT, WIDTH = 40, 60


def sure_of(polygons, size=(HEIGHT, WIDTH)):
    arrays = [array("d", polygon) for polygon in polygons]
    sizes = np.array([size] * len(arrays)).reshape(-1, 2)
    return surely_masks(arrays, sizes, REACH, LONGEST_OUTLINE).tolist()


def random_polygons(rng, count, scale):
    """Outlines of a few pixels or many, often crossing themselves, at and beyond the borders."""
    polygons = []
    for _ in range(count):
        center = rng.uniform(-5, [WIDTH + 5, HEIGHT + 5])
        corners = center + rng.normal(scale=scale, size=(rng.integers(3, 8), 2))
        if rng.random() < 0.3:  # there and back again: nothing inside
            corners = np.concatenate([corners, corners[::-1]])
        polygons.append(corners.round(int(rng.integers(0, 3))).ravel().tolist())
    return polygons


@pytest.mark.parametrize("scale", [0.3, 1, 4, 20])
def test_what_is_sure_covers_a_pixel(scale):
    polygons = random_polygons(np.random.default_rng(int(10 * scale)), 1500, scale)
    true = [read_segmentation([x], HEIGHT, WIDTH) == ([x], 0) for x in polygons]
    sure = sure_of(polygons)
    assert not any(one and not other for one, other in zip(sure, true, strict=True))
    assert 0.05 < np.mean(true) < 0.98
    assert np.mean(sure) >= {4: 0.6, 20: 0.85}.get(scale, 0) * np.mean(true)


def test_there_and_back_again_is_nothing():
    line = [5, 5, 50, 30]
    twice = [10, 10, 40, 10, 40, 30, 10, 30]
    assert sure_of([line + line[2:] + line[:2], twice + twice, twice]) == [False, False, True]


def test_what_is_not_well_formed_is_not_sure():
    square = [10.0, 10, 40, 10, 40, 30, 10, 30]
    far, nan, odd = [*square], [*square], [*square, 5.0]
    far[0], nan[2] = REACH * WIDTH + 1, float("nan")
    assert sure_of([square, far, nan, odd, square[:4], [0.0], square]) == [True, *[False] * 5, True]
    assert surely_masks([array("d", square)], np.array([[HEIGHT, WIDTH]]), REACH, 8 * 30 - 1) == 0


def test_outside_of_the_image_is_nothing():
    shifted = [[x + dx for x in (10, 10, 40, 10, 40, 30, 10, 30)] for dx in (-100, 0, 100)]
    assert sure_of(shifted) == [False, True, False]


def test_parts_are_put_together(monkeypatch):
    polygons = random_polygons(np.random.default_rng(0), 50, 8)
    whole = sure_of(polygons)
    monkeypatch.setattr(sure_polygons, "_AT_A_TIME", 7)
    assert sure_of(polygons) == whole and 0 < sum(whole) < 50
    assert sure_of([]) == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("far", [1e308, float("inf"), float("nan")])
def test_numbers_that_are_no_coordinates_are_never_sure_and_warn_nobody(far):
    square = [2, 2, 20, 2, 20, 20, 2, 20]
    assert sure_of([square, [-far, 2, far, 2, far, 20, 2, 20]]) == [True, False]
