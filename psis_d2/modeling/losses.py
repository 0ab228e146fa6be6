"""Losses shared by mask heads. Every one averages over regions with a mask to learn from only."""

from psis_d2.modeling.mask_targets import boundary_targets

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def zero_loss(module: nn.Module) -> Tensor:
    """A zero that every trainable parameter of `module` takes part in.

    A batch without a single mask gives this loss: gradients are zeros, not absent, so distributed
    training neither waits for a missing gradient nor complains about unused parameters.

    Returns:
        float scalar 0 with a gradient path to each parameter that requires one.
    """
    return sum(p.sum() for p in module.parameters() if p.requires_grad) * 0.0


def select_class(logits: Tensor, classes: Tensor) -> Tensor:
    """The channel of each region's own class.

    Args:
        logits: float [R, K, M, M]; K = 1 is class-agnostic.
        classes: int64 [R], ignored when K = 1.

    Returns:
        float [R, M, M].
    """
    if logits.shape[1] == 1:
        return logits[:, 0]
    return logits[torch.arange(len(logits), device=logits.device), classes]


def weighted_bce(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Mean binary cross-entropy, each region's times its weight.

    Weights are factors, not shares: the mean is over all regions, whatever they weigh. Weights of
    one give the bits of no weights.

    Args:
        logits, targets: float [R, M, M], R > 0.
        weights: float [R], None for none.

    Returns:
        float scalar.
    """
    cells = None if weights is None else weights[:, None, None]
    return F.binary_cross_entropy_with_logits(logits, targets, weight=cells)


def mask_bce(
    logits: Tensor, targets: Tensor, classes: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Mask R-CNN's mask loss: mean binary cross-entropy on the region's own class channel.

    Args:
        logits: float [R, K, M, M], R > 0.
        targets: float [R, M, M] in [0, 1].
        classes: int64 [R].
        weights: float [R], see :func:`weighted_bce`.

    Returns:
        float scalar.
    """
    return weighted_bce(select_class(logits, classes), targets, weights)


def boundary_bce(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of the cells along contours alone, averaged over them, then regions.

    The cells are those of :func:`~psis_d2.modeling.mask_targets.boundary_targets` of width 1; a
    region without a contour counts as 0.

    Args:
        logits, targets: float [R, M, M], R > 0.
        weights: float [R], see :func:`weighted_bce`.

    Returns:
        float scalar.
    """
    band = boundary_targets(targets, 1)
    cells = F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * band
    regions = cells.sum(dim=(1, 2)) / band.sum(dim=(1, 2)).clamp(min=1)
    return (regions if weights is None else regions * weights).mean()


def dice_loss(probabilities: Tensor, targets: Tensor, eps: float = 1e-5) -> Tensor:
    """One minus the Dice coefficient with squared denominators (Milletari et al., 3DV 2016).

    Args:
        probabilities: float [N, ...].
        targets: float [N, ...] in [0, 1], of the same shape.
        eps: added to the denominator; an empty target gives a loss of 1 without gradient.

    Returns:
        float [N] in [0, 1].
    """
    p, t = probabilities.flatten(1), targets.flatten(1)
    return 1 - 2 * (p * t).sum(dim=1) / ((p * p).sum(dim=1) + (t * t).sum(dim=1) + eps)
