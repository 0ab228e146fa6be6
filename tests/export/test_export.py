"""Files of ``psis-d2 export`` give what their models give."""

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
    write,
)
from psis_d2.export.trace import TraceableModel, tracing_conditions
from psis_d2.inference import Predictor
from psis_d2.model_zoo import config_names, get_config

import pytest
import torch
from one_sentence import refusal
from PIL import Image

from exportable_models import leave_one_empty, outputs, pictures, random_predictor
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
    noise = ("MODEL.PIXEL_STD", [60.0] * 3, "INPUT.MIN_SIZE_TEST", 0)
    predictor = random_predictor(tmp_path, row.config, *noise)
    images = leave_one_empty(predictor.model, pictures(((128, 160), (160, 128), (96, 192))))
    counts = check(predictor, images, file_format, tmp_path)
    assert min(counts) == 0 and max(counts) > 0


def test_a_file_traced_on_an_image_without_objects_draws_masks_on_others(tmp_path):
    predictor = random_predictor(tmp_path, "quick/agnostic_shapes", "INPUT.MIN_SIZE_TEST", 0)
    images = leave_one_empty(predictor.model, pictures())
    counts = check(predictor, images[::-1], "torchscript", tmp_path)
    assert counts[-1] > 0


def test_tracing_leaves_the_model_and_the_packages_as_they_were(tmp_path):
    from detectron2.modeling.roi_heads import fast_rcnn

    model = random_predictor(tmp_path, "quick/condinst_shapes").model
    before = dict(vars(model.mask_head)), dict(vars(fast_rcnn))
    with pytest.raises(ZeroDivisionError), tracing_conditions(model):
        assert vars(fast_rcnn)["len"](torch.zeros(3, 2)) == 3
        assert model.mask_head.at_a_time == 0
        raise ZeroDivisionError
    assert (dict(vars(model.mask_head)), dict(vars(fast_rcnn))) == before


def test_a_graph_that_gives_something_else_is_refused_and_no_file_is_left(tmp_path, monkeypatch):
    predictor = random_predictor(tmp_path, "quick/agnostic_shapes", "INPUT.MIN_SIZE_TEST", 64)
    forward = TraceableModel.forward

    def forward_and_move(self, image):
        boxes, *rest = forward(self, image)
        return (boxes + 1.0 if torch.jit.is_tracing() else boxes, *rest)

    monkeypatch.setattr(TraceableModel, "forward", forward_and_move)
    words = refusal(export_model, predictor, str(tmp_path / "model.ts"))
    assert "boxes differ by 1" in words
    assert not (tmp_path / "model.ts").exists()


def test_differences_by_hand():
    one, empty = torch.tensor([[1.0, 2.0]]), torch.zeros(0, 1, 1)
    assert differences({"a": one}, {"a": one + 0.25}) == {"a": 0.25}
    assert differences({"a": one}, {"a": one[:0]}) == {"a": float("inf")}
    assert differences({"a": empty}, {"a": torch.zeros(0, 28, 28)}) == {"a": 0.0}


def test_the_file_says_what_it_needs_and_predicts_as_the_predictor(tmp_path, capsys):
    priors = random_predictor(tmp_path, "quick/agnostic_shapes", "INPUT.MIN_SIZE_TEST", 96)
    picture = pictures(((70, 90),))[0].permute(1, 2, 0).numpy()
    Image.fromarray(picture).save(tmp_path / "picture.png")
    output = str(tmp_path / "model.ts")
    words = ["export", priors.cfg.MODEL.WEIGHTS, "--output", output]
    assert main([*words, "--image", str(tmp_path / "picture.png")]) == 0
    assert output in capsys.readouterr().out
    entries = {"psis_d2.json": ""}
    torch.jit.load(output, _extra_files=entries)  # without this project
    metadata = json.loads(entries["psis_d2.json"])
    assert metadata["class_names"] == list(CLASSES) and metadata["seen_ids"] == [0]
    assert metadata["input"]["shortest_edge"] == 96 and metadata["mask_grid"] == "boxes"

    exported = ExportedModel(output)
    image = picture[:, :, ::-1]
    found = exported.predict(image)
    expected = Predictor(priors.cfg.MODEL.WEIGHTS, device="cpu")(image)
    assert found.pred_masks.shape == expected.pred_masks.shape == (len(expected), 70, 90)
    assert (found.pred_masks == expected.pred_masks).float().mean() > 0.999
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_metadata_of_onnx_are_read_without_this_project(tmp_path):
    import onnxruntime

    predictor = random_predictor(tmp_path, "quick/condinst_shapes", "INPUT.MIN_SIZE_TEST", 64)
    done = export_model(predictor, str(tmp_path / "model.onnx"), "onnx")
    session = onnxruntime.InferenceSession(done.path)
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["psis_d2.json"])
    assert metadata == done.metadata
    assert metadata["mask_grid"] == "image" and metadata["mask_stride"] == 2
    assert [x.name for x in session.get_outputs()] == list(metadata["outputs"])
    assert session.get_inputs()[0].type == "tensor(uint8)"


def test_what_cannot_be_exported_is_one_sentence_of_the_table(tmp_path):
    predictor = random_predictor(tmp_path, "quick/grabcut_test_shapes")
    row = support_of(predictor.cfg)
    assert row.config == "fasterrcnn_grabcut_R50"
    for name, called in FORMATS.items():
        words = refusal(export_model, predictor, str(tmp_path / "model"), name)
        assert called in words and row.reason(name) in words


def test_other_files_are_refused(tmp_path):
    assert "There is no file" in refusal(ExportedModel, tmp_path / "none.ts")
    (tmp_path / "other.onnx").write_bytes(b"nothing")
    torch.save({"a": 1}, tmp_path / "other.ts")
    for name in ("other.onnx", "other.ts"):
        assert "not a file of psis-d2 export" in refusal(ExportedModel, tmp_path / name)


def test_every_row_is_of_a_config_and_finds_itself():
    names = config_names()
    for row in SUPPORTED:
        assert row.config in names and f"quick/{row.quick}" in names
        for config in (row.config, f"quick/{row.quick}"):
            found = support_of(get_config(config))
            assert (found.masks, found.detector) == (row.masks, row.detector)


def test_the_page_prints_the_table():
    assert support_table() in (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
