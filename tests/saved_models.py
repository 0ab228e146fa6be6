"""A model in a checkpoint file, for the tests of what people do with one."""

from pathlib import Path

from psis_d2.config import add_psis_config
from psis_d2.engine.checkpoint import Checkpointer

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from model_builders import CONFIGS, tiny_config

CLASSES = ("box", "cup", "hat")


def save_model(folder: Path, *overrides, config: str = "", marks_all: bool = True) -> str:
    """Write a small random model of three classes, the first of them seen.

    Args:
        folder: of the file.
        *overrides: KEY, VALUE, ... of the config.
        config: a file of configs/, as wide as it says; "" = a narrow Mask R-CNN.
        marks_all: let the mask predictor's bias be positive, so that no mask is empty.

    Returns:
        The path of the checkpoint.
    """
    few = ("TEST.DETECTIONS_PER_IMAGE", 5, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    few += ("MODEL.ROI_HEADS.NUM_CLASSES", len(CLASSES), "MODEL.DEVICE", "cpu", *overrides)
    if config:
        cfg = get_cfg()
        add_psis_config(cfg)
        cfg.merge_from_file(str(CONFIGS / config))
        cfg.merge_from_list(list(few))
    else:
        cfg = tiny_config(*few)
    torch.manual_seed(0)
    model = build_model(cfg)
    if marks_all:
        torch.nn.init.constant_(list(model.roi_heads.mask_head.predictor)[-1].bias, 2.0)
    Checkpointer(model, str(folder), class_names=CLASSES, seen_ids=[0], cfg=cfg).save("model")
    return str(folder / "model.pth")
