"""CPMask: parse what all categories have in common (Fan et al., ECCV 2020).

Two modules around a class-agnostic mask trunk (paper sec. 3):

1. *Boundary parsing*: a tower on the RoI features learns the object's boundary (Eq. 2); its
   features are added to the RoI features, weighted by a gate (Eq. 3).
2. *Affinity parsing*: after the trunk, pixels attend to one another by the affinity of their
   appearance (Eq. 4 and 6), and a loss asks the object's pixels to attend to the object (Eq. 5).

Layers that the paper leaves open follow the first author's released code. Nothing stops a gradient.
That code wraps the affinity loss of each region in a new tensor, which cuts it off from theta and
phi; here it reaches them.
"""

from typing import NamedTuple

from psis_d2.config_rules import check_keys
from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.losses import select_class, weighted_bce, zero_loss
from psis_d2.modeling.mask_heads.base import RegionMaskHead
from psis_d2.modeling.mask_heads.blocks import UpsamplePredictor, conv_tower
from psis_d2.modeling.mask_targets import boundary_targets
from psis_d2.modeling.norms import region_norm
from psis_d2.ops import affinity_attention

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from torch import Tensor, nn

# A single foreground pixel could only be asked to attend to itself; the released code leaves such
# regions out, too.
_MIN_FOREGROUND = 2


def affinity_loss(
    sums: Tensor, foreground: Tensor, terms: int = 2, weights: Tensor | None = None
) -> Tensor:
    """Eq. 5: affinities of foreground pixels add up to 1 over the foreground, to 0 elsewhere.

    As printed, Eq. 5 sums over both pixels of a pair; a target of 1 makes sense for the affinities
    of one pixel, which the softmax makes sum to 1. So each term is the mean over the foreground
    pixels of a region, then over regions. And as the background's share is what the foreground's
    leaves, both terms are equal.

    Args:
        sums: float [R, L], the affinities of each pixel summed over the region's foreground.
        foreground: bool [R, L]; regions with less than two foreground pixels do not count.
        terms: 2 is the paper's; 1 the released code's, which has the first term only.
        weights: float [R], factors of the regions' terms, None for none.

    Returns:
        float32 scalar, 0 if no region counts.
    """
    size = foreground.sum(dim=1)
    counts = size >= _MIN_FOREGROUND
    missing = ((1 - sums.float()).abs() * foreground).sum(dim=1) / size.clamp(min=1)
    missing = missing * counts
    if weights is not None:
        missing = missing * weights
    return terms * missing.sum() / counts.sum().clamp(min=1)


def _pointwise(in_channels: int, channels: int, activation: nn.Module | None, **options) -> Conv2d:
    conv = Conv2d(in_channels, channels, kernel_size=1, activation=activation, **options)
    weight_init.c2_msra_fill(conv)
    return conv


class BoundaryFusion(nn.Module):
    """Eq. 3's sum of RoI features X and boundary features B, as the released code has it.

    X + B * gate(X, B), where the gate is one number a pixel, then a 1x1 convolution, norm, ReLU.

    Args:
        channels: of X and of B.
        dim: of the result.
        norm: Detectron2 norm name, "" for none.
    """

    def __init__(self, channels: int, dim: int, norm: str):
        super().__init__()
        self.gate = _pointwise(2 * channels, 1, nn.Sigmoid())
        self.project = _pointwise(
            channels, dim, nn.ReLU(), bias=not norm, norm=get_norm(region_norm(norm), dim)
        )

    def forward(self, x: Tensor, boundary: Tensor) -> Tensor:
        """Two float [R, channels, P, P] to [R, dim, P, P]."""
        return self.project(x + boundary * self.gate(torch.cat([x, boundary], dim=1)))


