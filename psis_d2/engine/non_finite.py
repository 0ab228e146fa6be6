"""A loss that is not a number: which images, and what to look at."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from psis_d2.errors import UserError
from psis_d2.files import written_at_once

import numpy as np
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm


class NonFiniteLoss(FloatingPointError):
    """A loss of this process is infinite or not a number. ``losses`` are all of them, by name."""

    def __init__(self, losses: dict[str, float]):
        super().__init__("The loss is not finite.")
        self.losses = losses


class FiniteLosses:
    """A part of Detectron2's loops, before them in the list of bases: every process looks.

    Detectron2 looks at the mean of all processes' losses, on the main one, and so cannot say whose
    images they are.
    """

    def _write_metrics(self, loss_dict, *args, **kwargs):
        # Detectron2 would wait for the GPU once for each loss.
        values = torch.stack([loss.detach().float() for loss in loss_dict.values()]).cpu()
        loss_dict = dict(zip(loss_dict, values, strict=True))
        if not math.isfinite(float(values.sum())):
            raise NonFiniteLoss({name: float(loss) for name, loss in loss_dict.items()})
        super()._write_metrics(loss_dict, *args, **kwargs)


def is_non_finite(error: Exception) -> bool:
    """Whether an exception of Detectron2's says that the training has diverged."""
    return isinstance(error, FloatingPointError) or (
        isinstance(error, AssertionError) and "NaN" in str(error)
    )


def explain(
    error: Exception, batch: Sequence[dict], cfg, model: torch.nn.Module, iteration: int
) -> UserError:
    """Write the batch to ``OUTPUT_DIR`` and say in one sentence what happened.

    Args:
        error: a :class:`NonFiniteLoss`, or what Detectron2 raises.
        batch: mapped samples of this process.
        cfg: the config.
        model: the model; frozen statistics in it may be to blame.
        iteration: number of the iteration.
    """
    losses = getattr(error, "losses", {})
    bad = [f"{name} {value}" for name, value in losses.items() if not math.isfinite(value)]
    files = ", ".join(str(sample.get("file_name", "?")) for sample in batch)
    path = os.path.join(
        cfg.OUTPUT_DIR, f"non_finite_batch_{iteration:07d}_rank{comm.get_rank()}.pth"
    )
    try:
        with written_at_once(path, binary=True) as file:
            samples = [plain(sample) for sample in batch]
            torch.save({"iteration": iteration, "losses": losses, "batch": samples}, file)
        written = f"the batch is in {path}"
    except OSError as reason:
        written = f"the batch cannot be written ({reason.strerror})"
    frozen = any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())
    if frozen and not cfg.MODEL.WEIGHTS:
        advice = (
            "the likely cause are frozen statistics without weights: give MODEL.WEIGHTS, or set "
            "MODEL.RESNETS.NORM to a norm that learns, BN or GN"
        )
    else:
        advice = "look at these annotations, or lower SOLVER.BASE_LR"
    return UserError(
        f"The loss is not finite in iteration {iteration} ({', '.join(bad) or error}) on the "
        f"images {files}; {written}; {advice}.".replace("..", ".")
    )


def plain(value: Any) -> Any:
    """A sample as tensors and plain containers, which any ``torch.load`` reads."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Boxes):
        return value.tensor.detach().cpu()
    if isinstance(value, Instances):
        return {"image_size": tuple(value.image_size)} | plain(value.get_fields())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "tensor"):  # bit masks, rotated boxes
        return plain(value.tensor)
    return plain(value.polygons) if hasattr(value, "polygons") else str(value)
