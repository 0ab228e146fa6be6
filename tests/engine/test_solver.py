"""Gradient clipping over the whole model."""

import psis_d2  # noqa: F401
from psis_d2.engine.solver import build_optimizer
from psis_d2.errors import UserError

import pytest
import torch

from model_builders import tiny_config


def step_of(clip_type: str, gradients: list[float]) -> list[float]:
    """How far plain SGD with rate 1 moves two scalar parameters with the given gradients."""
    model = torch.nn.Module()
    model.a, model.b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    cfg = tiny_config("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip_type, "SOLVER.BASE_LR", 1.0)
    cfg.SOLVER.OPTIMIZER = "SGD"
    cfg.merge_from_list(["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 5.0, "SOLVER.WEIGHT_DECAY", 0.0])
    optimizer = build_optimizer(cfg, model)
    model.a.grad, model.b.grad = (torch.tensor([g]) for g in gradients)
    optimizer.step()
    return [-model.a.item(), -model.b.item()]


def test_full_model_keeps_the_direction():
    # |(6, 8)| = 10 is scaled to 5; each parameter alone would be cut at 5.
    assert step_of("full_model", [6.0, 8.0]) == pytest.approx([3.0, 4.0], rel=1e-5)
    assert step_of("norm", [6.0, 8.0]) == pytest.approx([5.0, 5.0], rel=1e-5)


def test_small_gradients_are_left_alone():
    assert step_of("full_model", [0.3, -0.4]) == pytest.approx([0.3, -0.4])


def test_clipping_can_be_off():
    model = torch.nn.Linear(1, 1, bias=False)
    cfg = tiny_config("SOLVER.CLIP_GRADIENTS.ENABLED", False, "SOLVER.BASE_LR", 1.0)
    cfg.SOLVER.OPTIMIZER = "SGD"
    cfg.merge_from_list(["SOLVER.WEIGHT_DECAY", 0.0])
    optimizer = build_optimizer(cfg, model)
    before = model.weight.item()
    model.weight.grad = torch.full((1, 1), 100.0)
    optimizer.step()
    assert before - model.weight.item() == pytest.approx(100.0)


def test_adamw_steps_by_its_rate_whatever_the_gradient():
    model = torch.nn.Linear(1, 1, bias=False)
    cfg = tiny_config("SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", 0.01)
    cfg.merge_from_list(["SOLVER.WEIGHT_DECAY", 0.0])
    optimizer = build_optimizer(cfg, model)
    before = model.weight.item()
    model.weight.grad = torch.full((1, 1), 3.0)
    optimizer.step()
    assert before - model.weight.item() == pytest.approx(0.01, rel=1e-4)


def test_unknown_optimizer():
    cfg = tiny_config("SOLVER.OPTIMIZER", "Adam")
    with pytest.raises(UserError, match="SOLVER.OPTIMIZER is 'Adam'; choose SGD or AdamW"):
        build_optimizer(cfg, torch.nn.Linear(1, 1))
