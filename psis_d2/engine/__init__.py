"""Training and evaluation loops on top of Detectron2's."""

import psis_d2.modeling  # noqa: F401  (registers all that a config may name)
from psis_d2.engine.launch import launch
from psis_d2.engine.trainer import Trainer

__all__ = ["Trainer", "launch"]
