"""The features that all instances' masks are made from (CondInst's mask branch)."""

from psis_d2.modeling.mask_heads.blocks import conv_tower

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec
from torch import Tensor, nn


class MaskBranch(nn.Module):
    """Feature maps of several levels to one map of few channels, at the finest level's resolution.

    Each level goes through a convolution, is upsampled and added; a tower and a 1x1 convolution
    follow. Bilinear upsampling is aligned by the cells' areas, as locations and targets are.

    Args:
        input_shape: shapes of the feature maps, from high to low resolution.
        dim: channels of all layers but the last.
        num_convs: convolutions of the tower.
        norm: Detectron2 norm name.
        channels: of the result.
    """

    def __init__(
        self, input_shape: list[ShapeSpec], *, dim: int, num_convs: int, norm: str, channels: int
    ):
        super().__init__()
        self.refine = nn.ModuleList(conv_tower(x.channels, dim, 1, norm) for x in input_shape)
        self.tower = conv_tower(dim, dim, num_convs, norm)
        self.project = Conv2d(dim, channels, kernel_size=1)
        weight_init.c2_msra_fill(self.project)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """float [B, *, H, W] of each level to [B, channels, H, W] of the first."""
        total = self.refine[0](maps[0])
        for refine, level in zip(self.refine[1:], maps[1:], strict=True):
            total = total + F.interpolate(
                refine(level), size=total.shape[-2:], mode="bilinear", align_corners=False
            )
        return self.project(self.tower(total))
