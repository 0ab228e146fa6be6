"""Detectron2's optimizer, with one more kind of gradient clipping and AdamW beside SGD."""

from psis_d2.errors import UserError

import torch
from detectron2.solver import build_optimizer as build_detectron2_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping


def build_optimizer(cfg, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a config.

    ``SOLVER.OPTIMIZER`` is "SGD", Detectron2's, or "AdamW", with the same groups of parameters.

    Beside Detectron2's ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` ("value" and "norm", which clips every
    parameter by itself and so changes the direction of the step) there is "full_model": one norm,
    that of all parameters together, is limited to ``CLIP_VALUE``.

    Args:
        cfg: the full config.
        model: its model.

    Raises:
        UserError: the optimizer is unknown.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS.clone()
    full_model = clip.ENABLED and clip.CLIP_TYPE == "full_model"
    if full_model:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    if cfg.SOLVER.OPTIMIZER == "SGD":
        optimizer = build_detectron2_optimizer(cfg, model)
    elif cfg.SOLVER.OPTIMIZER == "AdamW":
        optimizer = _build_adamw(cfg, model)
    else:
        raise UserError(f"SOLVER.OPTIMIZER is '{cfg.SOLVER.OPTIMIZER}'; choose SGD or AdamW.")
    if full_model:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]

        def clip_all(*_):
            torch.nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, clip.NORM_TYPE)

        optimizer.register_step_pre_hook(clip_all)
    return optimizer


def _build_adamw(cfg, model: torch.nn.Module) -> torch.optim.Optimizer:
    solver = cfg.SOLVER
    parameters = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    kind = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return kind(parameters, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)
