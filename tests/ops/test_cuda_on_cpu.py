"""The emulation of cuda_on_cpu.h finds what is wrong: a broken kernel for each of its promises."""

import ctypes
import re

import pytest

from cuda_source import ORDERS, SOURCES, compile_for_cpu, needs_compiler

pytestmark = needs_compiler

# Two blocks of 64 threads; `shared` holds 64 numbers that the launch asked for, `array` 128.
KERNELS = {
    "reversed with a barrier": (
        "shared[lane] = lane; __syncthreads(); array[all] = shared[63 - lane];",
        "",
    ),
    "no barrier": ("shared[lane] = lane; array[all] = shared[63 - lane];", "a race in shared"),
    "a warp's barrier between warps": (
        "shared[lane] = lane; __syncwarp(); array[all] = shared[63 - lane];",
        "a race in shared",
    ),
    "a warp's barrier within warps": (
        "shared[lane] = lane; __syncwarp(); array[all] = shared[lane ^ 1];",
        "",
    ),
    "a shuffle is no barrier": (
        "shared[lane] = lane; __shfl_sync(0xffffffff, lane, 0); array[all] = shared[lane ^ 1];",
        "a race in shared",
    ),
    "read, then written": (
        "shared[lane] = 1; __syncthreads(); array[all] = shared[63 - lane]; shared[lane] = 2;",
        "a race in shared",
    ),
    "a race in an array": ("array[0] = lane;", "a race in an array"),
    "a race of two blocks": ("if (lane == 0) array[0] = 1;", "a race of two blocks in an array"),
    "waits for ever": (
        "if (lane == 0) return; __syncwarp();",
        "threads wait for each other for ever",
    ),
    "different barriers": (
        "if (lane % 2) { __shfl_sync(0xffffffff, lane, 0); } else { __syncwarp(); }",
        "threads meet at",
    ),
    "a shuffle of some": ("__shfl_sync(0xffff, lane, 0);", "a shuffle without all lanes"),
    "behind shared memory": ("shared[lane + 1] = 1;", "a write behind the end of the shared"),
    "reads behind shared memory": (
        "array[all] = shared[lane + 1];",
        "a read behind the end of the shared",
    ),
    "before an array": ("array[all - 1] = 1;", "a write outside of all arrays"),
    "behind an array": (
        "if (all == 127) array[0] = array[all + 1];",
        "a read outside of all arrays",
    ),
    "an assertion": ("CUDA_KERNEL_ASSERT(lane < 5);", "a failed assertion: lane < 5"),
}
LAUNCHES = {  # blocks, threads, shared bytes, guarded, stream
    "no guard": ((1, 32, 0, 0, 0), "a launch without a device guard"),
    "another stream": ((1, 32, 0, 1, 0), "a launch on another device's stream"),
    "no blocks": ((0, 32, 0, 1, 1), "an invalid launch"),
    "too many threads": ((1, 1025, 0, 1, 1), "an invalid launch"),
    "no opt-in": ((1, 32, 49153, 1, 1), "more shared memory than was opted in to"),
}
SOURCE = """
#include <c10/core/CPUAllocator.h>
alignas(16) unsigned char memory[1 << 16];
static int* shared = reinterpret_cast<int*>(memory);
static void kernel(int kind, int* array) {{
  const int lane = threadIdx.x, all = blockIdx.x * blockDim.x + lane;
  static_cast<void>(array);
  static_cast<void>(all);
  switch (kind) {{ {cases} }}
}}
extern "C" const char* run_kernel(int kind, int order) {{
  cuda_on_cpu::Run run{{{{2, 1 << 16}}, cuda_on_cpu::Order(order), memory, sizeof(memory)}};
  return cuda_on_cpu::watched(run, [&] {{
    c10::DataPtr data = c10::GetCPUAllocator()->allocate(128 * sizeof(int));
    int* array = static_cast<int*>(data.get());
    cuda_on_cpu::guard(1);
    cuda_on_cpu::launch(nullptr, 2, 64, 64 * sizeof(int), 1, [&] {{ kernel(kind, array); }});
    for (int i = 0; kind == 0 && i < 128; ++i) {{
      if (array[i] != 63 - i % 64) throw std::runtime_error("wrong numbers");
    }}
  }});
}}
extern "C" const char* run_launch(int blocks, int threads, int bytes, int guards, int stream) {{
  cuda_on_cpu::Run run{{{{2, 1 << 16}}, cuda_on_cpu::Order(0), memory, sizeof(memory)}};
  return cuda_on_cpu::watched(run, [&] {{
    cuda_on_cpu::guard(guards);
    cuda_on_cpu::launch(nullptr, blocks, threads, bytes, stream, [] {{}});
  }});
}}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    source = tmp_path_factory.mktemp("broken") / "broken_kernels.cpp"
    bodies = [body for body, _ in KERNELS.values()]
    cases = "\n".join(f"case {i}: {{ {body} }} break;" for i, body in enumerate(bodies))
    header = f'#include "{SOURCES / "cuda_on_cpu.h"}"\n#include <stdexcept>\n'
    source.write_text(header + SOURCE.format(cases=cases))
    found = compile_for_cpu(source)
    found.run_kernel.restype = found.run_launch.restype = ctypes.c_char_p
    return found


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels(library, name, order):
    expected = KERNELS[name][1]
    found = library.run_kernel(list(KERNELS).index(name), ORDERS[order]).decode()
    assert re.match(expected, found) if expected else found == ""


@pytest.mark.parametrize("name", LAUNCHES)
def test_launches(library, name):
    arguments, expected = LAUNCHES[name]
    assert library.run_launch(*arguments).decode() == expected
