"""Masks of a promptable model, by a stand-in of its interface."""

import json
import sys
from pathlib import Path
from types import ModuleType

from psis_d2.cli import main
from psis_d2.errors import UserError
from psis_d2.inference.autolabel import autolabel
from psis_d2.inference.prompted import PromptedPredictor, load_sam

import numpy as np
import pytest
from pycocotools import mask as mask_util

from tiny_data import write_tiny_data


class StandIn:
    """As ``segment_anything.SamPredictor``; its mask is the bright part of the box."""

    def __init__(self, model=None):
        self.image = None

    def set_image(self, image):
        assert image.dtype == np.uint8 and image.ndim == 3
        self.image = image

    def predict(self, *, box, multimask_output):
        assert box.shape == (4,) and multimask_output is False
        mask = np.zeros(self.image.shape[:2], bool)
        x0, y0, x1, y1 = np.rint(box).astype(int)
        mask[y0:y1, x0:x1] = self.image[y0:y1, x0:x1].mean(axis=2) > 100
        return mask[None], np.array([1.01]), np.zeros((1, 4, 4))


@pytest.fixture
def data(tmp_path):
    return write_tiny_data(tmp_path / "data", images=3)


def test_masks_of_boxes(data, tmp_path):
    out = tmp_path / "sam.json"
    predictor = PromptedPredictor(StandIn(), "stand-in", "0")
    report = autolabel(predictor, data["images"], str(out), boxes=data["json"], progress=False)
    before = json.loads(Path(data["json"]).read_text())["annotations"]
    after = json.loads(out.read_text())["annotations"]
    assert report.labeled == sum("segmentation" not in a for a in before) > 0
    for old, new in zip(before, after, strict=True):
        if "segmentation" not in old:
            x, y, w, h = new["bbox"]
            mask = mask_util.decode(new["segmentation"])
            assert mask[y : y + h, x : x + w].all() and mask.sum() == w * h
            assert new["source"] == "stand-in" and new["score"] == 1.0


def test_without_boxes_there_is_nothing_to_prompt_with(data, tmp_path):
    with pytest.raises(UserError, match="in boxes only"):
        autolabel(
            PromptedPredictor(StandIn(), "stand-in", "0"),
            data["images"],
            str(tmp_path / "out.json"),
            progress=False,
        )


@pytest.fixture
def sam_package(monkeypatch, tmp_path):
    """A package segment_anything whose models are the stand-in; returns a file of weights."""
    package = ModuleType("segment_anything")

    class Model:
        def __init__(self, checkpoint):
            assert Path(checkpoint).is_file()

        def to(self, device):
            return self

    package.sam_model_registry = {"vit_b": Model}
    package.SamPredictor = StandIn
    monkeypatch.setitem(sys.modules, "segment_anything", package)
    (tmp_path / "sam.pth").write_bytes(b"weights")
    return str(tmp_path / "sam.pth")


def test_the_command(sam_package, data, tmp_path, capsys):
    out = tmp_path / "sam.json"
    line = ["prompt-sam", sam_package, "--images", data["images"], "--boxes", data["json"]]
    main([*line, "--output", str(out)])
    assert "annotations got a mask" in capsys.readouterr().out
    assert out.is_file()


def test_what_is_missing_is_one_sentence(sam_package, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="choose one of vit_b"):
        load_sam("vit_x", sam_package, "cpu")
    with pytest.raises(UserError, match="do not exist"):
        load_sam("vit_b", str(tmp_path / "none.pth"), "cpu")
    monkeypatch.setitem(sys.modules, "segment_anything", None)
    with pytest.raises(UserError, match="pip install segment-anything"):
        load_sam("vit_b", sam_package, "cpu")
    monkeypatch.setitem(sys.modules, "sam2", None)
    with pytest.raises(UserError, match="pip install sam2"):
        load_sam("configs/sam2.1/sam2.1_hiera_b+.yaml", sam_package, "cpu")
