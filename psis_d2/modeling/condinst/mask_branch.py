"""The features that all instances' masks are made from (CondInst's mask branch)."""

from psis_d2.modeling import released_grids
from psis_d2.modeling.mask_heads.blocks import conv_tower

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec
from torch import Tensor, nn


class MaskBranch(nn.Module):
    """Feature maps of several levels to one map of few channels, at the finest level's resolution.

    Each level goes through a convolution, is upsampled and added; a tower and a 1x1 convolution
    follow. Bilinear upsampling is aligned by the cells' areas, as locations and targets are, or as
    released.

    Args:
        input_shape: shapes of the feature maps, from high to low resolution.
        dim: channels of all layers but the last.
        num_convs: convolutions of the tower.
        norm: Detectron2 norm name.
        channels: of the result.
        init: "released": uniform, of variance 1 / fan-in, and PyTorch's own for the last layer;
            "msra": normal, of variance 2 / fan-out.
        released_grids: see :mod:`psis_d2.modeling.released_grids`.
    """

    def __init__(
        self,
        input_shape: list[ShapeSpec],
        *,
        dim: int,
        num_convs: int,
        norm: str,
        channels: int,
        init: str = "released",
        released_grids: bool = False,
    ):
        super().__init__()
        self.released_grids = released_grids
        self.refine = nn.ModuleList(conv_tower(x.channels, dim, 1, norm) for x in input_shape)
        self.tower = conv_tower(dim, dim, num_convs, norm)
        self.project = Conv2d(dim, channels, kernel_size=1)
        if init == "msra":
            weight_init.c2_msra_fill(self.project)
            return
        for layer in [*self.refine.modules(), *self.tower.modules()]:
            if isinstance(layer, Conv2d):
                weight_init.c2_xavier_fill(layer)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """float [B, *, H, W] of each level to [B, channels, H, W] of the first."""
        total = self.refine[0](maps[0])
        for refine, level in zip(self.refine[1:], maps[1:], strict=True):
            total = total + self._upsample(refine(level), total.shape[-2:])
        return self.project(self.tower(total))

    def _upsample(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if self.released_grids:
            return released_grids.upsample(x, size[0] // x.shape[-2])
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
