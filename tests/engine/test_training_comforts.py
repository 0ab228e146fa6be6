"""Epochs, parts, bfloat16, pictures and the best checkpoint together, from the command line."""

import psis_d2  # noqa: F401
from psis_d2.modeling import timm_fpn

import pytest
import torch
import train_net

from tiny_data import command_line, write_tiny_data

# Every command line of a test registers its data by the same names.
pytestmark = pytest.mark.usefixtures("catalogs")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_data(tmp_path_factory.mktemp("tiny"))


FEW = ["TEST.DETECTIONS_PER_IMAGE", 3, "MODEL.RPN.POST_NMS_TOPK_TEST", 10]


def line_of(data: dict, folder, *options) -> list[str]:
    return command_line(data, folder, *FEW, *options, config="agnostic_shapes")


def run(line: list[str]):
    return train_net.main(train_net.parse_arguments(line))


def test_a_run_in_epochs_keeps_its_best_checkpoint_and_draws_pictures(data, tmp_path):
    options = ["SOLVER.EPOCHS", 2.0, "TEST.EVAL_PERIOD", 2, "TEST.PICTURES", 1]
    options += ["SOLVER.ACCUMULATE", 2, "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16"]
    run(line_of(data, tmp_path, *options))
    stored = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert stored["iteration"] == 5  # two passes over six images, two a batch: the sixth step
    assert {x.dtype for x in stored["model"].values() if x.is_floating_point()} == {torch.float32}
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert best["iteration"] in (1, 3, 5)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    events = b"".join(path.read_bytes() for path in tmp_path.glob("events.out.tfevents*"))
    assert b"validation/0" in events


def test_resuming_and_evaluating_ask_for_no_pretrained_weights(data, tmp_path, monkeypatch):
    """The run may go on where neither hub nor package is."""
    timm = pytest.importorskip("timm")
    asked = []

    def overlay(name, source):
        asked.append(name)
        return {"state_dict": timm.create_model(name, features_only=True).state_dict()}

    monkeypatch.setattr(timm_fpn, "weights_overlay", overlay)
    options = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "PSIS.TIMM.NAME", "test_resnet"]
    options += ["MODEL.PIXEL_MEAN", [127.5] * 3, "MODEL.PIXEL_STD", [127.5] * 3]
    line = line_of(data, tmp_path, "TEST.PICTURES", 0, *options)
    run(line)
    assert asked == ["test_resnet"]
    run(["--resume", *line])
    run(["--eval-only", "--resume", *line])
    run(["--eval-only", *line, "MODEL.WEIGHTS", str(tmp_path / "model_final.pth")])
    assert asked == ["test_resnet"]
