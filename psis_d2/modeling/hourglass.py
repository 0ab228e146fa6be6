"""Hourglasses of residual blocks, a trunk for mask heads (Birodkar et al., ICCV 2021).

Layers follow Deep-MARC's released code: without its initial downsampling, nearest-neighbor
upsampling, skip branches added. Its batch norm is not offered, because a batch has as many regions
as it has masks, which may be one or none.
"""

from collections.abc import Sequence
from itertools import pairwise

from psis_d2.errors import UserError
from psis_d2.modeling.norms import tower_norm

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn


def _conv(
    in_channels: int,
    channels: int,
    norm: str,
    *,
    size: int = 3,
    stride: int = 1,
    activation: nn.Module | None = None,
) -> Conv2d:
    conv = Conv2d(
        in_channels,
        channels,
        kernel_size=size,
        stride=stride,
        padding=size // 2,
        bias=not norm,
        norm=get_norm(tower_norm(norm), channels),
        activation=activation,
    )
    weight_init.c2_msra_fill(conv)
    return conv


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where shapes change.

    [R, in_channels, P, P] to [R, channels, P / stride, P / stride], rounded up.
    """

    def __init__(self, in_channels: int, channels: int, norm: str, stride: int = 1):
        super().__init__()
        self.conv1 = _conv(
            in_channels, channels, norm, stride=stride, activation=nn.ReLU(inplace=True)
        )
        self.conv2 = _conv(channels, channels, norm)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != channels:
            self.shortcut = _conv(in_channels, channels, norm, size=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.conv2(self.conv1(x)) + self.shortcut(x))


def residual_blocks(channels: Sequence[int], norm: str, stride: int = 1) -> nn.Sequential:
    """Residual blocks through the given channel counts; the first has the stride."""
    return nn.Sequential(
        *(
            ResidualBlock(before, after, norm, stride if k == 0 else 1)
            for k, (before, after) in enumerate(pairwise(channels))
        )
    )


class Hourglass(nn.Module):
    """Encode at half the resolution, recurse, decode, add to the skip branch.

    [R, channels[0], P, P] to the same shape, for any P.

    Args:
        channels: of every scale, the finest first; at least two.
        blocks: residual blocks of every scale, in each of its branches.
        norm: Detectron2 norm name, "" for none.
    """

    def __init__(self, channels: Sequence[int], blocks: Sequence[int], norm: str):
        super().__init__()
        (outer, inner), n = channels[:2], blocks[0]
        self.skip = residual_blocks([outer] * (n + 1), norm)
        self.encode = residual_blocks([outer] + [inner] * n, norm, stride=2)
        if len(channels) > 2:
            self.inside: nn.Module = Hourglass(channels[1:], blocks[1:], norm)
        else:
            self.inside = residual_blocks([inner] * (blocks[1] + 1), norm)
        self.decode = residual_blocks([inner] * n + [outer], norm)

    def forward(self, x: Tensor) -> Tensor:
        coarse = self.decode(self.inside(self.encode(x)))
        return self.skip(x) + F.interpolate(coarse, size=x.shape[-2:], mode="nearest")


def hourglass_trunk(
    in_channels: int, dim: int, channels: Sequence[int], blocks: Sequence[int], norm: str = "GN"
) -> nn.Sequential:
    """[R, in_channels, P, P] to [R, channels[0], P, P].

    Args:
        in_channels: of the input.
        dim: channels of the first convolution.
        channels, blocks: see :class:`Hourglass`.
        norm: Detectron2 norm name, "" for none.

    Raises:
        UserError: the settings do not fit each other.
    """
    if len(channels) != len(blocks) or len(channels) < 2 or min(*channels, *blocks) < 1:
        raise UserError(
            f"PSIS.HOURGLASS.CHANNELS is {list(channels)} and PSIS.HOURGLASS.BLOCKS "
            f"{list(blocks)}; give as many of the one as of the other, two or more, all positive."
        )
    if "BN" in norm:
        raise UserError(
            f"MODEL.ROI_MASK_HEAD.NORM is '{norm}', but a batch may have one region or none to "
            "take statistics from; choose GN for the hourglass."
        )
    return nn.Sequential(
        _conv(in_channels, dim, norm, activation=nn.ReLU(inplace=True)),
        ResidualBlock(dim, channels[0], norm),
        Hourglass(channels, blocks, norm),
        _conv(channels[0], channels[0], norm, activation=nn.ReLU(inplace=True)),
    )
