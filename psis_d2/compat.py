"""Let Detectron2 v0.6 run on current NumPy and Pillow, and without its compiled extension.

Detectron2 v0.6 uses names that NumPy 1.24 and Pillow 10 removed and imports ``detectron2._C``
unconditionally. Importing this module restores only what is missing: with a Detectron2 that needs
none of it, nothing changes. It has to run before the first import of ``detectron2``, which is why
``psis_d2/__init__.py`` imports it first; and it imports neither Detectron2 nor PyTorch.
"""

import builtins
import importlib.util
import sys
import types
import warnings
from importlib.machinery import ModuleSpec, PathFinder

import numpy as np
from PIL import Image

_NUMPY_ALIASES = ("bool", "int", "float", "complex", "object", "str")
_PILLOW_ALIASES = {"LINEAR": "BILINEAR", "CUBIC": "BICUBIC", "ANTIALIAS": "LANCZOS"}
_EXTENSION = "detectron2._C"


def restore_removed_names() -> None:
    """Give NumPy and Pillow back the aliases that Detectron2 v0.6 uses, where they are missing."""
    for name in _NUMPY_ALIASES:
        # Not hasattr: NumPy answers for removed names with an error of its own. And NumPy 2 has
        # np.bool again (its own scalar type), so that only what is missing is filled in.
        if name not in np.__dict__:
            setattr(np, name, getattr(builtins, name))
    for old, new in _PILLOW_ALIASES.items():
        if not hasattr(Image, old):
            setattr(Image, old, getattr(Image.Resampling, new))


class MissingExtension(types.ModuleType):
    """Stands for ``detectron2._C``: answers the environment report, raises for every real op."""

    def __init__(self):
        super().__init__(_EXTENSION)
        # importlib.util.find_spec wants one of every module that is imported.
        self.__spec__ = ModuleSpec(_EXTENSION, loader=None, origin=__name__)

    def get_compiler_version(self) -> str:
        """For Detectron2's environment report."""
        return "none (Detectron2 was installed without its compiled extension)"

    def get_cuda_version(self) -> str:
        """For Detectron2's environment report."""
        return "none"

    def has_cuda(self) -> bool:
        """For Detectron2's environment report."""
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


def find_own_extension() -> ModuleSpec | None:
    """The spec of Detectron2's own ``_C``; None if it has none or is not installed itself.

    Looks into the package's folders without importing the package: that would import PyTorch.
    """
    package = importlib.util.find_spec("detectron2")
    if package is None:
        return None
    return PathFinder.find_spec(_EXTENSION, package.submodule_search_locations)


def stub_missing_extension() -> None:
    """Register a stand-in for ``detectron2._C`` if Detectron2 is installed without it."""
    installed = importlib.util.find_spec("detectron2") is not None
    if installed and _EXTENSION not in sys.modules and find_own_extension() is None:
        sys.modules[_EXTENSION] = MissingExtension()


restore_removed_names()
stub_missing_extension()
# About how Detectron2 v0.6 lays out its anchors; nobody who reads it here can act on it.
warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
