"""What analyses read: predictions as evaluators write them, and what is refused."""

import json

from psis_d2.analysis import read_predictions, read_truth
from psis_d2.evaluation.base import write_predictions

import numpy as np
import pytest
from one_sentence import refusal

from random_results import random_case
from tiny_coco import polygon


def test_predictions_come_back_as_they_were_written(tmp_path):
    truth, found = random_case(4)
    path = str(tmp_path / "results.json")
    write_predictions(path, found, truth.json_ids)
    read = {part.image_id: part for part in read_predictions(path, truth)}
    assert len(read) == len(found)
    for part in found:
        assert read[part.image_id].records(truth.json_ids) == part.records(truth.json_ids)


def test_uncompressed_masks_and_boxes_of_masks(tiny, tmp_path):
    data = tiny()
    image = data.image()
    data.add(image, 0, [0, 0, 9, 9])
    data.register()
    truth = read_truth(str(data.path))
    path = tmp_path / "results.json"
    # Two columns of ten pixels from row 5 on.
    counts = [205, 10, 90, 10, 9685]
    record = {"image_id": image, "category_id": 3, "score": 0.5}
    record["segmentation"] = {"size": [100, 100], "counts": counts}
    path.write_text(json.dumps([record]))
    (part,) = read_predictions(str(path), truth)
    assert part.boxes.tolist() == [[2, 5, 2, 10]] and part.classes.tolist() == [0]
    assert part.size == (100, 100) and part.ids is None
    path.write_text(json.dumps([record | {"id": 100}]))
    assert read_predictions(str(path), truth)[0].ids.tolist() == [100]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"image_id": 7}, "a prediction for image 7, which"),
        ({"category_id": 4}, "KeyError: 4"),
        ({"bbox": [1, 2, 3]}, "not in COCO's result format"),
        ({"segmentation": polygon([0, 0, 5, 5])}, "not in COCO's result format"),
        ({"segmentation": {"size": [9, 9], "counts": [81]}}, "is 9x9 pixels, but its annotation"),
        ({"score": None}, "not in COCO's result format"),
    ],
)
def test_what_is_no_prediction_is_refused(tiny, tmp_path, change, words):
    data = tiny()
    image = data.image()
    data.add(image, 0, [0, 0, 9, 9])
    data.register()
    path = tmp_path / "results.json"
    record = {"image_id": image, "category_id": 3, "score": 0.5, "bbox": [0, 0, 5, 5]}
    path.write_text(json.dumps([record | change]))
    assert words in refusal(read_predictions, str(path), read_truth(str(data.path)))


def test_files_that_are_something_else(tiny, tmp_path):
    data = tiny()
    data.add(data.image(), 0, [0, 0, 9, 9])
    data.register()
    truth = read_truth(str(data.path))
    path = tmp_path / "results.json"
    for text, words in (("[{]", "not valid JSON"), ('{"a": 1}', "no list of predictions")):
        path.write_text(text)
        assert words in refusal(read_predictions, str(path), truth)
    assert "Cannot read" in refusal(read_predictions, str(tmp_path / "none.json"), truth)
    path.write_text("[]")
    assert read_predictions(str(path), truth) == []
    bare = tiny()
    bare.image()
    bare.register()
    assert "has no annotations to compare with" in refusal(read_truth, str(bare.path))
    assert np.array(truth.json_ids).tolist() == [3, 5]
