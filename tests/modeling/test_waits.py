"""No method lets the host wait for a GPU much more often than Detectron2's Mask R-CNN does.

Counted on a device that is not there, which also refuses what mixes its tensors with the CPU's.
"""

from functools import cache
from pathlib import Path

import psis_d2.modeling  # noqa: F401

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from benchmarks.stand_in import StandInDevice
from model_builders import CONFIGS, as_foreign, partial_batch, tiny_config, tiny_model, write_priors

MORE = 10  # waits that a method may have beside Mask R-CNN's
HAS_MASK = [[True, False, True], [False, True]]
OPTIONS = (
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "PSIS.FCOS.SCORE_THRESH_TEST", 0.0),
    *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 10),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", 32, "PSIS.CONDINST.BRANCH_DIM", 16),
    *("PSIS.CONDINST.PAIRWISE_WARMUP", 0, "PSIS.SHAPEMASK.NUM_PRIORS", 3),
    *("MODEL.WEIGHTS", "", "PSIS.SEEN_CLASSES", "", "PSIS.ORACLE", False),
)
DETECTRON2 = (
    *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.PROPOSAL_GENERATOR.NAME", "RPN"),
    *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
)
SMALL, LARGE = "quick/Base-shapes.yaml", "Base-RCNN-FPN.yaml"
# Those that waited most often before their regions were chosen by rows; the slow test runs all.
FAST = [f"quick/{name}_shapes.yaml" for name in ("teacher_student", "opmask", "boxinst_mixed")]
PUBLISHED = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob("*.yaml")
    if not path.name.startswith("Base-")
)


def count(model, batch) -> dict[str, StandInDevice]:
    """Where the host waits in a training step without its optimizer, and at test."""
    devices = {"train": StandInDevice(), "test": StandInDevice()}
    torch.manual_seed(0)
    with EventStorage(), devices["train"] as device:
        losses = device.place(model.train())(batch)
        sum(losses.values()).backward()
    with torch.no_grad(), devices["test"] as device:
        found = device.place(model.eval())(batch)
    assert all(len(x["instances"]) > 0 for x in found)
    return devices


@cache
def allowed(config: str) -> dict[str, int]:
    """Waits of Detectron2's own Mask R-CNN of the same size, with room for a method's."""
    batch = partial_batch(HAS_MASK)
    for item in batch:
        item["instances"].remove("gt_has_mask")
    devices = count(tiny_model(*OPTIONS, *DETECTRON2, config=config), batch)
    return {mode: device.total + MORE for mode, device in devices.items()}


_counted: dict[str, dict[str, StandInDevice]] = {}  # by what a model is made of


def check(config: str, folder: Path, *options, batch=None):
    cfg = tiny_config(*OPTIONS, *options, config=config)
    # A deeper backbone waits as often: many configs are the same model then, and run once.
    cfg.MODEL.RESNETS.DEPTH = min(cfg.MODEL.RESNETS.DEPTH, 50)
    model = f"{cfg.MODEL} {cfg.PSIS} {batch is None}"
    if cfg.MODEL.ROI_MASK_HEAD.NAME == "ShapeMaskHead":
        classes = () if cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK else (20,)
        cfg.PSIS.SHAPEMASK.PRIORS = write_priors(str(folder / "priors.npz"), *classes, 3)
    if model not in _counted:
        torch.manual_seed(0)
        _counted[model] = count(build_model(cfg), batch or partial_batch(HAS_MASK))
    for mode, device in _counted[model].items():
        most = allowed(SMALL if config.startswith("quick/") else LARGE)[mode]
        print(f"{config} {mode}: {device.total} of {most}")  # pytest -rP shows it
        assert device.total <= most, (mode, device.places())


@pytest.mark.parametrize("config", FAST)
def test_the_host_waits_no_more_than_for_mask_rcnn(config, tmp_path):
    check(config, tmp_path)


@pytest.mark.slow
def test_foreign_masks_let_it_wait_no_more(tmp_path):
    batch = as_foreign(partial_batch(HAS_MASK), [[0.5, None, None], [0.25, None]])
    check("quick/teacher_student_shapes.yaml", tmp_path, batch=batch)


@pytest.mark.slow
@pytest.mark.parametrize("config", PUBLISHED)
def test_every_config_runs_on_one_device_and_waits_no_more(config, tmp_path):
    check(config, tmp_path, "MODEL.ROI_HEADS.NUM_CLASSES", 20)
