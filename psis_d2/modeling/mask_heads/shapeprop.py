"""ShapeProp: learn saliency from boxes, propagate it to shapes (Zhou et al., CVPR 2020).

Three steps on RoI features (paper sec. 3):

1. *Activating*: a classifier over box labels, applied per position, gives a saliency map of the
   region's class. It learns from every sampled proposal, masks are not needed.
2. *Propagating*: the map is encoded to a few latent channels, which exchange messages between
   neighboring positions (Eq. 4) with weights predicted from the region's appearance; decoded, this
   is the class-agnostic *shape activation*, learned where there are masks.
3. *Fusion*: the shape activation joins the RoI features in front of a class-agnostic mask trunk.

No gradient is stopped anywhere: the mask loss reaches the saliency classifier. Propagation runs
only for regions whose result is used (mask-annotated foreground in training, detections at test
time); the classifier alone sees all samples.
"""

from collections.abc import Sequence

from psis_d2.config_rules import check_keys
from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.hourglass import hourglass_trunk
from psis_d2.modeling.losses import weighted_bce, zero_loss
from psis_d2.modeling.mask_heads.base import Needs, RegionMaskHead
from psis_d2.modeling.mask_heads.blocks import UpsamplePredictor, conv_tower, plain_convs
from psis_d2.ops import message_passing

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from torch import Tensor, nn

_TAPS = 9  # of the 3x3 neighborhood, r = 3 in the paper
_MAX_EPS = 1e-5  # of the division by the activation's maximum, as released


def activating_loss(
    logits: Tensor, classes: Tensor, kind: str = "softmax_ce", objects: Tensor | None = None
) -> Tensor:
    """Loss of the saliency classifier on box labels.

    Args:
        logits: float [S, K + 1, P, P], saliency of every class, background last; P = 1 if it was
            averaged before.
        classes: int64 [S] in [0, K]; K = background.
        kind: "softmax_ce", the released code's cross-entropy of the spatially averaged logits, or
            "signed_mean", the paper's Eq. 3: the mean score of positive bags is raised, that of
            negative bags lowered. A region is a positive bag of its own class; background is a
            negative bag of the class that it misses by too small an overlap (Eq. 2), and no bag at
            all if it touches no object. The sum is divided by S. It is unbounded below.
        objects: int64 [S] in [0, K], the class of the object that each region overlaps most; K =
            none. For "signed_mean".

    Returns:
        float scalar; 0 without a region, which only a one-stage detector brings about.
    """
    scores = logits.mean(dim=(2, 3))
    if len(classes) == 0:
        return scores.sum()
    if kind == "softmax_ce":
        return F.cross_entropy(scores, classes)
    background = scores.shape[1] - 1
    rows = torch.arange(len(scores), device=scores.device)
    positive = classes < background
    negative = ~positive & (objects < background)
    bags = torch.where(positive, -scores[rows, classes], scores[rows, objects] * negative)
    return bags.mean()


class ShapeActivation(nn.Module):
    """Saliency to shape: encode, pass messages (Eq. 4), decode.

    Args:
        tower: the propagating tower, from RoI features to `tower_dim` channels.
        tower_dim: see there.
        latent_dim: channels that carry messages.
        channel_agnostic: one set of weights for all latent channels.
        steps: propagation steps, 0 for the larger side of the region.
        weight_norm: see :func:`psis_d2.ops.message_passing`.
        dilation: of encoder and decoder.
    """

    def __init__(
        self,
        tower: nn.Module,
        *,
        tower_dim: int,
        latent_dim: int,
        channel_agnostic: bool = False,
        steps: int = 0,
        weight_norm: str = "sigmoid_sum",
        dilation: int = 1,
    ):
        super().__init__()
        self.steps = steps
        self.weight_norm = weight_norm
        self.tower = tower
        weight_channels = 1 if channel_agnostic else latent_dim
        self.weights = Conv2d(tower_dim, weight_channels * _TAPS, kernel_size=1)
        weight_init.c2_xavier_fill(self.weights)
        self.encoder = plain_convs([1, latent_dim, latent_dim, latent_dim], dilation)
        self.decoder = plain_convs([latent_dim, latent_dim, latent_dim, 1], dilation)

    def forward(self, features: Tensor, saliency: Tensor) -> Tensor:
        """Shape activation logits.

        Args:
            features: float [R, C, P, P], RoI features.
            saliency: float [R, 1, P, P], logits of the region's class.

        Returns:
            float [R, 1, P, P].
        """
        weights = self.weights(self.tower(features))
        steps = self.steps or int(max(saliency.shape[-2:]))  # int: a tracer's sizes are tensors
        latent = message_passing(self.encoder(saliency), weights, steps, norm=self.weight_norm)
        return self.decoder(latent)


