"""What the papers' configs resolve to, against the figures of papers and released codes."""

from pathlib import Path

import psis_d2  # noqa: F401
from psis_d2.config import add_psis_config
from psis_d2.config_files import merge_file
from psis_d2.engine.solver import build_optimizer

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler

CONFIGS = Path(__file__).parents[2] / "configs"

# Images a batch, rate, steps, iterations, warm-up iterations and factor.
DETECTRON2 = (16, 0.02, (60000, 80000), 90000, 1000, 0.001)
SHAPEPROP = (16, 0.02, (60000, 80000), 90000, 2000, 0.03)
# Released for 64 images: 0.08, (30000, 40000), 45000, and 500 warm-up iterations from 0.0067.
SHAPEMASK = (16, 0.08 / 4, (4 * 30000, 4 * 40000), 4 * 45000, 4 * 500, 0.0067 / 0.08)
RETINAMASK = (8, 0.005, (240000, 320000), 360000, 500, 1 / 3)
SCHEDULES = {
    "maskrcnn_agnostic_R50": DETECTRON2,
    "maskrcnn_agnostic_mlp_R50": DETECTRON2,
    "maskrcnn_oracle_R50": DETECTRON2,
    "maskrcnn_grabcut_R50": DETECTRON2,
    "maskx_R50": DETECTRON2,
    "shapeprop_R50": DETECTRON2,
    "shapeprop_R101": DETECTRON2,
    "shapeprop_released_R50": SHAPEPROP,
    "maskrcnn_agnostic_released_R50": SHAPEPROP,
    "retinamask_R50": RETINAMASK,
    "shapeprop_retinamask_R50": RETINAMASK,
    "fasterrcnn_vg3k_R101": DETECTRON2,
    "maskx_vg3k_R101": DETECTRON2,
    **{path.stem: SHAPEMASK for path in CONFIGS.glob("shapemask_*.yaml")},
}
# Factor of the rate of biases, and their decay.
AS_WEIGHTS, CAFFE2 = (1.0, 0.0001), (2.0, 0.0)
BIASES = dict.fromkeys(SCHEDULES, AS_WEIGHTS) | {
    "shapeprop_released_R50": CAFFE2,
    "maskrcnn_agnostic_released_R50": CAFFE2,
    "retinamask_R50": CAFFE2,
    "shapeprop_retinamask_R50": CAFFE2,
}


def config(name: str) -> CfgNode:
    cfg = get_cfg()
    add_psis_config(cfg)
    merge_file(cfg, str(CONFIGS / f"{name}.yaml"))
    cfg.MODEL.DEVICE = "meta"
    return cfg


def model(cfg: CfgNode) -> torch.nn.Module:
    with torch.device("meta"):
        return build_model(cfg)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_and_biases(name):
    cfg = config(name)
    batch, rate, steps, iterations, warmup, factor = SCHEDULES[name]
    solver = cfg.SOLVER
    assert (batch, iterations) == (solver.IMS_PER_BATCH, solver.MAX_ITER)
    # The rate of a weight as it is from iteration to iteration, and a bias's beside it.
    conv = torch.nn.Conv2d(1, 1, 1)
    optimizer = build_optimizer(cfg, conv)
    scheduler = build_lr_scheduler(cfg, optimizer)
    groups = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    weight, bias = groups[id(conv.weight)], groups[id(conv.bias)]

    def rate_at(iteration: int) -> float:
        scheduler.last_epoch = iteration
        return scheduler.get_lr()[optimizer.param_groups.index(weight)]

    assert weight["initial_lr"] == pytest.approx(rate)
    assert rate_at(0) == pytest.approx(rate * factor, rel=1e-4)
    assert rate_at(warmup - 1) < rate == pytest.approx(rate_at(warmup))
    for step, scale in zip(steps, (0.1, 0.01), strict=True):
        assert rate_at(step - 1) == pytest.approx(10 * scale * rate)
        assert rate_at(step) == pytest.approx(scale * rate)
    bias_factor, decay = BIASES[name]
    assert bias["initial_lr"] == pytest.approx(bias_factor * rate)
    assert (weight["weight_decay"], bias["weight_decay"]) == (0.0001, decay)


