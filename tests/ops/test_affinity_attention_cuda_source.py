"""The CUDA launchers and kernels of affinity_attention, run on the CPU: see cuda_on_cpu.h."""

import ctypes
import importlib

from psis_d2.ops import reference

import pytest
import torch

from cuda_source import HOPPER, SMALL, SOURCES, OnCpu, compile_for_cpu, needs_compiler
from op_tester import relative_error

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def library():
    found = compile_for_cpu(SOURCES / "affinity_attention_on_cpu.cpp")
    found.shared_elements.restype = ctypes.c_int64
    return found


@pytest.fixture
def op(library, capfd):
    return OnCpu(library, capfd)


def make_inputs(n, c, g, h, w, dtype=torch.float64):
    """Gradients of both outputs, then theta, phi, value, foreground."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(n, g, h, w), (n, h * w), (n, c, h, w), (n, c, h, w), (n, g, h, w), (n, h, w)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def run(op, inputs, options, order="ascending", limit=HOPPER):
    """Outputs, then gradients of the four inputs."""
    results = [torch.empty(t.shape, dtype=t.dtype) for t in (inputs[4], inputs[1], *inputs[2:])]
    op.run(inputs, results, options, order, limit)
    return results


def expected(inputs, options):
    """The same from the reference in float64."""
    inputs = [t.double() for t in inputs]
    leaves = [t.clone().requires_grad_() for t in inputs[2:]]
    outputs = reference.affinity_attention(*leaves, *options)
    return [*(t.detach() for t in outputs), *torch.autograd.grad(outputs, leaves, inputs[:2])]


# Around the blocks of 32 pixels, the tiles of 64 pixels or channels and the stages of 16.
@pytest.mark.parametrize(
    ("n", "c", "g", "h", "w", "options"),
    [
        (2, 3, 2, 1, 1, (1.0, 1e-5, False)),
        (1, 16, 1, 1, 31, (0.3, 1e-5, True)),
        (2, 2, 17, 4, 8, (0.25, 1e-2, False)),
        (1, 17, 5, 3, 11, (0.25, 0.0, True)),
        (1, 5, 65, 5, 13, (0.5, 1e-5, False)),
        (1, 33, 64, 14, 14, (0.2, 1e-5, False)),
    ],
)
def test_kernels(op, n, c, g, h, w, options):
    inputs = make_inputs(n, c, g, h, w)
    exact = expected(inputs, options)
    for order in ("ascending", "shuffled"):
        for got, want in zip(run(op, inputs, options, order), exact, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


def test_kernels_in_float32(op):
    inputs = make_inputs(2, 16, 8, 7, 9, torch.float32)
    got = run(op, inputs, (0.25, 1e-5, False), "descending")
    for value, exact in zip(got, expected(inputs, (0.25, 1e-5, False)), strict=True):
        assert value.dtype == torch.float32 and relative_error(value, exact) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_rounded_only_in_the_end(op, dtype):
    inputs = make_inputs(1, 5, 3, 5, 7, dtype)
    got = run(op, inputs, (0.25, 1e-5, False))
    single = run(op, [t.float() for t in inputs], (0.25, 1e-5, False))
    for value, exact in zip(got, single, strict=True):
        assert value.dtype == dtype and torch.equal(value, exact.to(dtype))


def test_inputs_that_are_not_contiguous(op):
    dense = make_inputs(2, 5, 3, 3, 11, torch.float32)
    spread = [torch.stack([t, t], dim=-1)[..., 1] for t in dense]
    spread[2] = dense[2].contiguous(memory_format=torch.channels_last)
    assert not any(t.is_contiguous() for t in spread)
    options = (0.25, 1e-5, True)
    for got, want in zip(run(op, spread, options), run(op, dense, options), strict=True):
        assert torch.equal(got, want)


def test_no_regions_launch_nothing(op):
    assert all(t.numel() == 0 for t in run(op, make_inputs(0, 3, 2, 4, 4), (1.0, 1e-5, False)))


def test_what_does_not_fit_is_refused(op):
    inputs, results = make_inputs(1, 1, 1, 1, 209), [torch.empty(0)] * 6
    problem = op.problem(inputs, results, (1.0, 1e-5, False))
    assert problem.startswith("affinity_attention: the CUDA kernel takes maps up to 208 pixels")
    inputs = make_inputs(1, 1, 1, 1, 208)
    results = [torch.empty(t.shape, dtype=t.dtype) for t in (inputs[4], inputs[1], *inputs[2:])]
    problem = op.problem(inputs, results, (1.0, 1e-5, False), limit=SMALL)
    assert "bytes of shared memory for these sizes, and this GPU gives a block 101376" in problem


def test_the_dispatch_knows_what_the_kernels_need(library):
    module = importlib.import_module("psis_d2.ops.affinity_attention")
    for pixels in (1, 31, 32, 49, 196, 207, 208):
        elements = library.shared_elements(pixels)
        assert module._cuda_bytes(pixels, torch.float64) == 8 * elements
        assert module._cuda_bytes(pixels, torch.bfloat16) == 4 * elements