class ActivationEmbedding(nn.Module):
    """The released code's fusion: normalize the activation to [0, 1] and embed it.

    [R, 1, P, P] logits to [R, dim, P, P].
    """

    def __init__(self, dim: int, num_convs: int):
        super().__init__()
        self.convs = plain_convs([1] + [dim] * num_convs)

    def forward(self, activation: Tensor) -> Tensor:
        shape = activation.relu()
        return self.convs(shape / (shape.amax(dim=(2, 3), keepdim=True) + _MAX_EPS))


@ROI_MASK_HEAD_REGISTRY.register()
class ShapePropMaskHead(RegionMaskHead):
    """ShapeProp in front of a fully convolutional mask head.

    Args:
        input_shape: shape of the RoI features (channels, P, P).
        num_classes: number of foreground classes K.
        num_outputs: 1 for class-agnostic masks (the paper's), else K.
        conv_dim, num_convs, norm: the mask trunk, as in the fully convolutional head.
        latent_dim, channel_agnostic, steps, weight_norm: see :class:`ShapeActivation`.
        tower_dim, tower_convs, tower_norm, tower_dilation: both towers; the dilation is that of
            encoder and decoder, too.
        share_tower: whether they are one.
        predictor_init: see :class:`UpsamplePredictor`.
        hourglass: channels and blocks of an hourglass that is the mask trunk, see
            :func:`~psis_d2.modeling.hourglass.hourglass_trunk`; None: `num_convs` convolutions.
        activating_kind: see :func:`activating_loss`.
        fusion: "embed" or "concat".
        embed_dim, embed_convs: of fusion "embed".
        activating_weight, propagating_weight: weights of the two losses.
        **kwargs: see :class:`RegionMaskHead`.
    """

    needs = Needs(sampled=True)
    has_shape_prior = True

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        num_outputs: int,
        conv_dim: int,
        num_convs: int,
        norm: str,
        tower_dim: int,
        tower_convs: int,
        latent_dim: int,
        channel_agnostic: bool,
        steps: int,
        weight_norm: str,
        activating_kind: str,
        fusion: str,
        embed_dim: int,
        embed_convs: int,
        activating_weight: float,
        propagating_weight: float,
        tower_norm: str = "",
        tower_dilation: int = 1,
        share_tower: bool = False,
        predictor_init: str = "normal",
        hourglass: tuple[Sequence[int], Sequence[int]] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        channels = input_shape.channels
        self.activating_kind = activating_kind
        self.activating_weight = activating_weight
        self.propagating_weight = propagating_weight
        towers = (channels, tower_dim, tower_convs, tower_norm, tower_dilation)
        self.saliency_tower = conv_tower(*towers)
        self.saliency_classifier = Conv2d(tower_dim, num_classes + 1, kernel_size=1)
        weight_init.c2_xavier_fill(self.saliency_classifier)
        self.shape_activation = ShapeActivation(
            self.saliency_tower if share_tower else conv_tower(*towers),
            tower_dim=tower_dim,
            latent_dim=latent_dim,
            channel_agnostic=channel_agnostic,
            steps=steps,
            weight_norm=weight_norm,
            dilation=tower_dilation,
        )
        if fusion == "embed":
            self.embedding: nn.Module = ActivationEmbedding(embed_dim, embed_convs)
            prior_dim = embed_dim
        else:
            self.embedding = nn.Sigmoid()
            prior_dim = 1
        width = channels + prior_dim
        if hourglass is not None:
            self.trunk = hourglass_trunk(width, conv_dim, *hourglass, norm)
            width = hourglass[0][0]
        else:
            self.trunk = conv_tower(width, conv_dim, num_convs, norm)
            width = conv_dim if num_convs else width
        self.predictor = UpsamplePredictor(width, conv_dim, num_outputs, init=predictor_init)

    @classmethod
    def from_config(cls, cfg, input_shape):
        check_keys(cfg, "PSIS.SHAPEPROP")
        head, node = cfg.MODEL.ROI_MASK_HEAD, cfg.PSIS.SHAPEPROP
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        deep = node.TRUNK == "hourglass"
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "num_classes": num_classes,
            "num_outputs": 1 if head.CLS_AGNOSTIC_MASK else num_classes,
            "conv_dim": head.CONV_DIM,
            "num_convs": 0 if deep else head.NUM_CONV,
            "hourglass": (cfg.PSIS.HOURGLASS.CHANNELS, cfg.PSIS.HOURGLASS.BLOCKS) if deep else None,
            "norm": head.NORM,
            "tower_dim": node.TOWER_DIM,
            "tower_convs": node.TOWER_CONVS,
            "latent_dim": node.LATENT_DIM,
            "channel_agnostic": node.CHANNEL_AGNOSTIC,
            "steps": node.STEPS,
            "weight_norm": node.WEIGHT_NORM,
            "activating_kind": node.ACTIVATING_LOSS,
            "fusion": node.FUSION,
            "embed_dim": node.EMBED_DIM,
            "embed_convs": node.EMBED_CONVS,
            "activating_weight": node.ACTIVATING_WEIGHT,
            "propagating_weight": node.PROPAGATING_WEIGHT,
            "tower_norm": "GN" if node.USE_GN else "",
            "tower_dilation": node.DILATION,
            "share_tower": node.SHARE_FEATURE,
            "predictor_init": node.PREDICTOR_INIT,
        }

    def own_saliency(self, tower: Tensor, classes: Tensor) -> Tensor:
        """Saliency logits of each region's own class.

        The classifier's rows of these classes alone meet the maps: its logits of all classes are
        gigabytes where there are thousands.

        Args:
            tower: float [R, tower_dim, P, P], of the saliency tower.
            classes: int64 [R] in [0, K].

        Returns:
            float [R, 1, P, P].
        """
        weight, bias = self.saliency_classifier.weight, self.saliency_classifier.bias
        logits = torch.einsum("rc,rchw->rhw", weight.flatten(1)[classes], tower)
        return (logits + bias[classes, None, None])[:, None]

    def mean_saliency(self, tower: Tensor) -> Tensor:
        """Saliency logits of every class, averaged over a region; background last.

        The mean of the logits is the logit of the mean: the classifier is linear.

        Args:
            tower: float [S, tower_dim, P, P], of the saliency tower.

        Returns:
            float [S, K + 1, 1, 1].
        """
        return self.saliency_classifier(tower.mean(dim=(2, 3), keepdim=True))

    def saliency(self, context: RegionContext) -> Tensor:
        """Saliency logits [R, 1, P, P] of each region's class."""
        return self.own_saliency(self.saliency_tower(context.features), context.classes)

    def activate_shapes(self, context: RegionContext, saliency: Tensor) -> Tensor:
        """Shape activation logits [R, 1, P, P] from the saliency [R, 1, P, P]."""
        return self.shape_activation(context.features, saliency)

    def fuse(self, context: RegionContext, activation: Tensor) -> Tensor:
        """Mask logits [R, num_outputs, 2P, 2P] from RoI features and shape activation."""
        x = self.regularize(context.features)
        return self.predictor(self.trunk(torch.cat([x, self.embedding(activation)], dim=1)))

    def predict(self, context: RegionContext) -> Tensor:
        """Mask logits [R, num_outputs, 2P, 2P]."""
        return self.fuse(context, self.activate_shapes(context, self.saliency(context)))

    def heat_maps(self, context: RegionContext) -> dict[str, Tensor]:
        """Saliency of the region's class and shape activation (Fig. 8), [R, P, P] from 0 to 1."""
        saliency = self.saliency(context)
        activation = self.activate_shapes(context, saliency)
        return {
            "saliency": saliency[:, 0].sigmoid(),
            "shape activation": activation[:, 0].sigmoid(),
        }

    def losses(self, context: RegionContext) -> dict[str, Tensor]:
        """``loss_activating``, ``loss_propagating`` and ``loss_mask``."""
        sampled = context.sampled
        tower = self.saliency_tower(sampled.features)
        scores = self.mean_saliency(tower)
        losses = {
            "loss_activating": self.activating_weight
            * activating_loss(scores, sampled.classes, self.activating_kind, sampled.objects)
        }
        if len(context) == 0:
            losses["loss_propagating"] = zero_loss(self.shape_activation)
            losses["loss_mask"] = zero_loss(self) + self.take_part(context)
            return losses

        if sampled.rows is None:
            saliency = self.saliency(context)
        else:
            saliency = self.own_saliency(tower[sampled.rows], context.classes)
        activation = self.activate_shapes(context, saliency)
        targets = context.mask_targets(activation.shape[-1])
        losses["loss_propagating"] = self.propagating_weight * weighted_bce(
            activation[:, 0], targets, context.mask_weights
        )
        losses["loss_mask"] = self.mask_loss(context, self.fuse(context, activation))
        return losses