class AffinityParsing(nn.Module):
    """Attention by the affinity of appearance, added to its input (Eq. 4, 6 and 7).

    Args:
        dim: channels of input and output, and of the embeddings theta, phi and g.
        scale: of the affinities before the softmax; 0 for dim ** -0.5.
        unbiased: see :func:`psis_d2.ops.affinity_attention`.
        norm: Detectron2 norm name of what is added, "" for none.
        norm_eps: what that norm adds to the variance.
        gamma: initial gain of that norm.
    """

    def __init__(
        self,
        dim: int,
        *,
        scale: float = 0.0,
        unbiased: bool = False,
        norm: str = "",
        norm_eps: float = 1e-5,
        gamma: float = 1.0,
    ):
        super().__init__()
        self.scale = scale or dim**-0.5
        self.unbiased = unbiased
        self.theta = _pointwise(dim, dim, nn.ReLU())
        self.phi = _pointwise(dim, dim, nn.ReLU())
        self.value = _pointwise(dim, dim, nn.ReLU())
        self.project = _pointwise(dim, dim, nn.ReLU())
        self.norm = get_norm(region_norm(norm), dim) or nn.Identity()
        if norm:
            self.norm.eps = norm_eps
            nn.init.constant_(self.norm.weight, gamma)

    def forward(self, x: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            x: float [R, dim, P, P].
            foreground: bool [R, P, P].

        Returns:
            float [R, dim, P, P] and the affinities of each pixel summed over the foreground,
            float [R, P * P].
        """
        attended, sums = affinity_attention(
            *(self.theta(x), self.phi(x), self.value(x), foreground),
            scale=self.scale,
            unbiased=self.unbiased,
        )
        return x + self.norm(self.project(attended)), sums

    def affinities(self, x: Tensor) -> Tensor:
        """All affinities, float [R, L, L] with L = P * P; a row sums to 1. For looking at them."""
        n, _, height, width = x.shape
        pixels = height * width
        # Attending to one-hot values gives the affinities themselves.
        one_hot = torch.eye(pixels, dtype=x.dtype, device=x.device).view(1, pixels, height, width)
        nothing = x.new_zeros(n, height, width)
        attended, _ = affinity_attention(
            *(self.theta(x), self.phi(x), one_hot.repeat(n, 1, 1, 1), nothing),
            scale=self.scale,
            unbiased=self.unbiased,
        )
        return attended.flatten(2).transpose(1, 2)


class Parsing(NamedTuple):
    """What the head computes for R regions; the parts that are off are None."""

    mask: Tensor
    """Mask logits, float [R, K, 2P, 2P]."""
    boundary: Tensor | None
    """Boundary logits, float [R, 1, 2P, 2P]."""
    foreground_sums: Tensor | None
    """Each pixel's affinities to the foreground, float [R, P * P]."""


@ROI_MASK_HEAD_REGISTRY.register()
class CPMaskHead(RegionMaskHead):
    """CPMask's mask head; with both modules off, Mask R-CNN's.

    Args:
        input_shape: shape of the RoI features (channels, P, P).
        num_outputs: 1 for class-agnostic masks (the paper's), else the number of classes.
        conv_dim, num_convs, norm: the mask trunk, as in the fully convolutional head.
        boundary: whether there is a boundary-parsing module.
        boundary_convs: its convolutions, as wide as the RoI features.
        boundary_width: width of the band that it learns, see :func:`boundary_targets`.
        fusion, fusion_norm: whether and how it is fused with the RoI features, see
            :class:`BoundaryFusion`.
        affinity: whether there is an affinity-parsing module.
        affinity_terms: number of terms of its loss, see :func:`affinity_loss`; 0 for no loss.
        affinity_scale, affinity_unbiased, affinity_norm, affinity_norm_eps, affinity_gamma: see
            :class:`AffinityParsing`.
        boundary_weight, affinity_weight: weights of the two losses.
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
        boundary: bool = True,
        boundary_convs: int = 4,
        boundary_width: int = 1,
        fusion: bool = True,
        fusion_norm: str = "GN",
        affinity: bool = True,
        affinity_terms: int = 2,
        affinity_scale: float = 0.0,
        affinity_unbiased: bool = True,
        affinity_norm: str = "BN",
        affinity_norm_eps: float = 1e-4,
        affinity_gamma: float = 1.0,
        boundary_weight: float = 0.5,
        affinity_weight: float = 0.5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.reads_classes = num_outputs > 1
        channels = input_shape.channels
        self.boundary_width = boundary_width
        self.boundary_weight = boundary_weight
        self.affinity_terms = affinity_terms
        self.affinity_weight = affinity_weight
        self.boundary_tower = self.boundary_predictor = self.fusion = self.affinity = None
        if boundary:
            self.boundary_tower = conv_tower(channels, channels, boundary_convs)
            self.boundary_predictor = UpsamplePredictor(channels, channels, 1)
            if fusion:
                self.fusion = BoundaryFusion(channels, conv_dim, fusion_norm)
                channels = conv_dim
        self.trunk = conv_tower(channels, conv_dim, num_convs, norm)
        channels = conv_dim if num_convs else channels
        if affinity:
            self.affinity = AffinityParsing(
                channels,
                scale=affinity_scale,
                unbiased=affinity_unbiased,
                norm=affinity_norm,
                norm_eps=affinity_norm_eps,
                gamma=affinity_gamma,
            )
        self.predictor = UpsamplePredictor(channels, conv_dim, num_outputs)

    @classmethod
    def from_config(cls, cfg, input_shape):
        check_keys(cfg, "PSIS.CPMASK")
        head, node = cfg.MODEL.ROI_MASK_HEAD, cfg.PSIS.CPMASK
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "num_outputs": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dim": head.CONV_DIM,
            "num_convs": head.NUM_CONV,
            "norm": head.NORM,
            "boundary": node.BOUNDARY,
            "boundary_convs": node.BOUNDARY_CONVS,
            "boundary_width": node.BOUNDARY_WIDTH,
            "fusion": node.FUSION,
            "fusion_norm": node.FUSION_NORM,
            "affinity": node.AFFINITY,
            "affinity_terms": node.AFFINITY_TERMS,
            "affinity_scale": node.AFFINITY_SCALE,
            "affinity_unbiased": node.AFFINITY_UNBIASED,
            "affinity_norm": node.AFFINITY_NORM,
            "affinity_norm_eps": node.AFFINITY_NORM_EPS,
            "affinity_gamma": node.AFFINITY_GAMMA,
            "boundary_weight": node.BOUNDARY_WEIGHT,
            "affinity_weight": node.AFFINITY_WEIGHT,
        }

    def basic_features(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """The trunk's output C (Eq. 3) and the boundary logits.

        Args:
            features: float [R, C, P, P], RoI features.

        Returns:
            float [R, conv_dim, P, P]; float [R, 1, 2P, 2P], None without a boundary module.
        """
        if self.boundary_tower is None:
            return self.trunk(features), None
        boundary = self.boundary_tower(features)
        x = features if self.fusion is None else self.fusion(features, boundary)
        return self.trunk(x), self.boundary_predictor(boundary)

    def parse(self, features: Tensor, foreground: Tensor) -> Parsing:
        """Everything the head computes, R > 0.

        Args:
            features: float [R, C, P, P], RoI features.
            foreground: bool [R, P, P], for the affinities' sums only.
        """
        x, boundary = self.basic_features(self.regularize(features))
        sums = None
        if self.affinity is not None:
            x, sums = self.affinity(x, foreground)
        return Parsing(self.predictor(x), boundary, sums)

    def predict(self, context: RegionContext) -> Tensor:
        """Mask logits [R, num_outputs, 2P, 2P]."""
        features = context.features
        nothing = torch.zeros_like(features[:, 0], dtype=torch.bool)
        return self.parse(features, nothing).mask

    def heat_maps(self, context: RegionContext) -> dict[str, Tensor]:
        """Boundary probability [R, 2P, 2P] and mean affinity [R, P, P], as in the paper's Fig. 4.

        The mean affinity of a pixel is what it gets from the pixels of the predicted mask, on
        average: affinities of a row sum to 1, so those of the map do.
        """
        maps = {}
        x, boundary = self.basic_features(context.features)
        if boundary is not None:
            maps["boundary"] = boundary[:, 0].sigmoid()
        if self.affinity is not None:
            nothing = torch.zeros_like(x[:, 0], dtype=torch.bool)
            logits = self.predictor(self.affinity(x, nothing)[0])
            mask = select_class(logits, context.classes).sigmoid()
            foreground = (F.avg_pool2d(mask, 2) >= 0.5).flatten(1).to(x.dtype)
            weights = foreground / foreground.sum(dim=1, keepdim=True).clamp(min=1)
            mean = torch.einsum("ri,rij->rj", weights, self.affinity.affinities(x))
            maps["affinity"] = mean.view(len(x), *x.shape[-2:])
        return maps

    def losses(self, context: RegionContext) -> dict[str, Tensor]:
        """``loss_mask`` and, from their modules, ``loss_boundary`` and ``loss_affinity``."""
        has_affinity_loss = self.affinity is not None and self.affinity_terms > 0
        if len(context) == 0:
            losses = {"loss_mask": zero_loss(self) + self.take_part(context)}
            if self.boundary_tower is not None:
                losses["loss_boundary"] = zero_loss(self.boundary_predictor)
            if has_affinity_loss:
                losses["loss_affinity"] = zero_loss(self.affinity)
            return losses

        targets = context.mask_targets(2 * context.features.shape[-1])
        # Half of a cell or more; the released code asks the upper left quarter.
        foreground = F.avg_pool2d(targets, 2) >= 0.5
        parsing = self.parse(context.features, foreground)
        weights = context.mask_weights
        losses = {"loss_mask": self.mask_loss(context, parsing.mask, targets)}
        if parsing.boundary is not None:
            losses["loss_boundary"] = self.boundary_weight * weighted_bce(
                parsing.boundary[:, 0], boundary_targets(targets, self.boundary_width), weights
            )
        if has_affinity_loss:
            losses["loss_affinity"] = self.affinity_weight * affinity_loss(
                parsing.foreground_sums, foreground.flatten(1), self.affinity_terms, weights
            )
        return losses
