"""OPMask: show the mask head which object is meant (Biertimpel et al., ICCV 2021).

Several objects may share a box; which of them is the foreground only the class says. So the class
activation map of the region's own class, computed from the box head's last feature map and the
weights of its classifier, is added to the RoI features ("object mask prior"). The classifier is
trained on all classes, so that there is such a map for those without masks, too.

As in the released code the mask loss trains the box head's features but not the classifier's
weights, and all foreground regions pass the head, whether they have a mask or not: batch norm sees
both. There, a detection keeps the map of the proposal that it was classified from; here the map is
computed from its box, like the RoI features that it is added to, and so are those of given boxes.
"""

from psis_d2.modeling.class_maps import class_activation_maps, normalize_maps, resize_maps
from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.mask_heads.base import Needs, RegionMaskHead
from psis_d2.modeling.mask_heads.blocks import UpsamplePredictor, conv_tower

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from torch import Tensor


@ROI_MASK_HEAD_REGISTRY.register()
class OPMaskHead(RegionMaskHead):
    """Mask R-CNN's head, deeper, on RoI features plus the map of the region's class.

    Args:
        input_shape: shape of the RoI features (channels, P, P).
        num_outputs: 1 for class-agnostic, else the number of classes.
        conv_dim, num_convs, norm: the mask trunk (released code: 256, 7, SyncBN).
        cam_bias: see :func:`~psis_d2.modeling.class_maps.class_activation_maps`.
        cam_normalized: see :func:`~psis_d2.modeling.class_maps.normalize_maps`; False: the maps
            as they are.
        **kwargs: see :class:`RegionMaskHead`.
    """

    trains_on = "foreground"
    needs = Needs(box_predictor=True, box_features=True)
    has_shape_prior = True

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_outputs: int,
        conv_dim: int,
        num_convs: int,
        norm: str = "",
        cam_bias: bool = False,
        cam_normalized: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.cam_bias = cam_bias
        self.cam_normalized = cam_normalized
        self.trunk = conv_tower(input_shape.channels, conv_dim, num_convs, norm)
        trunk_dim = conv_dim if num_convs else input_shape.channels
        self.predictor = UpsamplePredictor(trunk_dim, conv_dim, num_outputs)

    @classmethod
    def from_config(cls, cfg, input_shape):
        head, node = cfg.MODEL.ROI_MASK_HEAD, cfg.PSIS.OPMASK
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "num_outputs": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dim": head.CONV_DIM,
            "num_convs": head.NUM_CONV,
            "norm": head.NORM,
            "cam_bias": node.CAM_BIAS,
            "cam_normalized": node.CAM_NORMALIZED,
        }

    def class_maps(self, context: RegionContext) -> Tensor:
        """The map of each region's own class, float32 [R, P, P] for RoI features of side P."""
        maps = class_activation_maps(
            context.box_features, context.box_predictor, context.classes, self.cam_bias
        )
        if self.cam_normalized:
            maps = normalize_maps(maps)
        return resize_maps(maps, context.features.shape[-1])

    def predict(self, context: RegionContext) -> Tensor:
        """Mask logits [R, num_outputs, 2P, 2P]."""
        x = self.regularize(context.features)
        x = x + self.class_maps(context)[:, None].to(x.dtype)
        return self.predictor(self.trunk(x))

    def heat_maps(self, context: RegionContext) -> dict[str, Tensor]:
        """The map that is added to the RoI features, [R, P, P]."""
        return {"class activation": self.class_maps(context)}
