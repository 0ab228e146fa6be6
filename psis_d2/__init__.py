"""psis_d2: partially supervised instance segmentation on Detectron2."""

from psis_d2 import compat  # noqa: F401  (must run before the first import of detectron2)

__version__ = "0.1.0"


def __getattr__(name: str):
    # Not imported at once: `import psis_d2` should not wait for PyTorch.
    if name == "Predictor":
        from psis_d2.inference import Predictor

        return Predictor
    raise AttributeError(f"module 'psis_d2' has no attribute '{name}'")
