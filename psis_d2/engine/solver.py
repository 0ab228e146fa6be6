"""Detectron2's optimizer, with one more kind of gradient clipping and AdamW beside SGD."""

import contextlib
import logging
from collections.abc import Iterator

from psis_d2.errors import UserError

import torch
from detectron2.solver import build_optimizer as build_detectron2_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping

logger = logging.getLogger(__name__)

_SETTINGS = {
    "initial_lr": "SOLVER.BASE_LR",
    "weight_decay": "SOLVER.WEIGHT_DECAY",
    "momentum": "SOLVER.MOMENTUM",
}


@contextlib.contextmanager
def keeping_settings(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """While a checkpoint is loaded: warn of settings of the config that its optimizer overrides.

    PyTorch keeps learning rate, weight decay and momentum with the optimizer's state, so a resumed
    run goes on with those of its beginning, whatever the config says by now.

    Args:
        optimizer: as the config builds it, its scheduler included.

    Raises:
        UserError: the checkpoint's optimizer is of another kind.
    """
    configured = [dict(group) for group in optimizer.param_groups]
    yield
    own, resumed = (_kind(groups) for groups in (configured, optimizer.param_groups))
    if own != resumed:
        raise UserError(
            f"SOLVER.OPTIMIZER is {own}, but the checkpoint to resume from has the state of "
            f"{resumed}; set it to {resumed}, or start a new run from the checkpoint as "
            "MODEL.WEIGHTS, without --resume."
        )
    differing = {
        name: (old[name], new[name])
        for name in _SETTINGS
        for old, new in zip(configured, optimizer.param_groups, strict=True)
        if name in old and name in new and old[name] != new[name]
    }
    if differing:
        logger.warning(
            "The resumed run goes on with its checkpoint's optimizer: %s; to change that, start a "
            "new run from the checkpoint as MODEL.WEIGHTS, without --resume.",
            ", ".join(
                f"{_SETTINGS[name]} is {resumed:g} there, and the config's {own:g} has no effect"
                for name, (own, resumed) in differing.items()
            ),
        )


def _kind(groups: list[dict]) -> str:
    return "AdamW" if "betas" in groups[0] else "SGD"


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
