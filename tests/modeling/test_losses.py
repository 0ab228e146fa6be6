"""Shared mask losses against hand-computed values."""

import math

from psis_d2.modeling.losses import (
    boundary_bce,
    dice_loss,
    mask_bce,
    select_class,
    weighted_bce,
    zero_loss,
)

import pytest
import torch


def test_mask_bce_by_hand():
    # One region, one class, four cells: logits 0 cost log 2 whatever the target; logit 2 on a
    # positive costs log(1 + e^-2), on a negative log(1 + e^2).
    logits = torch.tensor([[[[0.0, 0.0], [2.0, 2.0]]]])
    target = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    expected = (2 * math.log(2) + math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))) / 4
    assert mask_bce(logits, target, torch.tensor([7])).item() == pytest.approx(expected, abs=1e-6)


def test_weights_are_factors_of_regions_and_no_part_of_the_mean():
    # Logits 0 cost log 2: three regions of weights 1, 1/2 and 1/4 have a mean of 7/12 of that.
    logits, weights = torch.zeros(3, 2, 2), torch.tensor([1.0, 0.5, 0.25])
    loss = weighted_bce(logits, torch.ones(3, 2, 2), weights)
    assert loss.item() == pytest.approx(7 / 12 * math.log(2))
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(3, 5, 5, generator=generator), torch.ones(3, 5, 5)
    assert torch.equal(
        weighted_bce(logits, targets, torch.ones(3)), weighted_bce(logits, targets, None)
    )


def test_class_specific_logits_use_the_own_channel_only():
    logits = torch.zeros(2, 3, 1, 1)
    logits[0, 2], logits[1, 0] = 5.0, -5.0
    assert select_class(logits, torch.tensor([2, 0])).flatten().tolist() == [5.0, -5.0]


def test_zero_loss_reaches_every_trainable_parameter():
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Linear(2, 2))
    module[1].bias.requires_grad_(False)
    loss = zero_loss(module)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad.eq(0).all() for p in module.parameters() if p.requires_grad)
    assert module[1].bias.grad is None


def test_dice_by_hand():
    p, t = torch.tensor([[[0.5, 1.0]], [[0.0, 0.0]]]), torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
    assert dice_loss(p, t).tolist() == pytest.approx([1 - 2 * 0.5 / (1.25 + 1), 1.0], abs=1e-4)
    assert dice_loss(t, t).tolist() == pytest.approx([0, 0], abs=1e-4)
    empty = torch.full((1, 4), 0.3, requires_grad=True)
    loss = dice_loss(empty, torch.zeros(1, 4))
    loss.sum().backward()
    assert loss.item() == 1
    assert empty.grad.eq(0).all()


def test_boundary_bce_by_hand():
    """Two of four columns: the contour lies between the second and the third."""
    targets = torch.zeros(2, 4, 4)
    targets[0, :, :2] = 1  # the second region has no contour
    logits = torch.tensor([9.0, 1.0, 2.0, 9.0]).expand(2, 4, 4).clone().requires_grad_()
    region = (math.log1p(math.exp(-1)) + math.log1p(math.exp(2))) / 2
    assert boundary_bce(logits, targets).item() == pytest.approx(region / 2)
    weighted = boundary_bce(logits, targets, torch.tensor([0.5, 1.0]))
    assert weighted.item() == pytest.approx(region / 4)
    weighted.backward()
    assert logits.grad[0].ne(0).any(dim=0).tolist() == [False, True, True, False]
    assert logits.grad[1].eq(0).all()
