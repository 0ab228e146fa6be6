"""Gradient clipping over the whole model, and steps by PyTorch's fused kernels."""

import io

import psis_d2  # noqa: F401
from psis_d2.engine import solver
from psis_d2.engine.solver import build_optimizer, keeping_settings
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


class Stepped:
    """A small model with an optimizer, given the same gradients whatever its kernels are.

    Args:
        fused: whether with PyTorch's fused kernels.
        keys: of the config.
    """

    def __init__(self, fused: bool, *keys):
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), torch.nn.GroupNorm(4, 8), torch.nn.Linear(5, 4)
        ).to(memory_format=torch.channels_last)
        cfg = tiny_config("SOLVER.BASE_LR", 0.1, "SOLVER.WEIGHT_DECAY", 0.01, *keys)
        with pytest.MonkeyPatch.context() as patch:
            if not fused:
                patch.setattr(solver, "_has_fused_kernels", lambda kind: False)
            self.optimizer = build_optimizer(cfg, self.model)

    def steps(self, first: int, last: int, missing: bool = True) -> "Stepped":
        for k in range(first, last):
            generator = torch.Generator().manual_seed(k)
            for index, weight in enumerate(self.model.parameters()):
                # In another memory format than the weight's; the last layer's are missing at times.
                gradient = torch.randn(weight.shape, generator=generator)
                weight.grad = None if missing and index >= 4 and k in (0, 1, 4) else gradient
            self.optimizer.step()
        return self

    def resumed_from(self, other: "Stepped") -> "Stepped":
        file = io.BytesIO()
        torch.save((other.model.state_dict(), other.optimizer.state_dict()), file)
        file.seek(0)
        weights, state = torch.load(file)
        self.model.load_state_dict(weights)
        with keeping_settings(self.optimizer):
            self.optimizer.load_state_dict(state)
        return self

    def weights(self) -> list[torch.Tensor]:
        return [p.detach() for p in self.model.parameters()]

    def is_fused(self) -> bool:
        kinds = {bool(group["fused"]) for group in self.optimizer.param_groups}
        assert not any(group["fused"] and group["foreach"] for group in self.optimizer.param_groups)
        return kinds == {True}


def assert_same(found: Stepped, wanted: Stepped) -> None:
    for one, other in zip(found.weights(), wanted.weights(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


needs_fused = pytest.mark.skipif(
    not solver._has_fused_kernels(torch.optim.SGD), reason="of a PyTorch with fused SGD on a CPU"
)
KINDS = [
    ("SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.9),
    ("SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.9, "SOLVER.NESTEROV", True),
    ("SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.0),
    ("SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", 0.01),
]


@needs_fused
@pytest.mark.parametrize("keys", KINDS)
@pytest.mark.parametrize("clip", ["full_model", "norm", "value", ""])
def test_fused_steps_are_the_plain_ones(keys, clip):
    clipping = (
        "SOLVER.CLIP_GRADIENTS.ENABLED",
        bool(clip),
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
        0.5,
    )
    if clip:
        clipping += ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip)
    plain, fused = (Stepped(kind, *keys, *clipping) for kind in (False, True))
    assert fused.is_fused() and not plain.is_fused()
    before = [w.clone() for w in fused.weights()]
    missing = clip != "value"  # PyTorch refuses to clip the values of no gradient
    assert_same(fused.steps(0, 6, missing), plain.steps(0, 6, missing))
    assert all(
        (new - old).abs().max() > 1e-3 for new, old in zip(fused.weights(), before, strict=True)
    )


@needs_fused
@pytest.mark.parametrize("keys", KINDS)
@pytest.mark.parametrize("cut", [1, 3])
def test_runs_go_on_with_the_kernels_of_their_own_device(keys, cut):
    """After one step the last layer has no state yet, after three it has."""
    whole = Stepped(False, *keys).steps(0, 6)
    for first, second in ((False, True), (True, False), (True, True)):
        begun = Stepped(first, *keys).steps(0, cut)
        assert not any(group["fused"] for group in begun.optimizer.state_dict()["param_groups"])
        assert begun.is_fused() == first  # not changed by saving
        resumed = Stepped(second, *keys).resumed_from(begun)
        assert resumed.is_fused() == second
        assert_same(resumed.steps(cut, 6), whole)


@needs_fused
def test_detectron2s_choice_of_kernels_makes_way(monkeypatch):
    """Its main asks for loops over lists, which PyTorch would prefer to fused kernels."""
    build = solver.build_detectron2_optimizer

    def with_lists(cfg, model):
        optimizer = build(cfg, model)
        for group in optimizer.param_groups:
            group["foreach"] = True
        return optimizer

    monkeypatch.setattr(solver, "build_detectron2_optimizer", with_lists)
    assert Stepped(True, *KINDS[0]).is_fused()
    resumed = Stepped(True, *KINDS[0]).resumed_from(Stepped(False, *KINDS[0]).steps(0, 2))
    assert resumed.is_fused()


def test_parameters_elsewhere_keep_their_kernels():
    model = torch.nn.Linear(2, 2, device="meta")
    optimizer = build_optimizer(tiny_config("SOLVER.OPTIMIZER", "SGD"), model)
    assert not any(group["fused"] for group in optimizer.param_groups)
