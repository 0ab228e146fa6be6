"""Libraries that only some methods, data sets and tools need, imported when they are used."""

import importlib
from types import ModuleType

from psis_d2.errors import UserError

_PACKAGES = {
    "cv2": "opencv-python-headless",
    "faster_coco_eval": "faster-coco-eval",
    "onnx": "psis_d2[export]",
    "onnxruntime": "psis_d2[export]",
    "sklearn": "scikit-learn",
    "threadpoolctl": "threadpoolctl",
}
"""Name on the package index by name of the module, where a user may lack it."""


def require(module: str) -> ModuleType:
    """Import a module that not every installation has.

    Args:
        module: its dotted name, such as ``cv2`` or ``sklearn.cluster``.

    Raises:
        UserError: it is not installed; the sentence names the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.split(".")[0]
        if error.name != top:  # the library is there, but broken: that is for a traceback
            raise
        raise UserError(
            f"This needs {top}, which is not installed; run: pip install {_PACKAGES.get(top, top)}"
        ) from error
