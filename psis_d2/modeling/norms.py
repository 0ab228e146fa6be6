"""Normalization layers for any number of channels."""

import math

from detectron2.layers import NaiveSyncBatchNorm
from torch import nn


def tower_norm(name: str):
    """The norm of a tower of convolutions: a name, or for "GN" a function of the channels.

    Detectron2's own "GN" has 32 groups, which PyTorch refuses for 16 channels, and its
    ``RetinaNetHead`` tries on one. Here there are 32 groups, or the largest common divisor of 32
    and the channels.
    """
    if name != "GN":
        return name
    return lambda channels: nn.GroupNorm(math.gcd(32, channels), channels)


def region_norm(name: str):
    """The norm of layers that see regions: :func:`tower_norm`, and a "SyncBN" for any number.

    How many regions a process has is chance, and it may be none. PyTorch's synchronized batch norm
    refuses an empty batch; this one weighs the statistics of a process by its number of regions, as
    OPMask's released code does. A process without regions has to call it all the same, see
    :meth:`psis_d2.modeling.mask_heads.base.RegionMaskHead.take_part`.
    """
    if "SyncBN" in name:
        return lambda channels: NaiveSyncBatchNorm(channels, stats_mode="N")
    return tower_norm(name)
