"""Keys without effect in the chosen model, and names that nothing is registered by."""

from pathlib import Path

import psis_d2.modeling  # noqa: F401  (registers heads)
from psis_d2.config import add_psis_config
from psis_d2.config_files import check_part_options, merge_file, merge_options
from psis_d2.config_rules import check_config
from psis_d2.engine import model_keys
from psis_d2.engine.model_keys import check_model
from psis_d2.errors import UserError

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from one_sentence import refusal

from model_builders import tiny_model

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*"))
NAMES = [name for name in NAMES if (CONFIGS / f"{name}.yaml").is_file()]
SHAPEPROP = ("MODEL.ROI_MASK_HEAD.NAME", "ShapePropMaskHead")
HOURGLASS = ("MODEL.ROI_MASK_HEAD.NAME", "HourglassMaskHead", "MODEL.ROI_MASK_HEAD.NORM", "GN")
HOURGLASS = (*HOURGLASS, "MODEL.ROI_MASK_HEAD.CONV_DIM", 32)
CPMASK = ("MODEL.ROI_MASK_HEAD.NAME", "CPMaskHead", "MODEL.ROI_MASK_HEAD.CONV_DIM", 32)
MASKX = ("MODEL.ROI_MASK_HEAD.NAME", "MaskXMaskHead")
FCOS = ("MODEL.PROPOSAL_GENERATOR.NAME", "FCOS")
RETINANET = ("MODEL.PROPOSAL_GENERATOR.NAME", "RetinaNet")
SHAPEMASK = ("MODEL.ROI_MASK_HEAD.NAME", "ShapeMaskHead")
TEACHER = ("MODEL.ROI_MASK_HEAD.NAME", "TeacherStudentMaskHead")
CLS_AGNOSTIC = "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK"
TEACHER_OPTS = "PSIS.TEACHER_STUDENT.TEACHER_OPTS"


def config(*options, name: str = "Base-RCNN-FPN") -> CfgNode:
    cfg = get_cfg()
    add_psis_config(cfg)
    merge_file(cfg, str(CONFIGS / f"{name}.yaml"))
    merge_options(cfg, options)
    return cfg


@pytest.mark.parametrize("name", NAMES)
def test_all_configs_pass(name, monkeypatch):
    build, built = model_keys._notes_of_building, []
    monkeypatch.setattr(
        model_keys, "_notes_of_building", lambda cfg: built.append(build(cfg)) or built[0]
    )
    cfg = config(name=name)
    check_config(cfg)
    check_part_options(cfg)
    check_model(cfg)
    assert built != [None], "the check was left out"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((*SHAPEPROP, "PSIS.FCN_UPSAMPLINGS", 2), "PSIS.FCN_UPSAMPLINGS 2 would have no effect"),
        ((*HOURGLASS, CLS_AGNOSTIC, False), f"{CLS_AGNOSTIC} is False, but this model (Generalize"),
        (("PSIS.TEACHER_STUDENT.WARM_START", 5), "PSIS.TEACHER_STUDENT.WARM_START 5 would have"),
        # Each of its heads has a value of its own.
        ((*TEACHER, CLS_AGNOSTIC, False), f"{CLS_AGNOSTIC} is False, but this model (Generalized"),
        (("PSIS.CPMASK.BOUNDARY", False), "PSIS.CPMASK.BOUNDARY False would have no effect"),
        (("PSIS.FCOS.NMS_THRESH", 0.5), "(GeneralizedRCNN, PartialRPN, FCNMaskHead) reads no"),
        (("PSIS.RETINANET.BOX_LOSS_WEIGHT", 2.0), "which is to say 1.0."),
        (("PSIS.SHAPEMASK.PRIORS_SEED", 3), "PSIS.SHAPEMASK.PRIORS_SEED 3 would have no effect"),
        ((*TEACHER, TEACHER_OPTS, ["PSIS.CPMASK.FUSION", False]), "PSIS.CPMASK.FUSION would have"),
        (
            ("PSIS.CPMASK.FUSION", False, "PSIS.OPMASK.CAM_BIAS", True),
            "PSIS.CPMASK.FUSION False, PSIS.OPMASK.CAM_BIAS True would have no effect",
        ),
        (("MODEL.MASK_ON", False, "PSIS.FCOS.NMS_THRESH", 0.5), "no mask head) reads no such key"),
    ],
)
def test_keys_without_effect(options, words):
    assert words in refusal(check_model, config(*options))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("PSIS.TEACHER_STUDENT.PSEUDO_WEIGHT", 0.5),
        ("PSIS.MASK_TRAIN_BOXES", "gt"),
        ("PSIS.ROI_CHANNEL_DROPOUT", 0.5),
        ("PSIS.ROI_FEATURE_DROP", 0.5),
        ("PSIS.MLP_BRANCH", True),
        ("PSIS.FCN_UPSAMPLINGS", 2),
    ],
)
def test_keys_of_region_heads_have_no_effect_without_regions(key, value):
    words = refusal(check_model, config(key, value, name="condinst_R50"))
    assert f"{key} {value!r} would have no effect, since this model (CondInst, FCOS)" in words


