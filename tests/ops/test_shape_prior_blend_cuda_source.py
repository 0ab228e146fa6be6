"""The source of the CUDA kernels, compiled for the CPU and run there: indices and barriers."""

import ctypes

from psis_d2.ops import reference

import pytest
import torch

from cuda_source import compile_for_cpu, needs_compiler, numbers, pointers

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return compile_for_cpu("shape_prior_blend_on_cpu.cpp", tmp_path_factory.mktemp("blend"))


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
def test_kernels_equal_the_twin(kernels, n, groups, k, p, h, w, offset):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    # Frames from a fifth to twice the box, partly beside it; the last box has no width.
    boxes = torch.tensor([[10.0, 20.0, 50.0, 44.0]] * n).double()
    frames = boxes + torch.tensor([-10.0, 5.0, 30.0, -7.0]).double() * random(n, 1)
    boxes[2:, 2] = boxes[2:, 0]
    logits = random(n, k)
    priors = random(k, p, p) if groups is None else random(groups, k, p, p)
    classes = None if groups is None else torch.arange(n) % groups
    grad = random(n, h, w)
    leaves = [logits.clone().requires_grad_(), priors.clone().requires_grad_()]
    out = reference.shape_prior_blend(*leaves, boxes, frames, (h, w), classes, offset)
    expected = [out, *torch.autograd.grad(out, leaves, grad)]

    for priors_need_grad, backwards in ((True, False), (True, True), (False, False)):
        scratch = [logits, torch.empty(n, p, p, dtype=torch.float64)]
        found = [torch.full_like(t, float("nan")) for t in (out, logits, priors, *scratch)]
        problem = kernels.run_kernels(
            numbers(ctypes.c_int, (n, groups or 1, k, p, h, w, backwards)),
            ctypes.c_double(offset),
            pointers([grad, logits, priors, boxes, frames]),
            ctypes.c_void_p(None if classes is None else classes.data_ptr()),
            pointers([*found[:2], *(found[2:] if priors_need_grad else [None] * 3)]),
        )
        assert problem.decode() == ""
        for i in range(3 if priors_need_grad else 2):
            torch.testing.assert_close(found[i], expected[i].detach(), rtol=1e-11, atol=1e-11)
