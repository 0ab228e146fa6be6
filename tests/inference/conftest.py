"""One small model for all tests of what people do with a trained one."""

import json
import subprocess
import sys
from pathlib import Path

import psis_d2

import pytest

from saved_models import save_model

TOOLS = Path(__file__).parent / "labeling_tools.py"


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> str:
    """A checkpoint of :func:`saved_models.save_model`."""
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def predictor(weights) -> psis_d2.Predictor:
    """The same model, loaded."""
    return psis_d2.Predictor(weights, device="cpu")


@pytest.fixture(scope="session")
def labeling_tools(tmp_path_factory):
    """What importers of labeling tools read of a COCO json: (json, images) -> counts by tool."""
    folder = tmp_path_factory.mktemp("tools")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "datumaro==1.13.12", "label-studio-sdk==2.1.2"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the labeling tools cannot be installed: {done.stderr.strip()[-200:]}")

    def read(file: str, images: str) -> dict:
        done = subprocess.run([python, TOOLS, file, images], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.rpartition("found:")[2])

    return read
