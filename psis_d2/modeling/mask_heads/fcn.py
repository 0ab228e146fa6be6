"""Mask R-CNN's fully convolutional mask head (He et al., ICCV 2017), the field's baseline.

Class-agnostic with one output channel, class-specific with one a class. The numbers of convolutions
and of upsamplings are config keys, so the "deeper head" baseline is the same file, and so is the
fused FCN+MLP head of "Learning to Segment Every Thing" (Hu et al., CVPR 2018, sec. 3.4).
"""

from psis_d2.errors import UserError
from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.mask_heads.base import RegionMaskHead
from psis_d2.modeling.mask_heads.blocks import (
    MaskMLP,
    UpsamplePredictor,
    conv_tower,
    upsample_layers,
)

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from torch import Tensor, nn


@ROI_MASK_HEAD_REGISTRY.register()
class FCNMaskHead(RegionMaskHead):
    """`num_convs` 3x3 convolutions, 2x upsamplings and a 1x1 predictor.

    Args:
        input_shape: shape of the RoI features (channels, P, P).
        num_outputs: 1 for class-agnostic, else the number of classes.
        conv_dim: channels of every hidden layer.
        num_convs: convolutions before the upsampling (Mask R-CNN: 4).
        upsamplings: how often the side is doubled, U (Mask R-CNN: 1).
        norm: Detectron2 norm name of the convolutions, "" for none.
        mlp_branch: add a class-agnostic MLP's logits to every class's.
        mlp_dim: see :class:`MaskMLP`.
        **kwargs: see :class:`RegionMaskHead`.
    """

    can_fuse_mlp = True

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_outputs: int,
        conv_dim: int,
        num_convs: int,
        upsamplings: int = 1,
        norm: str = "",
        mlp_branch: bool = False,
        mlp_dim: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.reads_classes = num_outputs > 1
        self.trunk = conv_tower(input_shape.channels, conv_dim, num_convs, norm)
        if upsamplings < 1:
            raise UserError(f"PSIS.FCN_UPSAMPLINGS is {upsamplings}; it must be at least 1.")
        dims = [conv_dim if num_convs else input_shape.channels] + [conv_dim] * (upsamplings - 1)
        self.upsample = nn.Sequential(*(upsample_layers(dim, conv_dim) for dim in dims[:-1]))
        self.predictor = UpsamplePredictor(dims[-1], conv_dim, num_outputs)
        self.mlp = None
        if mlp_branch:
            self.mlp = MaskMLP(conv_dim, input_shape.width * 2**upsamplings, mlp_dim)

    @classmethod
    def from_config(cls, cfg, input_shape):
        head = cfg.MODEL.ROI_MASK_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "num_outputs": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dim": head.CONV_DIM,
            "num_convs": head.NUM_CONV,
            "upsamplings": cfg.PSIS.FCN_UPSAMPLINGS,
            "norm": head.NORM,
            "mlp_branch": cfg.PSIS.MLP_BRANCH,
            "mlp_dim": cfg.PSIS.MLP_BRANCH_DIM,
        }

    def predict(self, context: RegionContext) -> Tensor:
        """Mask logits of each region's class, [R, 1, 2^U P, 2^U P]."""
        x = self._upsampled(context)
        if self.reads_classes:
            logits = self.predictor.own(x, context.classes)
        else:
            logits = self.predictor[-1](x)
        return logits if self.mlp is None else logits + self.mlp(x)

    def predict_all(self, context: RegionContext) -> Tensor:
        """Mask logits of every class, [R, num_outputs, 2^U P, 2^U P]."""
        x = self._upsampled(context)
        logits = self.predictor[-1](x)
        return logits if self.mlp is None else logits + self.mlp(x)

    def _upsampled(self, context: RegionContext) -> Tensor:
        x = self.upsample(self.trunk(self.regularize(context.features)))
        return self.predictor.upsample(x)
