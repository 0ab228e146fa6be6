"""Mask R-CNN's fully convolutional mask head (He et al., ICCV 2017), the field's baseline.

Class-agnostic with one output channel, class-specific with one a class. The number of
convolutions is a config key, so the "deeper head" baseline is the same file.
"""

from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.mask_heads.base import RegionMaskHead
from psis_d2.modeling.mask_heads.blocks import UpsamplePredictor, conv_tower

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from torch import Tensor


@ROI_MASK_HEAD_REGISTRY.register()
class FCNMaskHead(RegionMaskHead):
    """`num_convs` 3x3 convolutions, a 2x upsampling and a 1x1 predictor.

    Args:
        input_shape: shape of the RoI features (channels, P, P).
        num_outputs: 1 for class-agnostic, else the number of classes.
        conv_dim: channels of every hidden layer.
        num_convs: convolutions before the upsampling (Mask R-CNN: 4).
        norm: Detectron2 norm name of the convolutions, "" for none.
        **kwargs: see :class:`RegionMaskHead`.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_outputs: int,
        conv_dim: int,
        num_convs: int,
        norm: str = "",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.trunk = conv_tower(input_shape.channels, conv_dim, num_convs, norm)
        trunk_dim = conv_dim if num_convs else input_shape.channels
        self.predictor = UpsamplePredictor(trunk_dim, conv_dim, num_outputs)

    @classmethod
    def from_config(cls, cfg, input_shape):
        head = cfg.MODEL.ROI_MASK_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "num_outputs": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dim": head.CONV_DIM,
            "num_convs": head.NUM_CONV,
            "norm": head.NORM,
        }

    def predict(self, context: RegionContext) -> Tensor:
        """Mask logits [R, num_outputs, 2P, 2P]."""
        return self.predictor(self.trunk(self.regularise(context.features)))
