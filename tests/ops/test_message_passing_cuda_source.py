"""The source of the CUDA kernels, compiled for the CPU and run there, lane by lane.

Proves indices, shuffles, barriers and the use of shared memory without a GPU; not that the device
does what tests/ops/cuda_on_cpu.h takes it to do.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

from psis_d2.ops import reference

import pytest
import torch

HERE = Path(__file__).parent
COMPILER = shutil.which("g++") or shutil.which("c++")
NORMS = {"softmax": 0, "sigmoid_sum": 1, "none": 2}
DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
GUARD = 64  # elements before and behind every array
TILES = (0, 0)  # launch: blocks of the kernels for 14 x 14 and 28 x 28 follow from the shape

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


def compile_kernels(source: Path, library: Path) -> ctypes.CDLL:
    """A source that includes kernels and cuda_on_cpu.h as a library."""
    include = Path(torch.__file__).parent / "include"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas", f"-I{include}"]
    subprocess.run([COMPILER, *flags, str(source), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.run_kernels.restype = ctypes.c_char_p
    return loaded


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """The kernels as a library with the one function `run_kernels`."""
    library = tmp_path_factory.mktemp("cuda_source") / "kernels.so"
    return compile_kernels(HERE / "message_passing_on_cpu.cpp", library)


def make_inputs(n, c, wc, size, norm="softmax"):
    """m0, weights and the output's gradient in float64; weights that do not let m grow."""
    generator = torch.Generator().manual_seed(0)
    m0, weights, grad = (
        torch.randn(n, channels, *size, generator=generator, dtype=torch.float64)
        for channels in (c, wc * 9, c)
    )
    return m0, weights * (0.2 if norm == "none" else 1.0), grad


