"""The source of the CUDA kernels, compiled for the CPU and run there: indices and barriers."""

import ctypes

from psis_d2.ops import reference

import pytest
import torch

from cuda_source import compile_for_cpu, needs_compiler, numbers, pointers

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return compile_for_cpu("affinity_attention_on_cpu.cpp", tmp_path_factory.mktemp("affinity"))


def run(kernels, inputs, grads, scale, eps, unbiased, backwards):
    """Outputs, then gradients of the four inputs."""
    theta, phi, value, foreground = inputs
    (n, c, *_), g = theta.shape, value.shape[1]
    pixels = foreground[0].numel()
    out = [torch.full_like(t, float("nan")) for t in (value, grads[1], *inputs)]
    scratch = [torch.full((n, rows, pixels), float("nan"), dtype=torch.float64) for rows in (6, 1)]
    problem = kernels.run_kernels(
        numbers(ctypes.c_int, (n, c, g, pixels, backwards)),
        numbers(ctypes.c_double, (scale, eps, c / (c - 1) if unbiased else 1.0)),
        pointers([*grads, *inputs]),
        pointers([*out, *scratch]),
    )
    assert problem.decode() == ""
    return out


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
def test_kernels_equal_the_twin(kernels, n, c, g, h, w, options):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = [random(n, c, h, w), random(n, c, h, w), random(n, g, h, w), random(n, h, w)]
    grads = [random(n, g, h, w), random(n, h * w)]
    leaves = [t.clone().requires_grad_() for t in inputs]
    outputs = reference.affinity_attention(*leaves, *options)
    expected = [*outputs, *torch.autograd.grad(outputs, leaves, grads)]
    for backwards in (False, True):  # the order of a block's threads
        found = run(kernels, inputs, grads, *options, backwards)
        for got, want in zip(found, expected, strict=True):
            torch.testing.assert_close(got, want.detach(), rtol=1e-10, atol=1e-11)
