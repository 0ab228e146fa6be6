"""How long a run is and how large its steps are, for the data and the batch that it really has."""

import logging
import math
from collections.abc import Sequence

from psis_d2.data.training_set import get_training_dicts
from psis_d2.errors import UserError

from detectron2.config import CfgNode

logger = logging.getLogger(__name__)

_LENGTHS = ("MAX_ITER", "STEPS", "WARMUP_ITERS")


def scale_to_batch(cfg: CfgNode, reference: int, given: Sequence[str]) -> str | None:
    """Scale a config that was written for another batch size, in place.

    The learning rate grows with the batch: in proportion for SGD (Goyal et al., "Accurate, Large
    Minibatch SGD", 2017), with its square root for AdamW (Malladi et al., "On the SDEs and Scaling
    Rules for Adaptive Gradient Algorithms", NeurIPS 2022). Iterations shrink in proportion, so that
    training sees every image as often. This is what ``SOLVER.REFERENCE_WORLD_SIZE`` does for a
    number of processes, here for ``SOLVER.IMS_PER_BATCH`` as the command line gives it.

    Args:
        cfg: the config, options of the command line included. ``SOLVER.SCALE_TO_BATCH`` False
            leaves it alone.
        reference: ``SOLVER.IMS_PER_BATCH`` of the config file.
        given: KEY, VALUE, ... of the command line. A key of the schedule that is among them is
            what its author wants and stays.

    Returns:
        One sentence that says what has changed; None if nothing has.
    """
    solver = cfg.SOLVER
    batch = solver.IMS_PER_BATCH
    if not solver.SCALE_TO_BATCH or batch == reference or min(batch, reference) < 1:
        return None
    ratio = batch / reference
    fixed = set(given[::2])
    changes = []

    def change(key: str, value) -> None:
        if f"SOLVER.{key}" in fixed or solver[key] == value:
            return
        changes.append(f"{key} {_plain(solver[key])} -> {_plain(value)}")
        solver[key] = value

    adaptive = solver.OPTIMIZER == "AdamW"
    change("BASE_LR", float(f"{solver.BASE_LR * (ratio**0.5 if adaptive else ratio):.6g}"))
    if "SOLVER.MAX_ITER" not in fixed:
        for key in _LENGTHS:
            change(key, _scaled(solver[key], 1 / ratio))
    if not changes:
        return None
    return (
        f"SOLVER.IMS_PER_BATCH is {batch} and not the config's {reference}: "
        f"{', '.join(changes)} (SOLVER.SCALE_TO_BATCH False leaves them)"
    )


def schedule_for(cfg: CfgNode) -> CfgNode:
    """The config with ``SOLVER.EPOCHS`` turned into iterations of its training images.

    ``MAX_ITER`` becomes what so many epochs take; ``STEPS`` keep their places between start and
    end; the warm-up gets shorter in a shorter run, but not longer in a longer one.

    Returns:
        The config itself where ``SOLVER.EPOCHS`` is 0, else a changed copy.

    Raises:
        UserError: the number of epochs is negative.
    """
    epochs = cfg.SOLVER.EPOCHS
    if epochs < 0:
        raise UserError(f"SOLVER.EPOCHS is {epochs}; give a positive number, or 0 for MAX_ITER.")
    if epochs == 0:
        return cfg
    images = len(get_training_dicts(cfg))
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    solver = cfg.SOLVER
    iterations = max(1, math.ceil(epochs * images / solver.IMS_PER_BATCH))
    ratio = iterations / solver.MAX_ITER
    solver.STEPS = _scaled(solver.STEPS, ratio)
    solver.WARMUP_ITERS = _scaled(solver.WARMUP_ITERS, min(ratio, 1))
    solver.MAX_ITER = iterations
    logger.info(
        "SOLVER.EPOCHS %g of %d images, %d a batch: %d iterations, steps at %s",
        *(epochs, images, solver.IMS_PER_BATCH, iterations, list(solver.STEPS)),
    )
    if frozen:
        cfg.freeze()
    return cfg


def _scaled(value, ratio: float):
    if isinstance(value, (tuple, list)):
        return tuple(round(step * ratio) for step in value)
    return round(value * ratio)


def _plain(value) -> str:
    return str(list(value)) if isinstance(value, (tuple, list)) else f"{value:g}"
