"""Group norm of small maps: PyTorch's values, gradients and keys, and when it is PyTorch's own."""

import psis_d2  # noqa: F401
from psis_d2.modeling.norms import MapGroupNorm, _RowGroupNorm, tower_norm

import pytest
import torch
from detectron2.layers import get_norm
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

# Regions, channels, height, width: more channels than groups and fewer, sides that differ, one row,
# one channel, the sizes whose forward is PyTorch's, the largest.
SHAPES = [
    (3, 64, 8, 8),
    (1, 32, 9, 11),
    (2, 48, 14, 14),
    (2, 32, 1, 70),
    (3, 1, 8, 9),
    (2, 7, 8, 8),
]
SHAPES += [(2, 64, 31, 33), (1, 96, 32, 32), (1, 32, 64, 64)]


def norms(channels: int) -> tuple[nn.GroupNorm, nn.GroupNorm]:
    """Ours, and PyTorch's in double precision with the same weights."""
    torch.manual_seed(1)
    own = tower_norm("GN")(channels)
    nn.init.normal_(own.weight)
    nn.init.normal_(own.bias)
    literal = nn.GroupNorm(own.num_groups, channels, dtype=torch.float64)
    literal.load_state_dict(own.state_dict())
    return own, literal


def maps(*shape: int, offset: float = 0.0) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) + offset
    return x.to(memory_format=torch.channels_last).requires_grad_()


def results(norm: nn.GroupNorm, x: torch.Tensor, slope: torch.Tensor) -> list[torch.Tensor]:
    y = norm(x)
    gradients = torch.autograd.grad(y, (x, norm.weight, norm.bias), slope.to(y.dtype))
    return [y.detach(), *gradients]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format, "one value"])
def test_values_and_gradients_are_pytorchs(shape, layout):
    own, literal = norms(shape[1])
    x = maps(*shape)
    assert type(own(x).grad_fn).__name__ == "_RowGroupNormBackward"
    assert own(x).is_contiguous(memory_format=torch.channels_last)
    slope = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    if layout == "one value":  # what the gradient of a sum is: no stride but 0
        slope = torch.tensor(0.7).expand(shape)
    else:
        slope = slope.to(memory_format=layout)
    expected = results(literal, x.detach().double().requires_grad_(), slope)
    for found, wanted in zip(results(own, x, slope), expected, strict=True):
        scale = wanted.abs().max().item()
        # Of one value, the weight's gradient is 0 and what is left of a sum over all cells.
        scale += shape[2] * shape[3] / 256
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5 * max(scale, 1.0))


@pytest.mark.parametrize("shape", [(2, 6, 8, 8), (1, 4, 32, 32)])
def test_gradients_are_those_of_the_forward(shape):
    """By differences: both with our forward and with PyTorch's."""
    x = maps(*shape).detach().double().requires_grad_()
    weight, bias = (torch.randn(shape[1], dtype=torch.float64, requires_grad=True) for _ in "wb")
    fast = shape[2] * shape[3] > 500  # one projection of all differences, instead of each
    torch.autograd.gradcheck(
        lambda *t: _RowGroupNorm.apply(*t, 2, 1e-5), (x, weight, bias), fast_mode=fast
    )


@pytest.mark.parametrize("offset", [10.0, 1000.0])
def test_a_mean_far_from_zero_costs_no_more_digits_than_in_pytorch(offset):
    own, literal = norms(64)
    x = maps(4, 64, 14, 14, offset=offset)
    slope = torch.randn_like(x)
    exact = results(literal, x.detach().double().requires_grad_(), slope)
    plain = nn.GroupNorm(own.num_groups, 64)
    plain.load_state_dict(own.state_dict())
    for found, theirs, wanted in zip(
        results(own, x, slope), results(plain, x, slope), exact, strict=True
    ):
        assert (found - wanted).abs().max() <= 4 * (theirs - wanted).abs().max() + 1e-5


def test_a_constant_map_becomes_the_bias():
    own, _ = norms(32)
    x = torch.full((2, 32, 8, 8), 3.0).to(memory_format=torch.channels_last).requires_grad_()
    y, *gradients = results(own, x, torch.ones(2, 32, 8, 8))
    torch.testing.assert_close(
        y, own.bias.detach().view(1, -1, 1, 1).expand(y.shape), rtol=0, atol=1e-3
    )
    assert all(torch.isfinite(g).all() for g in gradients)


def test_what_comes_after_may_overwrite_it():
    """A ReLU in place, as towers have it: the backward reads the input, not the output."""
    own, literal = norms(64)
    x = maps(2, 64, 8, 8)
    slope = torch.randn_like(x)
    (found,) = torch.autograd.grad(own(x).relu_(), x, slope)
    exact = x.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(literal(exact).relu(), exact, slope.double())
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 32, 8, 8),  # not in channels_last
        maps(2, 32, 7, 7),  # too small to win anything
        maps(1, 32, 65, 64),  # PyTorch's is fast
        maps(0, 32, 8, 8),
        torch.randn(2, 32, 64),
        maps(2, 32, 8, 16)[..., ::2],
    ],
)
def test_the_rest_is_pytorchs_own(x):
    own, _ = norms(32)
    x = x.detach().requires_grad_()
    y = own(x)
    assert type(y.grad_fn).__name__ == "NativeGroupNormBackward0"
    assert torch.equal(y, nn.functional.group_norm(x, 32, own.weight, own.bias))


def test_other_number_formats_are_pytorchs_own():
    own, literal = norms(32)
    x = maps(2, 32, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert type(own(x).grad_fn).__name__ == "NativeGroupNormBackward0"
    assert own(x).dtype == torch.float32
    double = MapGroupNorm(32, 32, dtype=torch.float64)
    assert type(double(x.double()).grad_fn).__name__ == "NativeGroupNormBackward0"
    plain = MapGroupNorm(32, 32, affine=False)
    torch.testing.assert_close(plain(x), nn.functional.group_norm(x, 32))


def test_traces_hold_pytorchs_own():
    own, _ = norms(32)
    traced = torch.jit.trace(own, maps(2, 32, 8, 8))
    assert "aten::group_norm" in str(traced.inlined_graph)
    x = maps(5, 32, 7, 9)  # another size than the trace has seen
    torch.testing.assert_close(traced(x), own(x))


def test_it_is_a_group_norm_to_all_that_ask():
    own = get_norm(tower_norm("GN"), 64)
    assert own.state_dict().keys() == nn.GroupNorm(32, 64).state_dict().keys()
    groups = get_default_optimizer_params(nn.Sequential(own), weight_decay_norm=0.5)
    assert [group["weight_decay"] for group in groups] == [0.5]
