"""Compiles CUDA launchers and kernels for the CPU and runs them, see tests/ops/cuda_on_cpu.h."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

SOURCES = Path(__file__).parent / "ops"
COMPILER = shutil.which("g++")  # clang spells some of the flags otherwise
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no g++")
TORCH = Path(torch.__file__).parent
ORDERS = {"ascending": 0, "descending": 1, "shuffled": 2}
HOPPER, SMALL = (
    227 * 1024,
    99 * 1024,
)  # bytes of shared memory that a block of sm_90, sm_89 may have
SCALAR_TYPES = {  # of at::ScalarType
    torch.int64: 4,
    torch.float16: 5,
    torch.float32: 6,
    torch.float64: 7,
    torch.bfloat16: 15,
}
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-Wno-unknown-pragmas", "-D_GLIBCXX_USE_CXX11_ABI=1"]
# Calls for every load and store, which cuda_on_cpu.cpp defines, instead of code and a runtime.
WATCHED = ["-fsanitize=kernel-address", "--param", "asan-instrumentation-with-call-threshold=0"]
WATCHED += ["--param", "asan-stack=0", "--param", "asan-globals=0"]
# vptr asks for type information of what PyTorch does not export.
UNDEFINED = ["-fsanitize=undefined,float-cast-overflow", "-fno-sanitize=vptr"]


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


def _compile(source: Path, *flags: str) -> Path:
    target = Path(_folder().name) / f"{source.stem}.o"
    include = [SOURCES / "cuda_on_cpu", TORCH / "include"]
    words = [COMPILER, *FLAGS, *flags, *(f"-I{path}" for path in include), "-c", str(source)]
    subprocess.run([*words, "-o", str(target)], check=True)
    return target


@functools.cache
def _runtime() -> Path:
    return _compile(SOURCES / "cuda_on_cpu.cpp")


def compile_for_cpu(source: Path) -> ctypes.CDLL:
    """The library made of a source that includes launchers or kernels and cuda_on_cpu.h."""
    kernels = _compile(source, *WATCHED, *UNDEFINED)
    library = kernels.with_suffix(".so")
    words = [COMPILER, "-shared", str(kernels), str(_runtime()), f"-L{TORCH / 'lib'}"]
    words += ["-ltorch_cpu", "-lc10", "-fsanitize=undefined"]
    subprocess.run([*words, "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


class Array(ctypes.Structure):
    """Mirrors Array of arrays_on_cpu.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("dims", ctypes.c_int32),
        ("sizes", ctypes.c_int64 * 4),
        ("strides", ctypes.c_int64 * 4),
    ]

    @classmethod
    def of(cls, tensor: Tensor | None) -> "Array":
        """Of a tensor, which has to outlive it."""
        if tensor is None:
            return cls(None, 0, -1)
        sizes, strides = ((ctypes.c_int64 * 4)(*x) for x in (tensor.shape, tensor.stride()))
        dtype = SCALAR_TYPES[tensor.dtype]
        return cls(tensor.data_ptr(), dtype, tensor.dim(), sizes, strides)


class Settings(ctypes.Structure):
    """Mirrors Settings of arrays_on_cpu.h."""

    _fields_ = [(name, ctypes.c_int32) for name in ("order", "processors", "shared_limit")]


@dataclass
class OnCpu:
    """The launchers of an op, run on the CPU."""

    library: ctypes.CDLL
    capture: pytest.CaptureFixture  # of file descriptors: where the sanitizer writes

    def problem(self, inputs, results, options, order="ascending", limit=HOPPER) -> str:
        """Runs forward and backward into `results`; what went wrong, "" if nothing.

        Args:
            inputs, results: tensors or None, in the order of the source's `run_op`.
            options: numbers, likewise.
            order: in which the threads of a block take turns, one of ORDERS.
            limit: bytes of shared memory that the device gives a block.
        """
        self.library.run_op.restype = ctypes.c_char_p
        words = self.library.run_op(
            ctypes.byref(Settings(ORDERS[order], 2, limit)),
            (ctypes.c_double * len(options))(*options),
            (Array * len(inputs))(*(Array.of(t) for t in inputs)),
            (Array * len(results))(*(Array.of(t) for t in results)),
        )
        found = words.decode().split("\n")[0]
        undefined = [s for s in self.capture.readouterr().err.splitlines() if "runtime error" in s]
        return found or "\n".join(undefined)

    def run(self, inputs, results, options, order="ascending", limit=HOPPER) -> None:
        """The same; nothing may go wrong."""
        for result in results:
            if result is not None:
                result.fill_(float("nan"))
        if problem := self.problem(inputs, results, options, order, limit):
            pytest.fail(problem)
