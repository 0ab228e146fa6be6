"""The hourglass mask head of Deep-MARC (Birodkar et al., ICCV 2021): depth instead of a prior.

A class-agnostic head whose trunk is an hourglass of residual blocks, as deep as a backbone. Trained
on ground-truth boxes (``PSIS.MASK_TRAIN_BOXES gt``) it generalizes to unseen categories far better
than a few plain convolutions. :mod:`psis_d2.modeling.hourglass` has the layers.
"""

from collections.abc import Sequence

from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.hourglass import hourglass_trunk
from psis_d2.modeling.mask_heads.base import RegionMaskHead
from psis_d2.modeling.mask_heads.blocks import UpsamplePredictor

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from torch import Tensor


@ROI_MASK_HEAD_REGISTRY.register()
class HourglassMaskHead(RegionMaskHead):
    """Class-agnostic mask head with an hourglass for a trunk.

    Args:
        input_shape: shape of the RoI features (channels, P, P).
        conv_dim: channels of the first convolution and after the upsampling.
        channels, blocks: see :class:`~psis_d2.modeling.hourglass.Hourglass`.
        norm: Detectron2 norm name, "" for none.
        **kwargs: see :class:`RegionMaskHead`.
    """

    reads_classes = False

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        conv_dim: int,
        channels: Sequence[int],
        blocks: Sequence[int],
        norm: str = "GN",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.trunk = hourglass_trunk(input_shape.channels, conv_dim, channels, blocks, norm)
        self.predictor = UpsamplePredictor(channels[0], conv_dim, 1, norm)

    @classmethod
    def from_config(cls, cfg, input_shape):
        head, node = cfg.MODEL.ROI_MASK_HEAD, cfg.PSIS.HOURGLASS
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "conv_dim": head.CONV_DIM,
            "channels": node.CHANNELS,
            "blocks": node.BLOCKS,
            "norm": head.NORM,
        }

    def predict(self, context: RegionContext) -> Tensor:
        """Mask logits [R, 1, 2P, 2P]."""
        return self.predictor(self.trunk(self.regularize(context.features)))
