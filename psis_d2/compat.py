"""Let Detectron2 v0.6 run on current NumPy and Pillow, and without its compiled extension.

Detectron2 v0.6 uses names that NumPy 1.24 and Pillow 10 removed and imports ``detectron2._C``
unconditionally. Importing this module restores only what is missing: with a Detectron2 that needs
none of it, nothing changes. It has to run before the first import of ``detectron2``, which is why
``psis_d2/__init__.py`` imports it first.
"""

import builtins
import importlib.util
import sys
import types

import numpy as np
from PIL import Image

_NUMPY_ALIASES = ("bool", "int", "float", "complex", "object", "str")
_PILLOW_ALIASES = {"LINEAR": "BILINEAR", "CUBIC": "BICUBIC", "ANTIALIAS": "LANCZOS"}


def restore_removed_names() -> None:
    """Give NumPy and Pillow back the aliases that Detectron2 v0.6 uses, where they are missing."""
    for name in _NUMPY_ALIASES:
        # NumPy 2 has np.bool again (its own scalar type); only a missing name is filled in.
        if name not in np.__dict__:
            setattr(np, name, getattr(builtins, name))
    for old, new in _PILLOW_ALIASES.items():
        if not hasattr(Image, old):
            setattr(Image, old, getattr(Image.Resampling, new))


class _MissingExtension(types.ModuleType):
    """Stands for ``detectron2._C``: answers the environment report, raises for every real op."""

    def get_compiler_version(self) -> str:
        return "none (Detectron2 was installed without its compiled extension)"

    def get_cuda_version(self) -> str:
        return "none"

    def has_cuda(self) -> bool:
        return False

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)

        def unavailable(*args, **kwargs):
            raise RuntimeError(
                f"detectron2._C.{name} is not available: this Detectron2 was installed without its "
                "compiled extension; install Detectron2 from source to use this operation."
            )

        return unavailable


def stub_missing_extension() -> None:
    """Register a stand-in for ``detectron2._C`` if Detectron2 is installed without it."""
    if importlib.util.find_spec("detectron2") is None:
        return
    if "detectron2._C" not in sys.modules and importlib.util.find_spec("detectron2._C") is None:
        sys.modules["detectron2._C"] = _MissingExtension("detectron2._C")


restore_removed_names()
stub_missing_extension()
