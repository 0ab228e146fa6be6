"""NAS-FPN (Ghiasi et al., CVPR 2019): a feature pyramid whose connections were searched for.

The seven merging cells of the paper's best architecture for P3 to P7 are the table ``CELLS``;
operations and order follow the released code.
"""

from dataclasses import dataclass

from psis_d2.modeling.norms import tower_norm

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

LEVELS = (3, 4, 5, 6, 7)


@dataclass(frozen=True)
class MergingCell:
    """Merges two maps into a new one, of the size of a pyramid level."""

    name: str
    """By which later cells refer to the result."""
    level: int
    """Of the pyramid, whose size the result has."""
    operation: str
    """"sum" or "attention", see :func:`merge`."""
    inputs: tuple[str, str]
    """Fine and coarse, of cells above in the table, or a level of the pyramid that comes in."""
    also: str = ""
    """An incoming level that no cell has used; an output takes it in (released code)."""


CELLS = (
    MergingCell("p4_first", 4, "attention", ("p4", "p6")),
    MergingCell("p4_second", 4, "sum", ("p4", "p4_first")),
    MergingCell("p3_out", 3, "sum", ("p3", "p4_second")),
    MergingCell("p4_out", 4, "sum", ("p3_out", "p4_second")),
    MergingCell("p5_out", 5, "attention", ("p3_out", "p4_out"), also="p5"),
    MergingCell("p7_out", 7, "attention", ("p4_second", "p5_out"), also="p7"),
    MergingCell("p6_out", 6, "attention", ("p5_out", "p7_out")),
)


def resample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A map [N, C, H, W] at another size: nearest neighbor to a larger one, maximum to a
    smaller one."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    if x.shape[-1] < size[-1]:
        return F.interpolate(x, size=size, mode="nearest")
    return F.adaptive_max_pool2d(x, size)


def merge(operation: str, fine: Tensor, coarse: Tensor) -> Tensor:
    """The two binary operations of the paper (sec. 3.2), on maps [N, C, H, W] of one size.

    "sum", or "attention", global pooling attention: the largest value of every channel of the
    coarse map decides how much of the fine map's channel is added to it.
    """
    if operation == "sum":
        return fine + coarse
    return coarse + fine * coarse.amax(dim=(2, 3), keepdim=True).sigmoid()


class MergingCells(nn.Module):
    """One pass through ``CELLS``, each followed by ReLU, 3x3 convolution and norm.

    {"p3": ..., "p7": ...} of float [N, channels, H / 2^level, W / 2^level] to the same.
    """

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.convs = nn.ModuleDict(
            {cell.name: _conv(channels, channels, 3, norm) for cell in CELLS}
        )

    def forward(self, pyramid: dict[str, Tensor]) -> dict[str, Tensor]:
        maps = dict(pyramid)
        for cell in CELLS:
            size = tuple(pyramid[f"p{cell.level}"].shape[-2:])
            fine, coarse = (resample(maps[name], size) for name in cell.inputs)
            x = merge(cell.operation, fine, coarse)
            if cell.also:
                x = x + maps[cell.also]
            maps[cell.name] = self.convs[cell.name](F.relu(x))
        return {f"p{level}": maps[f"p{level}_out"] for level in LEVELS}


class NASFPN(Backbone):
    """A bottom-up network under repeated merging cells.

    P6 and P7 come in as maxima of P5 (paper sec. 3.1).

    Args:
        bottom_up: a backbone.
        in_features: three of its outputs, of strides 8, 16 and 32.
        channels: of every output.
        norm: Detectron2 norm name of every convolution; training needs one.
        repeats: passes through the cells.
    """

    def __init__(
        self, bottom_up: Backbone, in_features: list[str], channels: int, norm: str, repeats: int
    ):
        super().__init__()
        shapes = bottom_up.output_shape()
        strides = [shapes[name].stride for name in in_features]
        if strides != [8, 16, 32]:
            raise ValueError(f"NAS-FPN needs features of strides 8, 16 and 32, not {strides}")
        self.bottom_up = bottom_up
        self.in_features = list(in_features)
        self.channels = channels
        self.lateral = nn.ModuleList(
            [_conv(shapes[name].channels, channels, 1, norm) for name in in_features]
        )
        self.cells = nn.Sequential(*(MergingCells(channels, norm) for _ in range(repeats)))
        self._out_features = [f"p{level}" for level in LEVELS]

    @property
    def size_divisibility(self) -> int:
        """Of the input, so that every level has half the size of the one below."""
        return 2 ** LEVELS[-1]

    def output_shape(self) -> dict[str, ShapeSpec]:
        """p3 to p7, strides 8 to 128."""
        return {f"p{level}": ShapeSpec(channels=self.channels, stride=2**level) for level in LEVELS}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """See Detectron2's ``Backbone``."""
        features = self.bottom_up(x)
        pyramid = {
            f"p{level}": conv(features[name])
            for level, conv, name in zip(LEVELS, self.lateral, self.in_features, strict=False)
        }
        for level in LEVELS[len(self.lateral) :]:
            pyramid[f"p{level}"] = F.max_pool2d(pyramid[f"p{level - 1}"], kernel_size=2)
        return self.cells(pyramid)


def _conv(in_channels: int, channels: int, size: int, norm: str) -> Conv2d:
    conv = Conv2d(
        in_channels,
        channels,
        kernel_size=size,
        padding=size // 2,
        bias=not norm,
        norm=get_norm(tower_norm(norm), channels),
    )
    weight_init.c2_xavier_fill(conv)
    return conv