def run_kernels(library, m0, weights, grad, steps, norm, launch=TILES, backwards=False, shared=1):
    """Output and gradients of m0 and weights, in the dtype of the inputs.

    Args:
        launch: blocks and threads of the generic kernels, or TILES.
        backwards: run the threads of a block in the opposite order.
        shared: whether the generic kernels' planes are in shared memory.
    """
    n, c, *size = m0.shape
    maps = c if weights.shape[1] == 9 and c > 1 else 1
    dims = [n * c // maps, maps, *size, steps, NORMS[norm], *launch, shared, int(backwards)]
    # What lies around the inputs is NaN, and nothing may be written around the outputs.
    padded = []
    for tensor in (grad, weights, m0, m0, m0, weights):
        whole = torch.full((tensor.numel() + 2 * GUARD,), float("nan"), dtype=tensor.dtype)
        whole[GUARD : GUARD + tensor.numel()] = (
            float("nan") if len(padded) > 2 else tensor.flatten()
        )
        padded.append(whole)
    pointers = (ctypes.c_void_p * 6)(*(t[GUARD:].data_ptr() for t in padded))
    dims = (ctypes.c_int * len(dims))(*dims)
    assert library.run_kernels(dims, DTYPES[m0.dtype], pointers).decode() == ""
    results = []
    for whole, like in zip(padded[3:], (m0, m0, weights), strict=True):
        assert whole[:GUARD].isnan().all() and whole[GUARD + like.numel() :].isnan().all()
        results.append(whole[GUARD : GUARD + like.numel()].view(like.shape))
    return results


def expected(m0, weights, grad, steps, norm):
    """The same from the reference in float64."""
    m0, weights = (t.double().requires_grad_() for t in (m0, weights))
    out = reference.message_passing(m0, weights, steps, norm)
    grads = torch.autograd.grad(out, (m0, weights), grad.double(), materialize_grads=True)
    return [out.detach(), *grads]


def assert_close(got, want, tolerance=1e-12):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shared", [1, 0], ids=["shared", "global"])
@pytest.mark.parametrize(
    ("n", "c", "wc", "size", "steps", "norm", "launch"),
    [
        (2, 3, 3, (1, 1), 2, "softmax", (4, 32)),
        (2, 3, 1, (3, 5), 4, "sigmoid_sum", (2, 32)),
        (1, 2, 2, (3, 5), 0, "softmax", (2, 32)),
        (2, 2, 1, (5, 13), 1, "none", (1, 32)),
        (1, 3, 1, (7, 7), 12, "softmax", (1, 64)),
        (1, 4, 4, (6, 9), 9, "sigmoid_sum", (3, 64)),
    ],
)
def test_generic_kernels_equal_the_twin(kernels, n, c, wc, size, steps, norm, launch, shared):
    inputs = make_inputs(n, c, wc, size, norm)
    got = run_kernels(kernels, *inputs, steps, norm, launch, shared=shared)
    assert_close(got, expected(*inputs, steps, norm))


@pytest.mark.parametrize("backwards", [False, True], ids=["ascending", "descending"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("n", "c", "wc", "side", "steps"),
    [
        (1, 1, 1, 14, 14),
        (1, 3, 3, 14, 5),  # a warp without a map
        (1, 5, 5, 14, 2),  # two blocks
        (2, 3, 1, 14, 4),  # four warps, three maps
        (1, 6, 1, 14, 14),
        (1, 2, 2, 28, 6),
        (2, 3, 1, 28, 3),
    ],
)
def test_tile_kernels_equal_the_twin(kernels, n, c, wc, side, steps, norm, backwards):
    inputs = make_inputs(n, c, wc, (side, side), norm)
    got = run_kernels(kernels, *inputs, steps, norm, backwards=backwards)
    assert_close(got, expected(*inputs, steps, norm))


@pytest.mark.parametrize("side", [14, 28])
@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("wc", [1, 2])
def test_tile_kernels_with_few_steps(kernels, wc, steps, side):
    inputs = make_inputs(1, 2, wc, (side, side))
    got = run_kernels(kernels, *inputs, steps, "sigmoid_sum")
    assert_close(got, expected(*inputs, steps, "sigmoid_sum"))


def test_all_steps_of_28(kernels):
    inputs = make_inputs(1, 1, 1, (28, 28))
    got = run_kernels(kernels, *inputs, 28, "softmax")
    assert_close(got, expected(*inputs, 28, "softmax"))


@pytest.mark.parametrize("side", [14, 28])
def test_tile_kernels_in_float32(kernels, side):
    inputs = [t.float() for t in make_inputs(1, 2, 2, (side, side))]
    got = run_kernels(kernels, *inputs, side, "sigmoid_sum")
    for value, exact in zip(got, expected(*inputs, side, "sigmoid_sum"), strict=True):
        assert value.dtype == torch.float32
        assert (value - exact).norm() < 2e-6 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("side", [14, 28])
def test_half_types_are_rounded_only_in_the_end(kernels, side, dtype):
    inputs = [t.to(dtype) for t in make_inputs(1, 2, 2, (side, side))]
    got = run_kernels(kernels, *inputs, 5, "softmax")
    single = run_kernels(kernels, *(t.float() for t in inputs), 5, "softmax")
    for value, exact in zip(got, single, strict=True):
        assert value.dtype == dtype and torch.equal(value, exact.to(dtype))


def test_extreme_logits(kernels):
    m0, weights, grad = make_inputs(1, 2, 2, (14, 14))
    inputs = (m0.float(), (weights.sign() * 80).float(), grad.float())
    for norm in ("softmax", "sigmoid_sum"):
        got = run_kernels(kernels, *inputs, 6, norm)
        for value, exact in zip(got, expected(*inputs, 6, norm), strict=True):
            assert value.isfinite().all() and (value - exact).norm() < 2e-6 * m0.norm()


def test_which_shapes_take_the_tile_kernels(kernels):
    hopper, small = 227 * 1024, 48 * 1024  # bytes of shared memory that a block may have

    def tile(size, steps, limit=hopper, float64=False, backward=True, maps=1):
        return kernels.choose_tile(*(maps, *size, steps, float64, backward), ctypes.c_int64(limit))

    assert tile((14, 14), 14) == 14 and tile((28, 28), 28) == 28
    assert tile((14, 28), 14) == tile((7, 7), 7) == tile((56, 56), 56) == 0
    assert tile((14, 14), 14, float64=True) == tile((28, 28), 28, float64=True) == 0
    # Backward keeps a plane per step in shared memory, forward keeps none.
    assert tile((14, 14), 1000) == tile((28, 28), 28, limit=small) == 0
    assert tile((14, 14), 1000, backward=False) == 14
    assert tile((28, 28), 28, limit=small, backward=False) == 28
    # Four warps with their gradients of K do not fit where four short sets of planes do.
    assert tile((14, 14), 1, limit=30 * 1024) == 14 and tile((14, 14), 1, 30 * 1024, maps=2) == 0


def test_the_emulation_finds_what_is_wrong(tmp_path):
    source = tmp_path / "wrong.cpp"
    source.write_text(f'#include "{HERE / "cuda_on_cpu.h"}"' + WRONG_KERNELS)
    library = compile_kernels(source, tmp_path / "wrong.so")
    problems = [library.run_kernels(kind).decode() for kind in range(6)]
    assert problems == [
        "no barrier: 0",
        "no barrier: 1",
        "threads wait for each other for ever",
        "threads meet at __syncwarp and __shfl_sync",
        "a shuffle without all lanes",
        "a write behind the end of the shared memory",
    ]


# Kernel `kind` reverses 32 numbers; 0 and 1 lack a barrier, in both orders of threads.
WRONG_KERNELS = """
#include <cstdio>
alignas(16) unsigned char memory[4096];
extern "C" const char* run_kernels(int kind) {
  static std::string problem;
  int* numbers = reinterpret_cast<int*>(memory);
  int right = 0;
  try {
    run_blocks(1, 32, memory, 128, 128, kind == 1, [&] {
      const int lane = threadIdx.x;
      if (kind == 2 && lane == 0) return;
      numbers[lane + (kind == 5 ? 1 : 0)] = lane;
      if (kind == 3 && lane % 2) __shfl_sync(0xffffffff, lane, 0);
      if (kind == 4) __shfl_sync(0xffff, lane, 0);
      if (kind > 1) __syncwarp();
      const int other = numbers[31 - lane];
      if (lane == (kind == 1 ? 31 : 0)) right = other == 31 - lane;
    });
    problem = "no barrier: " + std::to_string(right ? -1 : kind);
  } catch (const std::exception& error) {
    problem = error.what();
  }
  return problem.c_str();
}
"""
