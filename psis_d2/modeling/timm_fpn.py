"""Any convolutional model of timm under Detectron2's FPN."""

import math

from psis_d2.errors import UserError, check_choice
from psis_d2.modeling.timm_weights import (
    check_pixel_statistics,
    import_timm,
    not_downloaded,
    pretrained_config,
    weights_overlay,
)

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import nn

_PROBE = (64, 96)  # an image that tells a model's strides, and whether it takes any size
_TOPS = ("pool", "convolutions")


class FrozenNorm(nn.Module):
    """A batch norm with fixed statistics and weights, and what timm lets follow it.

    timm multiplies by the scale and then adds the offset, which reads and writes every map twice;
    here it is done in one pass, which saves a quarter of a light model's forward time on a CPU. The
    buffers have timm's names, so that checkpoints fit either.

    Args:
        frozen: what ``timm.layers.freeze_batch_norm_2d`` made of a norm, with or without an
            activation.
    """

    def __init__(self, frozen: nn.Module):
        super().__init__()
        for name, value in frozen.named_buffers(recurse=False):
            self.register_buffer(name, value)
        self.eps = frozen.eps
        self.drop = getattr(frozen, "drop", nn.Identity())
        self.act = getattr(frozen, "act", nn.Identity())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, C, H, W] to the same shape."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        offset = self.bias - self.running_mean * scale
        x = torch.addcmul(offset[:, None, None], x, scale[:, None, None])
        return self.act(self.drop(x))