@pytest.mark.parametrize(
    "options",
    [
        ("PSIS.FCN_UPSAMPLINGS", 2),
        (*SHAPEPROP, "PSIS.SHAPEPROP.STEPS", 3),
        (*SHAPEPROP, CLS_AGNOSTIC, False),
        (*SHAPEMASK, "PSIS.SHAPEMASK.PRIORS_SEED", 3, "PSIS.SHAPEMASK.NUM_PRIORS", 3),
        (*TEACHER, "PSIS.FCN_UPSAMPLINGS", 2),
        (*TEACHER, TEACHER_OPTS, ["PSIS.FCN_UPSAMPLINGS", 2]),
        (*TEACHER, "PSIS.TEACHER_STUDENT.STUDENT", "CPMaskHead", "PSIS.CPMASK.FUSION", False),
        ("MODEL.MASK_ON", False, "PSIS.CPMASK.FUSION", False),  # no masks, no wishes about them
        ("MODEL.MASK_ON", False, CLS_AGNOSTIC, False),
    ],
)
def test_keys_with_effect(options):
    check_model(config(*options))


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("MODEL.ROI_MASK_HEAD.NAME", "ShapPropMaskHead", "ShapePropMaskHead"),
        ("MODEL.META_ARCHITECTURE", "GeneralisedRCNN", "GeneralizedRCNN"),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "PartalRPN", "PartialRPN"),
        ("MODEL.ROI_HEADS.NAME", "PartialRoiHeads", "PartialROIHeads"),
        ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbon", "build_resnet_fpn_backbone"),
        ("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFcHead", "FastRCNNConvFCHead"),
        ("PSIS.TEACHER_STUDENT.STUDENT", "FCNMaskhead", "FCNMaskHead"),
    ],
)
def test_misspelled_names(key, value, hint):
    options = TEACHER if key.startswith("PSIS") else ()
    words = refusal(check_model, config(*options, key, value))
    assert words.startswith(f"{key} is '{value}'; choose one of ")
    assert words.endswith(f" (did you mean {hint}?).")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((*SHAPEPROP, "PSIS.SHAPEPROP.FUSION", "embde"), "FUSION is 'embde'; choose one of embed"),
        ((*SHAPEMASK, "PSIS.SHAPEMASK.CROP", "box"), "CROP is 'box'; choose one of outer_box"),
        ((*CPMASK, "PSIS.CPMASK.FUSION_NORM", "LN"), "NORM is 'LN'; choose one of BN, SyncBN, GN"),
        ((*CPMASK, "PSIS.CPMASK.AFFINITY_TERMS", 3), "TERMS is 3; it must be a whole number"),
        ((*MASKX, "PSIS.MASKX.LAYERS", 4), "LAYERS is 4; it must be a whole number, at least 1"),
        ((*FCOS, "PSIS.FCOS.TOWER_INIT", "zero"), "TOWER_INIT is 'zero'; choose one of normal"),
        ((*RETINANET, "PSIS.RETINANET.CLS_NORMALIZER", "all"), "'all'; choose one of positives"),
        ((*RETINANET, "MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "l3"), "'l3'; choose one of smooth_l1"),
    ],
)
def test_parts_check_their_keys_without_a_command_line(options, words):
    with pytest.raises(UserError) as caught:
        tiny_model(*options)
    assert words in str(caught.value)


def test_checking_draws_no_random_number_and_reads_no_made_file(tmp_path):
    (tmp_path / "shape_priors.npz").write_text("of another config")
    before = torch.get_rng_state()
    check_model(config(*SHAPEMASK, "OUTPUT_DIR", str(tmp_path)))
    assert torch.equal(torch.get_rng_state(), before)


@ROI_MASK_HEAD_REGISTRY.register()
class HeadThatNeedsADevice(torch.nn.Module):
    """Not to be built on the meta device."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        torch.ones(1).item()


def test_a_model_that_cannot_be_built_without_a_device_is_left_to_the_run():
    check_model(config("MODEL.ROI_MASK_HEAD.NAME", "HeadThatNeedsADevice"))


def test_notes_of_copies():
    """A value that a copy has of its own is not a read of the original's."""
    cfg = CfgNode({"A": CfgNode({"X": 1, "Y": 2, "Z": 3})})
    notes = model_keys._Notes()
    noted = model_keys._NotedConfig(cfg, notes)
    part = noted.clone()
    part.A.X = 5
    assert (part.A.X, noted.A.get("W", 7), part.A.Y) == (5, 7, 2)
    assert notes.reads == {"A.Y"}
    assert dict(noted.A.items()) == {"X": 1, "Y": 2, "Z": 3}
    assert notes.reads == {"A.X", "A.Y", "A.Z"}
    assert notes.copies[0].written == {"A.X": True}