@pytest.mark.parametrize("name", ["shapemask_R50", "shapemask_light16_R101", "retinamask_R50"])
def test_p6_is_made_from_p5(name):
    backbone = model(config(name)).backbone
    assert backbone.top_block.in_feature == "p5"
    assert backbone.top_block.p6.in_channels == 256


def test_norms_of_shapemasks_detector():
    built = model(config("shapemask_R50"))
    assert isinstance(built.backbone.fpn_output3.norm, torch.nn.BatchNorm2d)
    (first, *_) = (
        m for m in built.proposal_generator.head.cls_subnet if not hasattr(m, "kernel_size")
    )
    # A batch norm for each of P3 to P7.
    assert [type(x) for x in first] == [torch.nn.BatchNorm2d] * 5
    nasfpn = model(config("shapemask_R101_NASFPN")).backbone
    kinds = {type(m) for m in nasfpn.modules() if "Norm" in type(m).__name__}
    assert not any(issubclass(kind, torch.nn.GroupNorm) for kind in kinds)
    assert any(issubclass(kind, torch.nn.BatchNorm2d) for kind in kinds)


def test_suppression_of_retinamask():
    detector = model(config("retinamask_R50")).proposal_generator
    assert detector.test_selection.nms_thresh == 0.4
    assert model(config("retinanet_R50")).proposal_generator.test_selection.nms_thresh == 0.5


@pytest.mark.parametrize("channels", [16, 32, 64])
def test_light_mask_branches_are_fully_supervised(channels):
    cfg = config(f"shapemask_light{channels}_R101")
    head = model(cfg).roi_heads.mask_head
    assert head.predictor[-1].out_channels == 80
    assert head.shape.priors.shape == (80, 20, 32, 32)
    assert head.reduce.out_channels == channels
    assert cfg.PSIS.SEEN_CLASSES == "all"
    agnostic = config(f"shapemask_light{channels}_agnostic_R101")
    assert model(agnostic).roi_heads.mask_head.predictor[-1].out_channels == 1
    assert agnostic.PSIS.SEEN_CLASSES == "voc"


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("maskrcnn_oracle_R50", 80),
        ("maskrcnn_oracle_agnostic_R50", 1),
        ("maskrcnn_grabcut_R50", 80),
        ("maskrcnn_grabcut_unseen_R50", 1),
    ],
)
def test_class_specific_rows(name, outputs):
    cfg = config(name)
    assert model(cfg).roi_heads.mask_head.predictor[-1].out_channels == outputs
    assert ("oracle" in name) == cfg.PSIS.ORACLE
    # The published GrabCut row has no annotated mask; the variant has those of the seen.
    no_masks = name == "maskrcnn_grabcut_R50"
    assert (0.0 if no_masks else 1.0) == cfg.PSIS.MASK_IMAGE_FRACTION
    assert (cfg.PSIS.MISSING_MASKS == "grabcut") == ("grabcut" in name)


def test_stages_of_visual_genome():
    first, second = config("fasterrcnn_vg3k_R101"), config("maskx_vg3k_R101")
    assert list(first.DATASETS.TRAIN) == ["vg_train"]
    assert not first.MODEL.MASK_ON
    assert f"{first.OUTPUT_DIR}/model_final.pth" == second.MODEL.WEIGHTS
    assert second.PSIS.TRAIN_ONLY == "mask_head"
    assert second.PSIS.MASKED_IMAGES_ONLY
    detector, whole = model(first).state_dict(), model(second).state_dict()
    assert {k: v.shape for k, v in whole.items() if "mask_head" not in k} == {
        k: v.shape for k, v in detector.items()
    }
    joint = config("maskx_vg3k_joint_R101")
    assert (joint.PSIS.TRAIN_ONLY, joint.PSIS.MASKED_IMAGES_ONLY) == ("", False)


@pytest.mark.parametrize(
    "name",
    [
        *("teacher_student_R50", "teacher_student_R101"),
        *("opmask_teacher_student_R50", "opmask_teacher_student_R101"),
    ],
)
def test_the_student_learns_all_channels(name):
    assert model(config(name)).roi_heads.mask_head.channels == "all"
