"""Backbones beside Detectron2's own."""

from psis_d2.errors import UserError
from psis_d2.modeling.nasfpn import NASFPN

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, BasicStem, ResNet, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock


@BACKBONE_REGISTRY.register()
def build_narrow_resnet18_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """ResNet-18 of any width under an FPN, for configs that train from scratch in minutes.

    Detectron2's builder insists on 64 channels in res2, which is what pretrained weights have. Here
    the stages have 1, 2, 4 and 8 times ``MODEL.RESNETS.RES2_OUT_CHANNELS`` channels, the stem
    ``MODEL.RESNETS.STEM_OUT_CHANNELS``; the norm is ``MODEL.RESNETS.NORM``, nothing is frozen.

    Returns:
        An FPN with outputs p2 to p6, strides 4 to 64.
    """
    node = cfg.MODEL.RESNETS
    stem = BasicStem(input_shape.channels, node.STEM_OUT_CHANNELS, norm=node.NORM)
    stages, channels = [], node.STEM_OUT_CHANNELS
    for index in range(4):
        width = node.RES2_OUT_CHANNELS * 2**index
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                2,
                stride_per_block=[1 if index == 0 else 2, 1],
                in_channels=channels,
                out_channels=width,
                norm=node.NORM,
            )
        )
        channels = width
    bottom_up = ResNet(stem, stages, out_features=["res2", "res3", "res4", "res5"])
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_p5_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """ResNet under an FPN whose P6 and P7 are convolutions of P5, as FCOS has it.

    Detectron2's ``build_retinanet_resnet_fpn_backbone`` makes them from res5.

    Returns:
        An FPN with outputs p3 to p7, strides 8 to 128, for ``MODEL.FPN.IN_FEATURES`` res3 to res5.
    """
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return FPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(channels, channels, in_feature="p5"),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_resnet_nasfpn_backbone(cfg, input_shape: ShapeSpec) -> NASFPN:
    """ResNet under a NAS-FPN of ``MODEL.FPN``'s width and norm.

    Returns:
        A backbone with outputs p3 to p7, strides 8 to 128, for ``MODEL.FPN.IN_FEATURES`` res3 to
        res5.
    """
    node = cfg.MODEL.FPN
    if list(node.IN_FEATURES) != ["res3", "res4", "res5"] or cfg.PSIS.NASFPN.REPEATS < 1:
        raise UserError(
            f"MODEL.FPN.IN_FEATURES is {list(node.IN_FEATURES)} and PSIS.NASFPN.REPEATS "
            f"{cfg.PSIS.NASFPN.REPEATS}; a NAS-FPN takes [res3, res4, res5], and 1 or more."
        )
    return NASFPN(
        build_resnet_backbone(cfg, input_shape),
        in_features=node.IN_FEATURES,
        channels=node.OUT_CHANNELS,
        norm=node.NORM,
        repeats=cfg.PSIS.NASFPN.REPEATS,
    )