class TimmFeatures(Backbone):
    """The feature maps of a timm model, named after their strides as those of a ResNet.

    Args:
        net: a model of ``timm.create_model(..., features_only=True)``; it expects RGB.
        out_features: names among ``res1`` (stride 2) to ``res5`` (stride 32). Of several maps
            with one stride the last is taken.
        flip_channels: whether the input is BGR.

    Raises:
        UserError: the model has no such map, or insists on a size of image.
    """

    def __init__(self, net: nn.Module, out_features: list[str], flip_channels: bool):
        super().__init__()
        self.net = net
        self.flip_channels = flip_channels
        strides, channels = net.feature_info.reduction(), net.feature_info.channels()
        names = {stride: f"res{int(math.log2(stride))}" for stride in strides}
        last = {names[stride]: index for index, stride in enumerate(strides)}
        if missing := [name for name in out_features if name not in last]:
            raise UserError(
                f"MODEL.FPN.IN_FEATURES names {missing[0]}, but this timm model has maps of stride "
                f"{', '.join(map(str, sorted(set(strides))))} only; choose among {', '.join(last)}."
            )
        self._indices = {name: last[name] for name in out_features}
        self._out_features = list(out_features)
        self._out_feature_strides = {name: strides[i] for name, i in self._indices.items()}
        self._out_feature_channels = {name: channels[i] for name, i in self._indices.items()}
        self._check_maps(self._probe(grad=False))
        for parameter in self._parameters_behind(self._indices.values(), inverted=True):
            parameter.requires_grad_(False)  # no map that is used depends on it

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps [N, C, H / stride, W / stride] of normalized images [N, 3, H, W]."""
        maps = self.net(images.flip(1) if self.flip_channels else images)
        return {name: maps[index] for name, index in self._indices.items()}

    def freeze(self, stages: int) -> "TimmFeatures":
        """Keep the weights and the statistics that maps of stride 2 ** stages and finer depend on.

        0 freezes nothing, 5 the whole model: what ``MODEL.BACKBONE.FREEZE_AT`` means for a ResNet.
        """
        strides = self.net.feature_info.reduction()
        below = [index for index, stride in enumerate(strides) if stride <= 2**stages]
        if stages > 0 and below:
            frozen = {id(p) for p in self._parameters_behind(below)}
            if stages >= 5:
                frozen = {id(p) for p in self.net.parameters()}
            for parameter in self.net.parameters():
                if id(parameter) in frozen:
                    parameter.requires_grad_(False)
            self.freeze_norms(only=frozen)
        return self

    def freeze_norms(self, only: set[int] | None = None) -> "TimmFeatures":
        """Make batch norms what they compute in evaluation, statistics and ``eps`` as they are.

        Args:
            only: identities of parameters; norms that have none of them are left alone.
        """
        freeze = import_timm().layers.freeze_batch_norm_2d
        for parent in list(self.net.modules()):
            for name, child in list(parent.named_children()):
                if not isinstance(child, nn.modules.batchnorm._BatchNorm):
                    continue
                if only is None or any(id(p) in only for p in child.parameters(recurse=False)):
                    setattr(parent, name, FrozenNorm(freeze(child)))
        return self

    def _probe(self, grad: bool) -> list[torch.Tensor]:
        training = self.net.training
        self.net.eval()
        try:
            with torch.set_grad_enabled(grad):
                return self.net(torch.zeros(1, 3, *_PROBE))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"This timm model does not take images of any size ({error}); choose a "
                "convolutional one as PSIS.TIMM.NAME."
            ) from error
        finally:
            self.net.train(training)

    def _check_maps(self, maps: list[torch.Tensor]) -> None:
        for name, index in self._indices.items():
            stride = self._out_feature_strides[name]
            wanted = (1, self._out_feature_channels[name], *(side // stride for side in _PROBE))
            if tuple(maps[index].shape) != wanted:
                raise UserError(
                    f"The map {name} of this timm model is {tuple(maps[index].shape)} for an image "
                    f"of {_PROBE}, not {wanted}; choose a convolutional model as PSIS.TIMM.NAME."
                )

    def _parameters_behind(self, indices, inverted: bool = False) -> list[nn.Parameter]:
        """Parameters that the maps at `indices` depend on: autograd knows, whatever the model."""
        parameters = list(self.net.parameters())
        was_trained = [parameter.requires_grad for parameter in parameters]
        for parameter in parameters:
            parameter.requires_grad_(True)
        maps = self._probe(grad=True)
        total = sum(maps[index].sum() for index in indices)
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        for parameter, trained in zip(parameters, was_trained, strict=True):
            parameter.requires_grad_(trained)
        return [p for p, g in zip(parameters, gradients, strict=True) if (g is None) is inverted]


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """An FPN on the timm model ``PSIS.TIMM.NAME``.

    ``MODEL.FPN.IN_FEATURES`` names maps by stride, res2 (4) to res5 (32), for any model. A run
    that starts without ``MODEL.WEIGHTS`` starts from ImageNet weights, as ``PSIS.TIMM.WEIGHTS``
    says; one that is given a checkpoint loads and downloads nothing here.
    ``MODEL.BACKBONE.FREEZE_AT`` freezes what maps of stride 2 ** FREEZE_AT depend on.

    Returns:
        An FPN with outputs p2 to p6, strides 4 to 64 (``PSIS.TIMM.TOP`` pool), or, with
        ``IN_FEATURES`` res3 to res5 and convolutions on top, p3 to p7, strides 8 to 128.

    Raises:
        UserError: timm, the model or its weights are missing, or the weights expect other pixel
            statistics than ``MODEL.PIXEL_MEAN`` and ``PIXEL_STD``.
    """
    node, fpn = cfg.PSIS.TIMM, cfg.MODEL.FPN
    check_choice("PSIS.TIMM.TOP", node.TOP, _TOPS)
    check_choice("INPUT.FORMAT", cfg.INPUT.FORMAT, ("BGR", "RGB"))
    bottom_up = TimmFeatures(
        _create_net(cfg), list(fpn.IN_FEATURES), flip_channels=cfg.INPUT.FORMAT == "BGR"
    )
    bottom_up.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
    if node.FREEZE_NORMS:
        bottom_up.freeze_norms()
    if node.TOP == "pool":
        top = LastLevelMaxPool()
    else:
        top = LastLevelP6P7(fpn.OUT_CHANNELS, fpn.OUT_CHANNELS, in_feature="p5")
    return FPN(
        bottom_up=bottom_up,
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=top,
        fuse_type=fpn.FUSE_TYPE,
    )


def _create_net(cfg) -> nn.Module:
    """timm's model, with its weights if nothing else will bring any."""
    timm, node = import_timm(), cfg.PSIS.TIMM
    pretrained_config(node.NAME)
    pretrained = not cfg.MODEL.WEIGHTS and node.WEIGHTS != "none"
    if not pretrained:
        if not cfg.MODEL.WEIGHTS and (node.FREEZE_NORMS or cfg.MODEL.BACKBONE.FREEZE_AT > 0):
            raise UserError(
                "PSIS.TIMM.WEIGHTS none starts from random weights, which must not be frozen; set "
                "PSIS.TIMM.FREEZE_NORMS False and MODEL.BACKBONE.FREEZE_AT 0."
            )
        return _create_model(timm, node.NAME)
    check_pixel_statistics(cfg)
    if cfg.MODEL.DEVICE == "meta":  # a model without numbers, built to see what it reads
        return _create_model(timm, node.NAME)
    overlay = weights_overlay(node.NAME, node.WEIGHTS)
    try:
        return _create_model(timm, node.NAME, pretrained=True, pretrained_cfg_overlay=overlay)
    except UserError:
        raise
    except Exception as error:  # whatever the hub, its client and the network raise
        if overlay:
            raise
        raise not_downloaded(node.NAME, error) from error


def _create_model(timm, name: str, **options) -> nn.Module:
    try:
        return timm.create_model(name, features_only=True, **options)
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        if "features_only" not in str(error):
            raise
        raise UserError(
            f"timm's {name} gives no feature maps (features_only); choose another PSIS.TIMM.NAME."
        ) from error
