"""The CUDA launchers and kernels of shape_prior_blend, run on the CPU: see cuda_on_cpu.h."""

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
    found = compile_for_cpu(SOURCES / "shape_prior_blend_on_cpu.cpp")
    found.shared_elements.restype = ctypes.c_int64
    return found


@pytest.fixture
def op(library, capfd):
    return OnCpu(library, capfd)


def make_inputs(n, groups, k, p, h, w, dtype=torch.float64):
    """grad, logits, priors, boxes, frames, classes.

    Frames from a fifth to twice the box, partly beside it; from the third on no box has a width.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    boxes = torch.tensor([[10.0, 20.0, 50.0, 44.0]] * n).double().reshape(n, 4)
    frames = boxes + torch.tensor([-10.0, 5.0, 30.0, -7.0]).double() * random(n, 1)
    boxes[2:, 2] = boxes[2:, 0]
    logits = random(n, k)
    priors = random(k, p, p) if groups is None else random(groups, k, p, p)
    classes = None if groups is None else torch.arange(n) % groups
    grad = random(n, h, w)
    return [*(t.to(dtype) for t in (grad, logits, priors)), boxes, frames, classes]


def run(op, inputs, offset, priors_need_grad=True, order="ascending", limit=HOPPER):
    """Output and gradients of logits and, if they need one, priors."""
    used = inputs[:3] if priors_need_grad else inputs[:2]
    results = [torch.empty(t.shape, dtype=t.dtype) for t in used]
    padded = [*results, None][:3]
    op.run(inputs, padded, (offset, priors_need_grad), order, limit)
    return results


def expected(inputs, offset):
    """The same from the reference in float64."""
    grad, logits, priors = (t.double() for t in inputs[:3])
    leaves = [logits.clone().requires_grad_(), priors.clone().requires_grad_()]
    boxes, frames, classes = inputs[3:]
    out = reference.shape_prior_blend(*leaves, boxes, frames, grad.shape[1:], classes, offset)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


# Around the kernels' 256 threads, 32 lanes and 64 sums.
@pytest.mark.parametrize(
    ("n", "groups", "k", "p", "h", "w", "offset"),
    [
        (1, None, 1, 1, 1, 1, 0.5),
        (3, None, 5, 7, 9, 6, 0.5),
        (3, 2, 65, 6, 5, 8, 0.0),
        (2, 1, 3, 17, 16, 17, 0.5),
        (2, None, 130, 4, 3, 2, 0.25),
    ],
)
def test_kernels(op, n, groups, k, p, h, w, offset):
    inputs = make_inputs(n, groups, k, p, h, w)
    exact = expected(inputs, offset)
    for need, order in ((True, "ascending"), (True, "shuffled"), (False, "descending")):
        for got, want in zip(run(op, inputs, offset, need, order), exact, strict=False):
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def test_kernels_in_float32(op):
    inputs = make_inputs(2, 2, 5, 9, 12, 7, torch.float32)
    for value, exact in zip(run(op, inputs, 0.5), expected(inputs, 0.5), strict=True):
        assert value.dtype == torch.float32 and relative_error(value, exact) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_rounded_only_in_the_end(op, dtype):
    inputs = make_inputs(2, None, 5, 6, 5, 7, dtype)
    got = run(op, inputs, 0.5)
    single = run(op, [t if t is None or i > 2 else t.float() for i, t in enumerate(inputs)], 0.5)
    for value, exact in zip(got, single, strict=True):
        assert value.dtype == dtype and torch.equal(value, exact.to(dtype))


def test_inputs_that_are_not_contiguous(op):
    dense = make_inputs(3, 2, 5, 6, 5, 7, torch.float32)
    spread = [torch.stack([t, t], dim=-1)[..., 1] for t in dense]
    assert not any(t.is_contiguous() for t in spread)
    for got, want in zip(run(op, spread, 0.5), run(op, dense, 0.5), strict=True):
        assert torch.equal(got, want)


def test_no_boxes_launch_nothing(op):
    out, grad_logits, grad_priors = run(op, make_inputs(0, None, 3, 4, 5, 6), 0.5)
    assert out.numel() == grad_logits.numel() == 0 and (grad_priors == 0).all()


@pytest.mark.parametrize("wrong", [-1, 2])
def test_a_class_that_is_not_there_ends_the_kernel(op, wrong):
    inputs = make_inputs(3, 2, 3, 4, 5, 6)
    inputs[5][1] = wrong
    results = [torch.empty(t.shape, dtype=t.dtype) for t in inputs[:3]]
    assert op.problem(inputs, results, (0.5, True)).startswith("a failed assertion: classes[box]")


def test_what_does_not_fit_is_refused(op):
    inputs = make_inputs(1, None, 1, 1, 129, 1, torch.float32)
    results = [torch.empty(t.shape, dtype=t.dtype) for t in inputs[:3]]
    assert "takes priors and grids up to 128 x 128" in op.problem(inputs, results, (0.5, True))
    inputs = make_inputs(1, None, 1, 128, 1, 128, torch.float32)
    results = [torch.empty(t.shape, dtype=t.dtype) for t in inputs[:3]]
    problem = op.problem(inputs, results, (0.5, True), limit=SMALL)
    assert "bytes of shared memory for these sizes, and this GPU gives a block 101376" in problem


def test_the_dispatch_knows_what_the_kernels_need(library):
    module = importlib.import_module("psis_d2.ops.shape_prior_blend")
    for sizes in ((1, 1, 1, 1), (100, 32, 32, 32), (20, 14, 28, 27), (100, 112, 112, 112)):
        elements = library.shared_elements(*sizes)
        assert module._cuda_bytes(*sizes, torch.float64) == 8 * elements
        assert module._cuda_bytes(*sizes, torch.float16) == 4 * elements
