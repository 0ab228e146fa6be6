"""The CUDA launchers and kernels of message_passing, run on the CPU: see cuda_on_cpu.h."""

import ctypes

from psis_d2.ops import reference

import pytest
import torch

from cuda_source import HOPPER, ORDERS, SOURCES, OnCpu, compile_for_cpu, needs_compiler
from op_tester import relative_error

NORMS = {"softmax": 0, "sigmoid_sum": 1, "none": 2}
ERROR = {torch.float64: 1e-12, torch.float32: 2e-6}  # of the norm

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def library():
    return compile_for_cpu(SOURCES / "message_passing_on_cpu.cpp")


@pytest.fixture
def op(library, capfd):
    return OnCpu(library, capfd)


def make_inputs(n, c, wc, size, norm="softmax", dtype=torch.float64):
    """grad, m0 and weights; weights that do not let m grow."""
    generator = torch.Generator().manual_seed(0)
    grad, m0, weights = (
        torch.randn(n, channels, *size, generator=generator, dtype=torch.float64).to(dtype)
        for channels in (c, c, wc * 9)
    )
    return grad, m0, weights * (0.2 if norm == "none" else 1.0)


def run(op, inputs, steps, norm, order="ascending", limit=HOPPER):
    """Output and gradients of m0 and weights, in the dtype of the inputs."""
    _, m0, weights = inputs
    results = [torch.empty(t.shape, dtype=t.dtype) for t in (m0, m0, weights)]
    op.run(inputs, results, (steps, NORMS[norm]), order, limit)
    return results


def expected(grad, m0, weights, steps, norm):
    """The same from the reference in float64."""
    m0, weights = (t.double().requires_grad_() for t in (m0, weights))
    out = reference.message_passing(m0, weights, steps, norm)
    grads = torch.autograd.grad(out, (m0, weights), grad.double(), materialize_grads=True)
    return [out.detach(), *grads]


def assert_close(got, want, scale=1e-30):
    for value, exact in zip(got, want, strict=True):
        assert relative_error(value, exact, scale) <= ERROR[value.dtype]


# More sets of weights than the device has blocks; more pixels than a block has threads.
@pytest.mark.parametrize("limit", [HOPPER, 0], ids=["shared", "global"])
@pytest.mark.parametrize(
    ("n", "c", "wc", "size", "steps", "norm"),
    [
        (2, 3, 3, (1, 1), 2, "softmax"),
        (2, 3, 1, (3, 5), 4, "sigmoid_sum"),
        (1, 2, 2, (3, 5), 0, "softmax"),
        (2, 2, 1, (5, 13), 1, "none"),
        (1, 3, 1, (7, 7), 12, "softmax"),
        (1, 4, 4, (6, 9), 9, "sigmoid_sum"),
        (1, 1, 1, (33, 17), 2, "softmax"),
    ],
)
def test_generic_kernels(op, n, c, wc, size, steps, norm, limit):
    inputs = make_inputs(n, c, wc, size, norm)
    assert_close(run(op, inputs, steps, norm, limit=limit), expected(*inputs, steps, norm))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("n", "c", "wc", "side", "steps", "norm"),
    [
        (1, 1, 1, 14, 14, "softmax"),
        (1, 3, 3, 14, 5, "sigmoid_sum"),  # a warp without a map
        (1, 5, 5, 14, 2, "none"),  # two blocks
        (2, 3, 1, 14, 4, "softmax"),  # four warps, three maps
        (1, 6, 1, 14, 14, "sigmoid_sum"),
        (1, 2, 2, 28, 6, "sigmoid_sum"),
        (2, 3, 1, 28, 3, "softmax"),
    ],
)
def test_tile_kernels(op, n, c, wc, side, steps, norm, order):
    inputs = make_inputs(n, c, wc, (side, side), norm, torch.float32)
    assert_close(run(op, inputs, steps, norm, order), expected(*inputs, steps, norm))


@pytest.mark.parametrize("side", [14, 28])
@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("wc", [1, 2])
def test_tile_kernels_with_few_steps(op, wc, steps, side):
    inputs = make_inputs(1, 2, wc, (side, side), dtype=torch.float32)
    got = run(op, inputs, steps, "sigmoid_sum")
    assert_close(got, expected(*inputs, steps, "sigmoid_sum"))


def test_all_steps_of_28(op):
    inputs = make_inputs(1, 1, 1, (28, 28), dtype=torch.float32)
    assert_close(run(op, inputs, 28, "softmax"), expected(*inputs, 28, "softmax"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("side", [14, 28, 9])
def test_half_types_are_rounded_only_in_the_end(op, side, dtype):
    inputs = make_inputs(1, 2, 2, (side, side), dtype=dtype)
    got = run(op, inputs, 5, "softmax")
    single = run(op, [t.float() for t in inputs], 5, "softmax")
    for value, exact in zip(got, single, strict=True):
        assert value.dtype == dtype and torch.equal(value, exact.to(dtype))


@pytest.mark.parametrize("side", [14, 9])
def test_inputs_that_are_not_contiguous(op, side):
    # Channels last, transposed, and one column of two: what autograd hands over.
    grad, m0, weights = make_inputs(1, 3, 3, (side, side), dtype=torch.float32)
    spread = torch.stack([grad, grad], dim=-1)[..., 1]
    inputs = [spread, m0.transpose(2, 3).contiguous().transpose(2, 3)]
    inputs.append(weights.contiguous(memory_format=torch.channels_last))
    assert not any(t.is_contiguous() for t in inputs)
    for got, want in zip(
        run(op, inputs, 3, "softmax"), run(op, [grad, m0, weights], 3, "softmax"), strict=True
    ):
        assert torch.equal(got, want)


def test_extreme_logits(op):
    grad, m0, weights = make_inputs(1, 2, 2, (14, 14), dtype=torch.float32)
    inputs = (grad, m0, weights.sign() * 80)
    for norm in ("softmax", "sigmoid_sum"):
        got = run(op, inputs, 6, norm)
        assert all(t.isfinite().all() for t in got)
        assert_close(got, expected(*inputs, 6, norm), m0.norm().item())


def test_no_regions_launch_nothing(op):
    for result in run(op, make_inputs(0, 2, 2, (14, 14)), 3, "softmax"):
        assert result.numel() == 0


def test_maps_that_are_too_large_are_refused(op):
    inputs = make_inputs(1, 1, 1, (65, 2))
    problem = op.problem(inputs, [torch.empty(0)] * 3, (1, 0))
    assert problem.startswith("message_passing: the CUDA kernel takes maps up to 64 x 64")


def test_which_shapes_take_the_tile_kernels(library):
    small = 48 * 1024

    def tile(size, steps, limit=HOPPER, float64=False, backward=True, maps=1):
        return library.choose_tile(*(maps, *size, steps, float64, backward), ctypes.c_int64(limit))

    assert tile((14, 14), 14) == 14 and tile((28, 28), 28) == 28
    assert tile((14, 28), 14) == tile((7, 7), 7) == tile((56, 56), 56) == 0
    assert tile((14, 14), 14, float64=True) == tile((28, 28), 28, float64=True) == 0
    # Backward keeps a plane per step in shared memory, forward keeps none.
    assert tile((14, 14), 1000) == tile((28, 28), 28, limit=small) == 0
    assert tile((14, 14), 1000, backward=False) == 14
    assert tile((28, 28), 28, limit=small, backward=False) == 28
    # Four warps with their gradients of K do not fit where four short sets of planes do.
    assert tile((14, 14), 1, limit=30 * 1024) == 14 and tile((14, 14), 1, 30 * 1024, maps=2) == 0
