"""Files of ``psis-d2 export`` give what their models give."""

import io
import json
from pathlib import Path

from psis_d2.cli import main
from psis_d2.export import (
    FORMATS,
    SUPPORTED,
    ExportedModel,
    differences,
    export_model,
    support_of,
    support_table,
)
from psis_d2.export import write
from psis_d2.export.trace import TraceableModel, tracing_conditions
from psis_d2.model_zoo import config_names

import numpy as np
import pytest
import torch
from PIL import Image

from exportable_models import leave_one_empty, outputs, pictures, random_predictor
from one_sentence import refusal
from saved_models import CLASSES

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[2]
CAN = [row for row in SUPPORTED if not (row.torchscript or row.onnx)]
# One of every way in which masks are made and framed; the others take minutes.
AT_ONCE = {"agnostic_shapes", "shapeprop_shapes", "cpmask_shapes", "condinst_shapes"}
AT_ONCE |= {"shapemask_fixed_shapes"}
QUICK = [
    pytest.param(name, marks=() if name in AT_ONCE else pytest.mark.slow)
    for name in dict.fromkeys(row.quick for row in CAN)
]


def check(predictor, images, file_format, folder):
    """Export on the first image; the file's outputs on all of them are the model's."""
    picture = images[0].permute(1, 2, 0).numpy()[:, :, ::-1]
    if predictor.cfg.INPUT.FORMAT == "BGR":
        picture = picture[:, :, ::-1]
    done = export_model(predictor, str(folder / "model.file"), file_format, picture)
    exported = ExportedModel(done.path)
    counts = []
    for image in images:
        expected = outputs(predictor.model, image)
        gaps = differences(expected, exported(image))
        far = {k: v for k, v in gaps.items() if not v <= write.TOLERANCES[file_format][k]}
        assert far == {}, f"{tuple(image.shape)}, {len(expected['boxes'])} objects"
        counts.append(len(expected["boxes"]))
        if "masks" in expected and counts[-1]:
            assert expected["masks"].std() > 0.01  # else any masks would do
    return counts


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("name", QUICK)
def test_a_file_gives_what_its_model_gives(name, file_format, tmp_path):
    predictor = random_predictor(tmp_path, f"quick/{name}", "INPUT.MIN_SIZE_TEST", 0)
    images = leave_one_empty(predictor.model, pictures())
    counts = check(predictor, images, file_format, tmp_path)
    assert min(counts) == 0 and len(set(counts)) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("row", CAN, ids=lambda row: row.config)
def test_a_file_of_the_real_architecture_gives_what_its_model_gives(row, file_format, tmp_path):
    predictor = random_predictor(tmp_path, row.config, "INPUT.MIN_SIZE_TEST", 0)
    images = leave_one_empty(predictor.model, pictures(((128, 160), (160, 128), (96, 192))))
    counts = check(predictor, images, file_format, tmp_path)
    assert min(counts) == 0 and max(counts) > 0
