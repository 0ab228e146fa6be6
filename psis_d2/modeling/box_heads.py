"""Box heads beside Detectron2's own.

A box head whose feature maps a mask head may read (``RegionContext.box_features``) has the methods
``maps`` and ``pool``; calling it is one after the other.
"""

from itertools import pairwise

from psis_d2.errors import UserError
from psis_d2.modeling.mask_heads.blocks import conv_tower

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from torch import Tensor, nn


@ROI_BOX_HEAD_REGISTRY.register()
class PooledConvBoxHead(nn.Module):
    """3x3 convolutions, norm, ReLU, then global average pooling, as OPMask's box head has them.

    Nothing but a mean stands between the last map and the classifier, so that the classifier's
    weights apply to every cell of the map: its class activation maps (Zhou et al., CVPR 2016).

    Args:
        input_shape: shape of the pooled features (channels, S, S).
        num_convs: how many convolutions.
        max_dim: each doubles the channels, up to this number (OPMask's: 256, 512, 1024, 1024,
            1024).
        norm: Detectron2 norm name, "" for none.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, num_convs: int, max_dim: int, norm: str = ""):
        super().__init__()
        if num_convs < 1:
            raise UserError(
                f"MODEL.ROI_BOX_HEAD.NUM_CONV is {num_convs}; PooledConvBoxHead needs 1 or more."
            )
        channels = [input_shape.channels]
        for _ in range(num_convs):
            channels.append(min(2 * channels[-1], max_dim))
        self.dim = channels[-1]
        self.convs = nn.Sequential(*(conv_tower(a, b, 1, norm)[0] for a, b in pairwise(channels)))

    @classmethod
    def from_config(cls, cfg, input_shape):
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "num_convs": head.NUM_CONV,
            "max_dim": head.CONV_DIM,
            "norm": head.NORM,
        }

    @property
    def output_shape(self) -> ShapeSpec:
        """Of what the box predictor reads."""
        return ShapeSpec(channels=self.dim)

    def maps(self, x: Tensor) -> Tensor:
        """Pooled features [R, channels, S, S] to feature maps [R, dim, S, S]."""
        return self.convs(x)

    def pool(self, maps: Tensor) -> Tensor:
        """Feature maps [R, dim, S, S] to what the box predictor reads, [R, dim]."""
        return maps.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features [R, channels, S, S] to [R, dim]."""
        return self.pool(self.maps(x))
