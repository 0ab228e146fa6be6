"""Warnings of coordinates in another unit and of crowds that are single objects."""

from psis_d2.data.plausibility import warn_of_crowds, warn_of_units

import numpy as np
import pytest
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

WIDTH, HEIGHT = 128, 96
# x, y, width, height
BOXES = [(62, 25, 32, 40), (45, 37, 33, 39), (10, 20, 50, 30), (70, 60, 40, 30), (5, 5, 20, 60)]


def outline(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def records(box=lambda *b: list(b), mask=lambda *b: [outline(*b)]):
    """One image of objects with a box and a mask made of each of BOXES."""
    annotations = [
        {
            "bbox": box(*b),
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 0,
            "iscrowd": 0,
            "segmentation": mask(*b),
        }
        for b in BOXES
    ]
    return [{"height": HEIGHT, "width": WIDTH, "annotations": annotations}]


def relative(x, y, w, h, unit=1.0):
    return [x * unit / WIDTH, y * unit / HEIGHT, w * unit / WIDTH, h * unit / HEIGHT]


def corners(x, y, w, h):
    return [x, y, x + w, y + h]


WRONG = {
    "shares in masks": ({"mask": lambda *b: [outline(*relative(*b))]}, "look like shares from 0"),
    "percent in masks": (
        {"mask": lambda *b: [outline(*relative(*b, unit=100))]},
        "look like percentages of width and height",
    ),
    "shares in both": (
        {"box": lambda *b: relative(*b), "mask": lambda *b: [outline(*relative(*b))]},
        "nearly all boxes lie between 0 and 1",
    ),
    "shares in boxes": ({"box": lambda *b: relative(*b)}, "nearly all boxes lie between 0 and 1"),
    "corners": ({"box": corners}, "look like two corners x0, y0, x1, y1"),
    "corners without masks": ({"box": corners, "mask": lambda *b: None}, "look like two corners"),
    "masks of a larger image": (
        {"mask": lambda *b: [outline(*(4 * v for v in b))]},
        "5 of 5 masks that were looked at lie outside of their boxes",
    ),
    "boxes of a larger image": (
        {"box": lambda *b: [4 * v for v in b], "mask": lambda *b: None},
        "5 of 5 boxes that were looked at reach out of their images",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_likely_cause_is_named(case, caplog):
    parts, message = WRONG[case]
    assert warn_of_units(records(**parts), "a.json")
    (line,) = caplog.messages
    assert line.startswith("a.json: ") and message in line


def run_lengths(x, y, w, h):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + h, x : x + w] = 1
    rle = mask_util.encode(np.asfortranarray(mask))
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"mask": lambda *b: None},
        {"mask": run_lengths},
        {"mask": lambda *b: "no mask at all"},
        {"mask": lambda *b: [[float("nan")] * 6]},
        {"mask": lambda *b: [[10**400, 1, 2, 3, 4, 5]]},
        # a box that reaches a little over the border
        {"box": lambda x, y, w, h: [x - 1, y - 1, w + 2, h + 2]},
    ],
)
def test_good_data_and_data_that_says_nothing_are_not_warned_of(parts, caplog):
    assert not warn_of_units(records(**parts), "a.json")
    assert caplog.messages == []


def test_a_few_odd_boxes_are_not_warned_of():
    some = records()
    some[0]["annotations"][0]["bbox"] = [100, 80, 100, 80]
    assert not warn_of_units(some, "a.json")


def test_no_data_at_all():
    assert not warn_of_units([], "a.json")
    assert warn_of_crowds([], "a.json") == []


# -------------------------------------------------------------------------------------- crowds


def crowd_records(*masks, iscrowd=1, category=0):
    annotations = [
        {
            "bbox": [0, 0, WIDTH, HEIGHT],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": category,
            "iscrowd": iscrowd,
            "segmentation": mask,
        }
        for mask in masks
    ]
    return [{"height": HEIGHT, "width": WIDTH, "annotations": annotations}]


def blocks(*corners_of, side=12):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for x, y in corners_of:
        mask[y : y + side, x : x + side] = 1
    rle = mask_util.encode(np.asfortranarray(mask))
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


ONE, MANY = blocks((5, 5)), blocks((5, 5), (60, 20), (90, 60))


def test_only_crowds_that_are_one_piece(caplog):
    assert warn_of_crowds(crowd_records(ONE, ONE, MANY), "a.json", ["cup"]) == [0]
    (line,) = caplog.messages
    assert "all 3 annotations of 'cup' are crowd regions" in line
    assert "PSIS.CROWDS instances" in line
    assert warn_of_crowds(crowd_records([[5, 5, 50, 5, 50, 50]]), "a.json") == [0]


@pytest.mark.parametrize(
    "some",
    [
        crowd_records(MANY, MANY, ONE),  # groups
        crowd_records(ONE) + crowd_records(ONE, iscrowd=0),  # beside objects of the category
        crowd_records(ONE, iscrowd=0),
    ],
)
def test_crowds_that_may_be_crowds(some, caplog):
    assert warn_of_crowds(some, "a.json") == []
    assert caplog.messages == []


def test_another_categorys_objects_do_not_count():
    some = crowd_records(ONE) + crowd_records(ONE, iscrowd=0, category=1)
    assert warn_of_crowds(some, "a.json", ["cup", "hat"]) == [0]
