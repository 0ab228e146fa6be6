"""Detectron2's optimizer, with one more kind of gradient clipping and AdamW beside SGD."""

import contextlib
import functools
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
_KERNELS = ("fused", "foreach")  # which of its kernels PyTorch steps with


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
    for old, new in zip(configured, optimizer.param_groups, strict=True):
        for name in _KERNELS:  # a matter of this run's device and PyTorch, not of the saving one's
            new[name] = old.get(name)
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
    if all(p.device.type == "cpu" for group in optimizer.param_groups for p in group["params"]):
        _step_in_one_pass(optimizer)
    return optimizer


def _step_in_one_pass(optimizer: torch.optim.Optimizer) -> None:
    """Let PyTorch's fused kernels step parameters on a CPU, where it has them; up to rounding.

    They pass over weights, gradients and momentum once; the loop that runs otherwise does so three
    times, and makes a copy of all gradients for the weight decay.
    """
    if not _has_fused_kernels(getattr(torch.optim, _kind(optimizer.param_groups))):
        return
    for group in optimizer.param_groups:
        group["fused"], group["foreach"] = True, False  # Detectron2's main asks for the latter
    optimizer.register_step_pre_hook(_lay_out_alike)
    optimizer.register_state_dict_post_hook(_without_kernels)


def _without_kernels(_, state: dict) -> dict:
    """What is saved, for any device: PyTorch would put a fused AdamW's counters on a GPU."""
    for group in state["param_groups"]:
        group.update(dict.fromkeys(_KERNELS))
    return state


@functools.cache
def _has_fused_kernels(kind: type[torch.optim.Optimizer]) -> bool:
    weight = torch.nn.Parameter(torch.zeros(1, device="cpu"))
    weight.grad = torch.zeros_like(weight)
    try:
        kind([weight], lr=0.0, fused=True).step()
    except (RuntimeError, TypeError):  # an older PyTorch: not on a CPU, or not at all
        return False
    return True


@torch.no_grad()
def _lay_out_alike(optimizer: torch.optim.Optimizer, *_) -> None:
    """Before a step: gradients and state in the weights' memory format, and no momentum missing.

    Fused kernels go through memory and look at no strides: a state that a GPU's run has saved may
    be in another format. They want the momentum of all weights or of none; zero is as good as none,
    as Detectron2 has no dampening.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is None:
                continue
            if weight.grad.stride() != weight.stride():
                weight.grad = torch.empty_like(weight).copy_(weight.grad)
            state = optimizer.state[weight]
            if group.get("momentum") and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(weight)
            for name, value in state.items():
                alike = isinstance(value, torch.Tensor) and value.shape == weight.shape
                if alike and value.stride() != weight.stride():
                    state[name] = torch.empty_like(weight).copy_(value)


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
