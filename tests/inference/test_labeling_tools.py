"""What autolabel writes opens in CVAT (through datumaro) and in Label Studio."""

import json
import subprocess
import sys
from pathlib import Path

import psis_d2
from psis_d2.inference.autolabel import Labeling, autolabel

import pytest

from saved_models import save_model
from tiny_data import write_tiny_data

SCRIPT = Path(__file__).parent / "labeling_tools.py"


@pytest.fixture(scope="module")
def tools(tmp_path_factory) -> str:
    """An interpreter with the importers."""
    folder = tmp_path_factory.mktemp("tools")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "datumaro==1.13.12", "label-studio-sdk==2.1.2"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the labeling tools cannot be installed: {done.stderr.strip()[-200:]}")
    return python


@pytest.mark.slow
@pytest.mark.parametrize("polygons", [None, 1.0], ids=["rle", "polygons"])
def test_labeling_tools_read_every_mask(tools, polygons, tmp_path):
    data = write_tiny_data(tmp_path / "data", images=6)
    predictor = psis_d2.Predictor(save_model(tmp_path), device="cpu")
    out = str(tmp_path / "labeled.json")
    labeling = Labeling(only_missing=False, polygons=polygons)
    autolabel(predictor, data["images"], out, boxes=data["json"], labeling=labeling)
    done = subprocess.run(
        [tools, SCRIPT, out, data["images"]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.rpartition("found:")[2])
    kind = "polygon" if polygons else "mask"
    assert found["datumaro"] == {"images": 6, "bbox": 12, kind: 12}
    if polygons:
        assert found["label studio"]["polygonlabels"] == 12
