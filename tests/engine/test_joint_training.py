"""One model, one run: boxes of all classes from one json, masks of one class from another."""

import json

import psis_d2  # noqa: F401
from psis_d2.data.coco import register_coco_json
from psis_d2.evaluation import PartialCOCOEvaluator

import pytest
import train_net

from tiny_coco import TinyCoco, evaluate, predictions
from tiny_data import command_line, write_tiny_data

pytestmark = pytest.mark.usefixtures("catalogs")


@pytest.fixture
def line(tmp_path):
    """A command line that trains on both and evaluates on the second."""
    boxes = write_tiny_data(tmp_path / "boxes", masked=())
    masks = write_tiny_data(tmp_path / "masks", masked=("box",))
    content = json.loads((tmp_path / "masks" / "data.json").read_text())
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 1]
    content["categories"] = [{"id": 1, "name": "carton"}]
    (tmp_path / "masks" / "data.json").write_text(json.dumps(content))
    register_coco_json("joint_train_boxes", boxes["json"], boxes["images"])
    register_coco_json("joint_train_masks", masks["json"], masks["images"])
    (tmp_path / "map.json").write_text('{"carton": "box"}')
    line = command_line(boxes, tmp_path / "out", config="agnostic_shapes")
    start = line.index("--train-json")
    del line[start : start + 8]
    line += ["DATASETS.TRAIN", "['joint_train_boxes', 'joint_train_masks']"]
    line += ["DATASETS.TEST", "['joint_train_masks']", "PSIS.CATEGORY_MAP"]
    line += [str(tmp_path / "map.json"), "PSIS.SEEN_CLASSES", "mapped"]
    line += ["TEST.BOXES", "both", "TEST.DETECTIONS_PER_IMAGE", "4"]
    return [*line, "MODEL.ROI_HEADS.NUM_CLASSES", "3"]


def test_one_run_on_both(line, tmp_path):
    train_net.invoke_main(line)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    # The second data set has one category, a seen one.
    assert {"segm_seen", "gtbox_seen", "segm_all"} <= results.keys()
    assert not any("unseen" in task for task in results)
    metrics = next((tmp_path / "out").rglob("metrics_*_given_boxes.json"))
    assert json.loads(metrics.read_text())["predictions"] == 4


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["MODEL.ROI_HEADS.NUM_CLASSES", "1"], "has 3 classes, the model 1"),
        (["MODEL.PROPOSAL_GENERATOR.NAME", "RPN"], "use PartialRPN"),
        (["PSIS.CATEGORY_MAP", "nowhere.json"], "nowhere.json"),
    ],
)
def test_what_does_not_fit_is_refused(line, capsys, opts, words):
    with pytest.raises(SystemExit):
        train_net.invoke_main([*line, *opts])
    assert words in capsys.readouterr().err


def test_predictions_are_led_back_to_the_data_sets_categories(tmp_path):
    data = TinyCoco(tmp_path, num_classes=3)
    image = data.image()
    data.add(image, 2, (5, 60, 20, 20))  # of a category that the model has not
    data.add(image, 0, (10, 10, 30, 30))
    data.add(image, 1, (50, 50, 30, 30))
    found = predictions(
        (5, (10, 10, 30, 30), 0.9), (0, (50, 50, 30, 30), 0.8), (2, (1, 1, 9, 9), 1)
    )
    evaluator = PartialCOCOEvaluator(
        dataset_name=data.register(), seen_ids=[0], class_ids=[5, 2, None], distributed=False
    )
    results = evaluate(evaluator, {image: found})
    assert results["segm_seen"]["AP"] == pytest.approx(100)
    # Class 2, a category here, is found in the wrong place; class 0, none here, does not count.
    assert results["segm_unseen"]["AP"] == 0
    assert results["segm_all"]["AP"] == pytest.approx(50)


def test_two_categories_of_one_class_cannot_be_told_apart(tmp_path):
    data = TinyCoco(tmp_path, num_classes=2)
    with pytest.raises(psis_d2.errors.UserError, match="maps two categories"):
        PartialCOCOEvaluator(dataset_name=data.register(), seen_ids=[], class_ids=[1, 1])
