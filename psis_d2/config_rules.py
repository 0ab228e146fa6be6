"""Whether every value of a config is one that a run can use, whoever declared the key."""

import functools
from collections.abc import Mapping

from psis_d2.config import psis_keys
from psis_d2.config_checks import (
    Fixed,
    Key,
    Keys,
    Rows,
    check_value,
    check_values,
    flag,
    list_of,
    number,
    one_of,
    text,
    value_of,
    whole,
)
from psis_d2.errors import UserError

from detectron2.config import CfgNode, get_cfg

# Keys that hold keys and values which a part of the model alone is built with.
PART_OPTIONS = ("PSIS.TEACHER_STUDENT.TEACHER_OPTS", "PSIS.TEACHER_STUDENT.STUDENT_OPTS")


def check_config(cfg: CfgNode) -> None:
    """Turn down a config with a value that is misspelled, out of range, or without effect.

    Raises:
        UserError: one sentence that names the key, the value and what it must be.
    """
    check_values(cfg, checked_keys())
    sides = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sides) != 2:
        raise UserError(
            f"INPUT.MIN_SIZE_TRAIN is {list(sides)}, but MIN_SIZE_TRAIN_SAMPLING range draws "
            "between two lengths; give the least and the largest, or set it to choice."
        )


def check_keys(cfg: CfgNode, node: str) -> None:
    """Turn down a wrong value below one node: for whoever builds a part without a command line.

    Args:
        cfg: the full config.
        node: its name, such as "PSIS.FCOS".

    Raises:
        UserError: one sentence that names the key, the value and what it must be.
    """
    for key in checked_keys():
        if key.startswith(f"{node}."):
            check_value(checked_keys(), key, value_of(cfg, key))


@functools.cache
def checked_keys() -> Mapping[str, Key]:
    """Every key whose value is checked, by full name: psis_d2's, and some of Detectron2's."""
    return {**psis_keys(), **_detectron2_keys()}


def _detectron2_keys() -> dict[str, Key]:
    """Keys of Detectron2 that a run would trip over late, or that psis_d2 has no use for."""
    defaults = get_cfg()
    keys = {"OUTPUT_DIR": Key(defaults.OUTPUT_DIR, text(), of_model=False)}

    def known(prefix: str, **checks) -> None:
        node = Keys(keys, prefix, of_model=False)
        at = functools.reduce(lambda inner, part: inner[part], prefix.split("."), defaults)
        for name, check in checks.items():
            setattr(node, name, (at[name], check))

    losses = ("smooth_l1", "self_adjusting", "giou", "diou", "ciou")
    known("MODEL.RETINANET", BBOX_REG_LOSS_TYPE=one_of(*losses))
    known("MODEL.ROI_HEADS", NUM_CLASSES=whole(1))
    known(
        "MODEL",
        MASK_ON=flag(),
        KEYPOINT_ON=Fixed(False, "psis_d2 has no keypoints"),
        LOAD_PROPOSALS=Fixed(False, "psis_d2 reads no files of proposals"),
    )
    known("INPUT", MIN_SIZE_TRAIN_SAMPLING=one_of("choice", "range"))
    known(
        "SOLVER",
        MAX_ITER=whole(1),
        BASE_LR=number(0.0),
        IMS_PER_BATCH=whole(1),
        STEPS=list_of(whole(0)),
        CHECKPOINT_PERIOD=whole(1),
    )
    # full_model: see psis_d2.engine.solver
    known("SOLVER.CLIP_GRADIENTS", CLIP_TYPE=one_of("value", "norm", "full_model"))
    known(
        "DATALOADER",
        NUM_WORKERS=whole(0),
        SAMPLER_TRAIN=one_of("TrainingSampler", "RepeatFactorTrainingSampler"),
    )
    known(
        "TEST",
        EVAL_PERIOD=whole(0),
        DETECTIONS_PER_IMAGE=whole(1),
        EXPECTED_RESULTS=Rows(
            (text(), text(), number(), number(0.0)), '["segm_all", "AP", 30.0, 1.0]'
        ),
        KEYPOINT_OKS_SIGMAS=Fixed([], "psis_d2 has no keypoints"),
    )
    known("TEST.PRECISE_BN", ENABLED=flag(), NUM_ITER=whole(1))
    once = "psis_d2 tests every image once, at INPUT.MIN_SIZE_TEST"
    augmentation = defaults.TEST.AUG
    known("TEST.AUG", **{name: Fixed(default, once) for name, default in augmentation.items()})
    return keys
