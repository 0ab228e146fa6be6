"""The device that is not there: what it computes, counts and refuses."""

import psis_d2.modeling  # noqa: F401

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.stand_in import DEVICE, MixedDevices, StandInDevice, StandInTensor, Wait

X = torch.tensor([[1.0, -2.0], [0.5, 3.0]])


def waits(function):
    """How often the host waits while `function` gets X on the device."""
    with StandInDevice() as device:
        x = X.to(DEVICE, non_blocking=True)
        function(x)
    return device.total


@pytest.mark.parametrize(
    ("number", "function"),
    [
        (0, lambda x: (x @ x).relu().sum(dim=0).topk(1)),
        (0, lambda x: torch.zeros(3, device=DEVICE).fill_(2)),
        (0, lambda x: F.one_hot((x > 0).long(), 3)),
        (0, lambda x: x[torch.zeros(1, dtype=torch.int64, device=DEVICE)]),
        (0, lambda x: x.masked_fill_(x > 0, 1.0)),
        (0, lambda x: x.__setitem__(x > 0, 1.0)),  # CUDA fills, too
        (1, lambda x: x.__setitem__(x > 0, torch.ones(3, device=DEVICE))),
        (1, lambda x: x[x > 0]),
        (1, lambda x: x.sum().item()),
        (1, lambda x: float(x[0, 0])),
        (1, lambda x: bool((x > 0).any())),
        (1, lambda x: x.tolist()),
        (1, lambda x: x.cpu()),
        (0, lambda x: x.to("cpu", non_blocking=True)),
        (1, lambda x: x.new_tensor([1.0])),
        (1, lambda x: torch.tensor([1.0], device=DEVICE)),
        (1, lambda x: X.to(DEVICE)),
        (1, lambda x: (x > 0).nonzero()),
        (1, lambda x: x.unique()),
        (2, lambda x: torch.bincount((x[0] > 0).long())),
        (2, lambda x: x[0].repeat_interleave((x[0] > 0).long())),
        (0, lambda x: x[0].repeat_interleave((x[0] > 0).long(), output_size=1)),
    ],
)
def test_what_a_gpu_would_wait_for(number, function):
    assert waits(function) == number


def test_a_wait_is_named_by_its_line():
    with StandInDevice() as device:
        x = X.to(DEVICE, non_blocking=True)
        x.sum().item()
    (wait,) = device.waits
    assert wait.op == "aten::_local_scalar_dense" and "test_stand_in.py:" in wait.place
    (line,) = device.places()
    assert line == f"{wait.place} {wait.op}" and device.places()[line] == 1


def test_a_wait_of_the_backward_pass_is_named_so():
    with StandInDevice() as device:
        x = X.to(DEVICE, non_blocking=True).requires_grad_()
        rows = x[:, 0] > 0
        x[rows].sum().backward()
    assert device.waits[Wait("aten::index_put by a mask", "backward")] == 1


def test_mixed_devices_are_refused():
    with StandInDevice():
        x = X.to(DEVICE)
        assert (x * torch.tensor(2.0)).device == DEVICE  # single numbers may lie on the CPU
        with pytest.raises(MixedDevices, match=r"aten::add .* shape \[2, 2\]"):
            x + X
        with pytest.raises(MixedDevices, match="aten::cat"):
            torch.cat([x, X])
        assert x[torch.tensor([1])].device == DEVICE


def test_values_and_gradients_are_those_of_the_cpu():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    images = torch.randn(2, 3, 8, 8)
    expected = model(images).square().mean()
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
    with StandInDevice() as device:
        device.place(model)
        found = model(images.to(DEVICE)).square().mean()
        found.backward()
    assert isinstance(found, StandInTensor) and torch.equal(found.detach().value, expected.detach())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad.value, gradient)
    assert device.total == 1  # the images


def test_views_share_their_values():
    with StandInDevice():
        x = torch.zeros(3, 2, device=DEVICE)
        x[1:, 0].add_(torch.ones(2, device=DEVICE))
        x[0] = 5.0
        assert x.tolist() == [[5, 5], [1, 0], [1, 0]]
