"""Every model of configs/quick draws masks for pictures and for boxes."""

import json
from pathlib import Path

import psis_d2
from psis_d2.errors import UserError
from psis_d2.inference import autolabel, predict
from psis_d2.inference.autolabel import Labeling

import pytest

from model_builders import CONFIGS, write_priors
from saved_models import save_model
from tiny_data import write_tiny_data

QUICK = sorted(x.stem for x in (CONFIGS / "quick").glob("*.yaml") if not x.stem.startswith("Base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_data(tmp_path_factory.mktemp("data"), images=2)


@pytest.mark.parametrize("name", QUICK)
def test_predicts_and_labels(name, data, tmp_path):
    priors = write_priors(str(tmp_path / "priors.npz"), 3)
    few = ("PSIS.SHAPEMASK.NUM_PRIORS", 3, "PSIS.SHAPEMASK.PRIORS", priors)
    weights = save_model(tmp_path, *few, config=f"quick/{name}.yaml", marks_all=False)
    predictor = psis_d2.Predictor(weights, device="cpu")
    assert predict(predictor, [data["images"]], str(tmp_path / "out"), min_score=0.0) >= 0
    out = str(tmp_path / "labeled.json")
    job = {"boxes": data["json"], "labeling": Labeling(only_missing=False), "progress": False}
    if not predictor.cfg.MODEL.MASK_ON:
        with pytest.raises(UserError, match="draws no masks"):
            autolabel(predictor, data["images"], out, **job)
        return
    report = autolabel(predictor, data["images"], out, **job)
    boxes = json.loads(Path(data["json"]).read_text())["annotations"]
    assert report.labeled + sum(report.left.values()) == len(boxes)
    assert len(json.loads(Path(out).read_text())["annotations"]) == len(boxes)
