"""Loads the compiled extension ``psis_d2._C``, if there is one; the only file that touches it.

Without it everything imports and every op runs on its PyTorch reference.
"""

import contextlib
import importlib
import importlib.util
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import torch

_IN_CHECKOUT = (Path(__file__).parents[2] / "setup.py").is_file()
_HOW_TO_BUILD = (
    "run `python setup.py build_ext --inplace`"
    if _IN_CHECKOUT
    else "install psis_d2 from its source with `pip install --no-build-isolation`, a C++ compiler "
    "being there"
)
_DEVICES = ("cpu", "cuda")
# Device types that an op has kernels for.
_KERNELS = {
    "affinity_attention": _DEVICES,
    "message_passing": _DEVICES,
    "shape_prior_blend": _DEVICES,
}
# Kernels that are there but do not run by themselves, and why; `with_kernels` runs them.
_PYTORCH_IS_PREFERRED = {
    # The kernel multiplies in float32 without tensor cores: at N = 128 and 256 channels at least
    # 0.28 ms by the instructions it issues, against some 0.1 ms for scaled_dot_product_attention.
    # To be decided anew by tools/gpu_session.py, which measures both.
    ("affinity_attention", "cuda"): "its kernel has not been measured on a GPU yet",
}
_LOGGER = logging.getLogger("psis_d2")
_announced: set[tuple[str, str]] = set()
_kernels_run: bool | None = None  # always, never; None: as op_paths says


def _load() -> str | None:
    """Loads the extension. Returns the reason if that fails, None if it is loaded."""
    if importlib.util.find_spec("psis_d2._C") is None:
        return "it is not built"
    try:
        importlib.import_module("psis_d2._C")
    except ImportError as error:
        # Most often: built for another version of PyTorch.
        reason = str(error).splitlines()[0]
        return f"it was built for another environment ({reason})"
    if any(not hasattr(torch.ops.psis_d2, op) for op in _KERNELS):
        return "it was built from older sources"
    return None


_LOAD_ERROR = _load()
_BACKENDS: tuple[str, ...] = ()
if _LOAD_ERROR is None:
    _BACKENDS = tuple(json.loads(torch.ops.psis_d2.build_info())["backends"])


def has_extension() -> bool:
    """Whether the compiled extension is loaded."""
    return _LOAD_ERROR is None


def load_error() -> str | None:
    """Why there is no extension and how to get it, one sentence; None if it is loaded."""
    if _LOAD_ERROR is None:
        return None
    return f"psis_d2's extension is not used: {_LOAD_ERROR}; {_HOW_TO_BUILD}."


def build_info() -> dict | None:
    """What the extension was built with and for, None without one.

    Returns:
        dict with "compiler", "torch" (version), "cuda" (version), "archs" (as in
        TORCH_CUDA_ARCH_LIST) and "backends" (list of device types). "cuda" and "archs" are "" if
        it was built without CUDA.
    """
    if _LOAD_ERROR is not None:
        return None
    return json.loads(torch.ops.psis_d2.build_info())


def op_paths() -> dict[str, dict[str, str]]:
    """Which path each op takes by device type.

    Returns:
        {op: {"cpu": path, "cuda": path}}, path being "extension" or "pytorch" (the reference). An
        op takes the reference too where its kernel does not take the sizes.
    """
    return {
        op: {device: "extension" if _by_itself(op, device) else "pytorch" for device in _DEVICES}
        for op in _KERNELS
    }


def has_kernel(op: str, device_type: str) -> bool:
    """Whether the extension has a kernel of the op, also one that does not run by itself."""
    return device_type in _BACKENDS and device_type in _KERNELS[op]


def _by_itself(op: str, device_type: str) -> bool:
    return has_kernel(op, device_type) and (op, device_type) not in _PYTORCH_IS_PREFERRED


@torch.compiler.assume_constant_result
def shared_memory_limit(device_index: int) -> int:
    """Bytes of shared memory that a block of a CUDA device may have; kernels differ in need."""
    return torch.ops.psis_d2.shared_memory_limit(device_index)


def use_extension(op: str, device_type: str) -> bool:
    """Whether `op` runs in its kernel; the first time the log says which path it takes."""
    if _kernels_run is not None:
        return _kernels_run and has_kernel(op, device_type)
    chosen = _by_itself(op, device_type)
    # A log call would split a graph that is being compiled.
    if not torch.compiler.is_compiling() and (op, device_type) not in _announced:
        _announce(op, device_type, chosen)
    return chosen


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """While it lasts all ops of the process run on their PyTorch references: for comparisons."""
    with _set_kernels_run(False):
        yield


@contextlib.contextmanager
def with_kernels() -> Iterator[None]:
    """While it lasts ops run in their kernels, also where PyTorch is preferred: for comparisons."""
    with _set_kernels_run(True):
        yield


@contextlib.contextmanager
def _set_kernels_run(choice: bool) -> Iterator[None]:
    global _kernels_run
    before, _kernels_run = _kernels_run, choice
    try:
        yield
    finally:
        _kernels_run = before


def _announce(op: str, device_type: str, chosen: bool) -> None:
    _announced.add((op, device_type))
    if chosen:
        _LOGGER.info("%s on %s runs in the compiled extension.", op, device_type)
        return
    if has_kernel(op, device_type):
        reason = _PYTORCH_IS_PREFERRED[op, device_type]
        _LOGGER.info("%s on %s runs in plain PyTorch: %s.", op, device_type, reason)
    elif (reason := load_error()) is None:
        reason = f"psis_d2's extension is built without kernels for {device_type}."
        _LOGGER.warning("%s %s on %s runs in plain PyTorch.", reason, op, device_type)
    elif ("", "") not in _announced:  # once for all ops
        _announced.add(("", ""))
        _LOGGER.warning("%s All ops run in plain PyTorch, which is slower.", reason)
