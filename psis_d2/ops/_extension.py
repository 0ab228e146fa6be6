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
_LOGGER = logging.getLogger("psis_d2")
_announced: set[tuple[str, str]] = set()
_switched_off = False  # by without_kernels


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
        {op: {"cpu": path, "cuda": path}}, path being "extension" or "pytorch" (the reference).
    """
    return {
        op: {device: "extension" if _has_kernel(op, device) else "pytorch" for device in _DEVICES}
        for op in _KERNELS
    }


def _has_kernel(op: str, device_type: str) -> bool:
    return device_type in _BACKENDS and device_type in _KERNELS[op]


def use_extension(op: str, device_type: str) -> bool:
    """Whether `op` has a kernel for the device; the first time the log says which path runs."""
    if _switched_off:
        return False
    available = _has_kernel(op, device_type)
    # A log call would split a graph that is being compiled.
    if not torch.compiler.is_compiling() and (op, device_type) not in _announced:
        _announce(op, device_type, available)
    return available


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """While it lasts all ops of the process run on their PyTorch references: for comparisons."""
    global _switched_off
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


def _announce(op: str, device_type: str, available: bool) -> None:
    _announced.add((op, device_type))
    if available:
        _LOGGER.info("%s on %s runs in the compiled extension.", op, device_type)
        return
    if (reason := load_error()) is None:
        reason = f"psis_d2's extension is built without kernels for {device_type}."
        _LOGGER.warning("%s %s on %s runs in plain PyTorch.", reason, op, device_type)
    elif ("", "") not in _announced:  # once for all ops
        _announced.add(("", ""))
        _LOGGER.warning("%s All ops run in plain PyTorch, which is slower.", reason)
