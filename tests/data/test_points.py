"""Annotated points: what is read, refused, moved with the image, and counted."""

import json
import logging

import psis_d2  # noqa: F401
from psis_d2.check.dataset import check_dataset
from psis_d2.data.coco import load_coco
from psis_d2.data.mapper import PartialMaskMapper
from psis_d2.data.points import report_points, usable_points
from psis_d2.data.supervision import restrict_masks
from psis_d2.errors import UserError

import numpy as np
import pytest
from detectron2.data import transforms as T
from PIL import Image

SQUARE = [[1, 1, 9, 1, 9, 9, 1, 9]]


def write(folder, *annotations):
    """A json of one image of 40 x 30 pixels, an annotation for each dict of further keys."""
    Image.new("RGB", (40, 30)).save(folder / "1.png")
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 40, "height": 30}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": k + 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 20, 20], **further}
            for k, further in enumerate(annotations)
        ],
    }
    (folder / "data.json").write_text(json.dumps(content))
    return str(folder / "data.json")


def points(*triples):
    return {
        "point_coords": [[x, y] for x, y, _ in triples],
        "point_labels": [z for *_, z in triples],
    }


def test_points_come_from_the_json_and_the_split_leaves_them(tmp_path):
    file = write(tmp_path, points((5, 6, 1), (7.5, 8, 0)), {"segmentation": SQUARE}, points())
    dicts = load_coco(file, str(tmp_path), "points")
    first, second, third = dicts[0]["annotations"]
    assert first["point_coords"] == [[5.0, 6.0], [7.5, 8.0]]
    assert first["point_labels"] == [1, 0]
    assert "point_coords" not in second
    assert "point_coords" not in third
    restrict_masks(dicts, seen_ids=[])
    assert "segmentation" not in second
    assert first["point_labels"] == [1, 0]


@pytest.mark.parametrize(
    "bad",
    [
        {"point_coords": [[1, 2]]},
        {"point_labels": [1]},
        {"point_coords": [[1, 2]], "point_labels": [1, 0]},
        {"point_coords": [[1, 2, 3]], "point_labels": [1]},
        {"point_coords": [[1, "2"]], "point_labels": [1]},
        {"point_coords": [[1, float("nan")]], "point_labels": [1]},
        {"point_coords": [[1, 2]], "point_labels": [2]},
        {"point_coords": [[1, 2]], "point_labels": [True]},
        {"point_coords": 5, "point_labels": 1},
    ],
)
def test_malformed_points_are_refused(bad, tmp_path):
    assert usable_points(bad) is None
    with pytest.raises(UserError, match="Annotation 2 in .*data.json has points that cannot be"):
        load_coco(write(tmp_path, {}, bad), str(tmp_path), "points")


def test_arrays_of_registered_functions_are_points():
    arrays = {"point_coords": np.array([[1, 2.5]]), "point_labels": np.array([1])}
    assert usable_points(arrays) == [(1.0, 2.5, 1)]


def test_points_move_with_the_image(tmp_path):
    file = write(
        tmp_path, points((5, 6, 1), (10, 12, 0)), {"segmentation": SQUARE}, points((1, 2, 1))
    )
    (record,) = load_coco(file, str(tmp_path), "points")
    augmentations = [T.Resize((60, 80)), T.RandomFlip(1.0)]
    mapper = PartialMaskMapper(
        True, augmentations=augmentations, image_format="RGB", use_points=True
    )
    instances = mapper(record)["instances"]
    # Twice the size, then mirrored: x becomes 80 - 2 x.
    assert instances.gt_points[0].tolist() == [[70, 12], [60, 24]]
    assert instances.gt_points[2, 0].tolist() == [78, 4]
    assert instances.gt_point_labels.tolist() == [[1, 0], [-1, -1], [1, -1]]
    assert instances.gt_has_mask.tolist() == [False, True, False]
    plain = PartialMaskMapper(True, augmentations=augmentations, image_format="RGB")
    assert not plain(record)["instances"].has("gt_points")


def test_objects_that_learn_from_points_are_counted(caplog):
    dicts = [
        {
            "annotations": [
                points((1, 1, 1), (2, 2, 0)),
                {**points((1, 1, 1)), "segmentation": SQUARE},
            ]
        }
    ]
    caplog.set_level(logging.INFO, "psis_d2")
    report_points(dicts, used=True)
    report_points(dicts, used=False)
    report_points([{"annotations": [{}]}], used=True)
    report_points([{"annotations": [{}]}], used=False)
    assert [m.split(": ", 1)[-1] for m in caplog.messages] == [
        "1 objects learn from 2 points",
        "1 objects without a mask have points; PSIS.POINTS True learns from them",
        "add point_coords and point_labels to the json, or set it to False",
    ]


def test_check_counts_points(tmp_path):
    file = write(
        tmp_path,
        points((5, 6, 1)),
        {"segmentation": SQUARE},
        {"point_labels": [1]},
        points((30, 3, 0)),
    )
    check = check_dataset(file, str(tmp_path))
    assert (check.objects, check.masks, check.points) == (4, 1, 2)
    assert check.as_dict()["points"] == 2
    assert check.findings.count("bad points") == 1
    assert check.findings.count("points outside box") == 1
