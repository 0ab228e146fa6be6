"""Boxes segmented by GrabCut at test time, from the wrapper to the tables."""

import json

from psis_d2.data.grabcut import GrabCut, grabcut_masks
from psis_d2.evaluation.grabcut_model import GrabCutModel

import numpy as np
import pytest
import torch
import train_net
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from tiny_data import command_line, write_tiny_data

pytestmark = pytest.mark.usefixtures("catalogs")

SIZE = 40
RECTANGLE = np.zeros((SIZE, SIZE), dtype=bool)
RECTANGLE[12:26, 9:30] = True


class Says(nn.Module):
    """A model with one answer."""

    def __init__(self, instances):
        super().__init__()
        self.instances = instances

    def forward(self, batched_inputs):
        return [{"instances": self.instances} for _ in batched_inputs]


@pytest.fixture
def item(tmp_path):
    """An input: a bright rectangle on dark ground."""
    pixels = np.random.default_rng(0).integers(20, 40, (SIZE, SIZE, 3), dtype=np.uint8)
    pixels[RECTANGLE] += 160
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return {"file_name": str(tmp_path / "a.png"), "image_id": 5, "height": SIZE, "width": SIZE}


def detections(*boxes, **fields):
    return Instances(
        (SIZE, SIZE), pred_boxes=Boxes(torch.tensor(boxes).float().reshape(-1, 4)), **fields
    )


def test_every_box_gets_its_mask(item):
    boxes = [(7, 10, 32, 28), (SIZE + 1, 2, SIZE + 5, 8), (0, 0, SIZE, SIZE)]
    model = GrabCutModel(Says(detections(*boxes)), GrabCut(), threads=2)
    masks = model([item])[0]["instances"].pred_masks
    assert masks.dtype == torch.bool
    assert np.array_equal(masks[0].numpy(), RECTANGLE)
    assert not masks[1].any()  # no pixel of the image
    assert masks[2].all()  # nothing around it to compare with


def test_masks_of_the_model_are_replaced_and_no_box_is_no_mask(item):
    predicted = detections((7, 10, 32, 28), pred_masks=torch.zeros(1, SIZE, SIZE).bool())
    assert GrabCutModel(Says(predicted), GrabCut())([item])[0]["instances"].pred_masks.any()
    masks = GrabCutModel(Says(detections()), GrabCut())([item])[0]["instances"].pred_masks
    assert masks.shape == (0, SIZE, SIZE)


def test_known_masks_are_not_cut_again(item, tmp_path):
    record = item | {
        "annotations": [{"id": 3, "bbox": [7, 10, 25, 18], "bbox_mode": 1, "category_id": 0}]
    }
    known = grabcut_masks([record], "a", str(tmp_path / "cache"))
    given = detections((7, 10, 32, 28), gt_ids=torch.tensor([3]))
    masks = GrabCutModel(Says(given), None, known)([item])[0]["instances"].pred_masks
    assert np.array_equal(masks[0].numpy(), RECTANGLE)


def test_grabcut_from_the_command_line(tmp_path):
    """Trained without a mask head, tested with GrabCut; the evaluators see masks like any other."""
    data = write_tiny_data(tmp_path / "data", masked=("box", "cup", "hat"))
    seen = tmp_path / "seen.txt"
    seen.write_text("box\n")
    line = command_line(data, tmp_path / "out", "TEST.BOXES", "both", config="grabcut_test_shapes")
    line += ["PSIS.CACHE_DIR", str(tmp_path / "cache"), "PSIS.SEEN_CLASSES", str(seen)]
    line += ["TEST.DETECTIONS_PER_IMAGE", "4"]
    train_net.invoke_main(line)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"segm_seen", "segm_unseen", "gtbox_seen", "gtbox_unseen"} <= results.keys()
    # The rectangles are brighter than their ground and nearly of one color.
    assert results["gtbox_unseen"]["IoU"] > 60
    assert len(list((tmp_path / "cache" / "grabcut").iterdir())) == 1


def test_grabcut_masks_are_made_before_training(tmp_path, monkeypatch):
    data = write_tiny_data(tmp_path / "data")
    line = command_line(data, tmp_path / "out", "DATASETS.TEST", "[]", config="grabcut_shapes")
    line += ["PSIS.CACHE_DIR", str(tmp_path / "cache")]
    found = []

    def main(args):
        found.extend((tmp_path / "cache").rglob("*.json"))

    monkeypatch.setattr("psis_d2.engine.train.run_process", main)
    train_net.invoke_main(["--eval-only", *line])
    assert not found
    train_net.invoke_main(line)
    assert len(found) == 1
