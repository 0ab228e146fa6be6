"""Compiles the source of CUDA kernels for the CPU, see cuda_on_cpu.h."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
from torch import Tensor

SOURCES = Path(__file__).parent / "ops"
COMPILER = shutil.which("c++") or shutil.which("g++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


def compile_for_cpu(source: str, folder: Path) -> ctypes.CDLL:
    """The library made of a source in tests/ops."""
    library = folder / "kernels.so"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-pthread", "-Wno-unknown-pragmas"]
    subprocess.run([COMPILER, *flags, str(SOURCES / source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def numbers(kind, values) -> ctypes.Array:
    """A C array of `kind`, such as ctypes.c_int."""
    values = list(values)
    return (kind * len(values))(*values)


def pointers(tensors: list[Tensor | None]) -> ctypes.Array:
    """A C array of the addresses of dense tensors, 0 for None."""
    assert all(t is None or t.is_contiguous() for t in tensors)
    return numbers(ctypes.c_void_p, (None if t is None else t.data_ptr() for t in tensors))
