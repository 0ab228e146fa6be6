"""Normalization layers for any number of channels."""

import math

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
