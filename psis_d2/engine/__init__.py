"""Training and evaluation loops on top of Detectron2's."""

import psis_d2.modeling  # noqa: F401  (registers all that a config may name)
from psis_d2.engine.launch import launch

__all__ = ["Trainer", "launch"]


def __getattr__(name: str):
    # Not imported at once: the launcher's processes, and the small modules here, need no models.
    if name == "Trainer":
        from psis_d2.engine.trainer import Trainer

        return Trainer
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
