"""The source of the CUDA kernels, compiled for the CPU and run there: indices and barriers."""

import ctypes
import shutil
import subprocess
from pathlib import Path

from psis_d2.ops import reference

import pytest
import torch

HERE = Path(__file__).parent
COMPILER = shutil.which("c++") or shutil.which("g++")
NORMS = {"softmax": 0, "sigmoid_sum": 1, "none": 2}

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """The kernels as a library with the one function `run`."""
    library = tmp_path_factory.mktemp("cuda_source") / "kernels.so"
    source = HERE / "message_passing_on_cpu.cpp"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-pthread", "-Wno-unknown-pragmas"]
    subprocess.run([COMPILER, *flags, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("in_shared", [True, False], ids=["shared", "global"])
@pytest.mark.parametrize(
    ("n", "c", "wc", "size", "steps", "norm", "pixels", "threads", "blocks"),
    [
        (2, 3, 3, (1, 1), 2, "softmax", 1, 32, 4),
        (2, 3, 1, (3, 5), 4, "sigmoid_sum", 1, 32, 2),
        (1, 2, 2, (3, 5), 0, "softmax", 1, 32, 2),
        (2, 2, 1, (5, 3), 1, "none", 2, 8, 1),
        (1, 3, 1, (7, 7), 12, "softmax", 2, 32, 1),
        (1, 4, 4, (6, 9), 9, "sigmoid_sum", 4, 32, 3),
        (1, 2, 2, (8, 4), 10, "none", 4, 8, 2),
    ],
)
def test_kernels_equal_the_twin(
    kernels, n, c, wc, size, steps, norm, pixels, threads, blocks, in_shared
):
    generator = torch.Generator().manual_seed(0)

    def random(channels):
        return torch.randn(n, channels, *size, generator=generator, dtype=torch.float64)

    m0, weights, grad = random(c), random(wc * 9), random(c)
    result = [torch.full_like(t, float("nan")) for t in (m0, m0, weights)]
    maps = c if wc == 1 else 1
    dims = [n * wc, maps, *size, steps, NORMS[norm], pixels, blocks, threads, int(in_shared)]
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (grad, weights, m0, *result)]
    kernels.run((ctypes.c_int * len(dims))(*dims), *pointers)

    m0.requires_grad_()
    weights.requires_grad_()
    out = reference.message_passing(m0, weights, steps, norm)
    out.backward(grad)
    expected = [out, m0.grad, torch.zeros_like(weights) if steps == 0 else weights.grad]
    for got, want in zip(result, expected, strict=True):
        torch.testing.assert_close(got, want.detach(), rtol=1e-12, atol=1e-12)
