"""Training and evaluation loops on top of Detectron2's."""

from psis_d2.engine.launch import launch
from psis_d2.engine.trainer import Trainer

__all__ = ["Trainer", "launch"]
