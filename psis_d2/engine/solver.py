"""Detectron2's optimizer, with one more kind of gradient clipping."""

import torch
from detectron2.solver import build_optimizer as build_detectron2_optimizer


def build_optimizer(cfg, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a config.

    Beside Detectron2's ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` ("value" and "norm", which clips every
    parameter by itself and so changes the direction of the step) there is "full_model": one norm,
    that of all parameters together, is limited to ``CLIP_VALUE``.

    Args:
        cfg: the full config.
        model: its model.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not (clip.ENABLED and clip.CLIP_TYPE == "full_model"):
        return build_detectron2_optimizer(cfg, model)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    optimizer = build_detectron2_optimizer(cfg, model)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def clip_all(*_):
        torch.nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)

    optimizer.register_step_pre_hook(clip_all)
    return optimizer
