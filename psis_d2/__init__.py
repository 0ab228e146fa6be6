"""psis_d2: partially supervised instance segmentation on Detectron2."""

from psis_d2 import compat  # noqa: F401  (must run before the first import of detectron2)

__version__ = "0.1.0"
