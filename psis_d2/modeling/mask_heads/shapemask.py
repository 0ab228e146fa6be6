"""ShapeMask: from a box to a shape to a mask (Kuo et al., ICCV 2019).

Three steps on a crop of features around the box (paper sec. 3):

1. *Shape estimation*: features pooled inside the box weigh a collection of shape priors; their
   blend, fitted into the box, is the *detection prior* (Eq. 1 to 3).
2. *Coarse mask*: the detection prior joins the features, a few convolutions decode a mask (Eq. 4
   to 6).
3. *Fine mask*: the mean feature inside the coarse mask, the *instance embedding*, is subtracted
   from all features, and a finer mask is decoded from what is left (Eq. 7 to 9).

The crop is wider than the box, so a mask may reach outside of a box that is too small. Where paper
and released code differ, :mod:`psis_d2.config` has both.

Legend: R regions, C channels, P side of the crop, K priors.
"""

import math
import os
from dataclasses import replace

from psis_d2.config_rules import check_keys
from psis_d2.data.shape_priors import (
    SIDE,
    load_shape_priors,
    num_priors,
    prepare_shape_priors,
    priors_path,
)
from psis_d2.errors import UserError
from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.losses import select_class, zero_loss
from psis_d2.modeling.mask_heads.base import Needs, RegionMaskHead
from psis_d2.modeling.mask_heads.blocks import conv_tower
from psis_d2.ops import shape_prior_blend

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ConvTranspose2d, ShapeSpec, cat
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.structures import Boxes
from torch import Tensor, nn


def outer_boxes(boxes: Boxes, scale: float, image_size: tuple[int, int]) -> Boxes:
    """Boxes enlarged about their centers and clipped (released code).

    Args:
        boxes: N boxes, XYXY pixels.
        scale: factor of both sides.
        image_size: (height, width) that the result is clipped to.
    """
    center = boxes.get_centers().repeat(1, 2)
    enlarged = Boxes(center + (boxes.tensor - center) * scale)
    enlarged.clip(image_size)
    return enlarged


def fixed_crops(boxes: Boxes, cells: int, levels: tuple[int, int]) -> Boxes:
    """Squares of as many feature cells around boxes, aligned with the cells (paper sec. 4).

    The level is that of Eq. 10, with L = cells * 2^m: the finest on which the box fits. A square
    is pooled from the map of its level without interpolation.

    Args:
        boxes: N boxes, XYXY pixels.
        cells: side of the crop.
        levels: least and largest level; cells of level k are 2^k pixels wide.

    Returns:
        N squares, possibly outside of the image.
    """
    sides = (boxes.tensor[:, 2:] - boxes.tensor[:, :2]).amax(dim=1)
    level = (sides / cells).log2().ceil().clamp(*levels)
    cell = torch.exp2(level)[:, None]
    corner = (boxes.get_centers() / cell - cells / 2).round() * cell
    return Boxes(torch.cat([corner, corner + cells * cell], dim=1))


def masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    """Mean feature inside a mask (Eq. 7).

    Args:
        features: float [R, C, P, P].
        mask: float [R, 1, P, P] of 0 and 1.

    Returns:
        float [R, C, 1, 1]; zeros where the mask is empty.
    """
    total = (features * mask).sum(dim=(2, 3), keepdim=True)
    return total / mask.sum(dim=(2, 3), keepdim=True).clamp(min=1)


class ShapeEstimation(nn.Module):
    """Weighs the shape priors by a feature of the box (Eq. 1 and 2).

    Args:
        channels: C.
        priors: float [K, side, side], or class-specific [classes, K, side, side].
        pooling: divide the sum inside the box by the cells of the "crop" or of the "box".
    """

    def __init__(self, channels: int, priors: Tensor, pooling: str = "crop"):
        super().__init__()
        self.pooling = pooling
        self.register_buffer("priors", priors)
        self.weights = nn.Linear(channels, priors[..., 0, 0].numel())
        nn.init.normal_(self.weights.weight, std=0.01)
        nn.init.zeros_(self.weights.bias)

    def forward(self, features: Tensor, indicator: Tensor, classes: Tensor) -> Tensor:
        """Prior logits.

        Args:
            features: float [R, C, P, P].
            indicator: float [R, 1, P, P], how much of a cell lies in the box.
            classes: int64 [R], of no meaning for class-agnostic priors.

        Returns:
            float [R, K].
        """
        embedding = (features * indicator).sum(dim=(2, 3))
        if self.pooling == "box":
            # A box much smaller than a cell may lie between the cells' centers.
            embedding = embedding / indicator.sum(dim=(2, 3)).clamp(min=1e-6)
        else:
            embedding = embedding / (features.shape[2] * features.shape[3])
        logits = self.weights(embedding)
        if self.priors.dim() == 3:
            return logits
        rows = torch.arange(len(logits), device=logits.device)
        return logits.unflatten(1, self.priors.shape[:2])[rows, classes]


@ROI_MASK_HEAD_REGISTRY.register()
class ShapeMaskHead(RegionMaskHead):
    """Shape estimation, coarse mask, fine mask.

    The priors are a buffer, so a checkpoint brings its own.

    Args:
        input_shape: shape of the RoI features (channels, P, P).
        num_outputs: masks of a region: 1, or the number of classes.
        conv_dim: width of every layer (paper: 128; light-weight 64, 32, 16).
        num_convs, norm: of each of the two decoders.
        priors: see :class:`ShapeEstimation`; None for a uniform box in place of the blend.
        priors_file: where training should have found them, None if it has.
        instance_embedding: center the features of the fine mask.
        crop: "outer_box" or "fixed".
        sample_offset: see :func:`psis_d2.ops.shape_prior_blend`; of mask targets, too.
        embedding_init: how the embeddings of prior and coarse mask start, "glorot" or "fan_in".
        outer_box_scale: see :func:`outer_boxes`.
        levels: see :func:`fixed_crops`.
        box_pooling: see :class:`ShapeEstimation`.
        fine_features: "crop" or "prior", what the fine mask starts from.
        add_coarse_mask: add the embedded coarse mask to it.
        upsampling: side of the fine mask in P.
        initial_prob: probability that both masks start from.
        loss_normalizer: "foreground" or "cells".
        prior_weight, coarse_weight: loss weights; that of the fine mask is ``loss_weight``.
        **kwargs: see :class:`RegionMaskHead`.
    """

    has_shape_prior = True
    uses_mask_loss = False
    needs = Needs(wide_frames=True)

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_outputs: int,
        conv_dim: int,
        num_convs: int,
        norm: str,
        priors: Tensor | None,
        priors_file: str | None = None,
        instance_embedding: bool = True,
        crop: str = "outer_box",
        outer_box_scale: float = 1.25,
        levels: tuple[int, int] = (3, 5),
        sample_offset: float = 0.5,
        embedding_init: str = "glorot",
        box_pooling: str = "crop",
        fine_features: str = "crop",
        add_coarse_mask: bool = True,
        upsampling: int = 4,
        initial_prob: float = 0.01,
        loss_normalizer: str = "foreground",
        prior_weight: float = 0.1,
        coarse_weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.side = input_shape.width
        self.instance_embedding = instance_embedding
        self.crop, self.outer_box_scale, self.levels = crop, outer_box_scale, levels
        if crop == "fixed":
            # a cell of P4 is 16 pixels wide
            self.needs = replace(self.needs, canonical_frame=self.side * 16)
        self.sample_offset = sample_offset
        self.fine_features = fine_features
        self.loss_normalizer = loss_normalizer
        self.prior_weight, self.coarse_weight = prior_weight, coarse_weight
        self.missing_priors = priors_file

        self.reduce = Conv2d(input_shape.channels, conv_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.reduce)
        self.shape = None if priors is None else ShapeEstimation(conv_dim, priors, box_pooling)
        self.embed_prior = _embedding(conv_dim, embedding_init)
        self.coarse_trunk = conv_tower(conv_dim, conv_dim, num_convs, norm)
        self.coarse_predictor = _predictor(conv_dim, num_outputs, initial_prob)
        self.embed_coarse = _embedding(conv_dim, embedding_init) if add_coarse_mask else None
        self.trunk = conv_tower(conv_dim, conv_dim, num_convs, norm)
        self.predictor = UpsampleThenPredict(conv_dim, num_outputs, upsampling, initial_prob)

    @classmethod
    def from_config(cls, cfg, input_shape):
        check_keys(cfg, "PSIS.SHAPEMASK")
        head, node = cfg.MODEL.ROI_MASK_HEAD, cfg.PSIS.SHAPEMASK
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        priors, missing = _priors_of(cfg) if node.SHAPE_PRIOR else (None, None)
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "num_outputs": 1 if head.CLS_AGNOSTIC_MASK else num_classes,
            "conv_dim": head.CONV_DIM,
            "num_convs": head.NUM_CONV,
            "norm": head.NORM,
            "priors": priors,
            "priors_file": missing,
            "instance_embedding": node.INSTANCE_EMBEDDING,
            "crop": node.CROP,
            "outer_box_scale": node.OUTER_BOX_SCALE,
            "levels": _levels_of(cfg.MODEL.ROI_HEADS.IN_FEATURES),
            "sample_offset": node.SAMPLE_OFFSET,
            "embedding_init": node.EMBEDDING_INIT,
            "box_pooling": node.BOX_POOLING,
            "fine_features": node.FINE_FEATURES,
            "add_coarse_mask": node.ADD_COARSE_MASK,
            "upsampling": node.UPSAMPLING,
            "initial_prob": node.INITIAL_PROB,
            "loss_normalizer": node.LOSS_NORMALIZER,
            "prior_weight": node.PRIOR_WEIGHT,
            "coarse_weight": node.COARSE_WEIGHT,
            "loss_weight": node.FINE_WEIGHT,
        }

    @classmethod
    def prepare(cls, cfg):
        """Cluster the masks that training may see to shape priors."""
        if cfg.PSIS.SHAPEMASK.SHAPE_PRIOR:
            prepare_shape_priors(cfg)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        if f"{prefix}shape.priors" in state_dict:
            self.missing_priors = None

    def frames(self, boxes: Boxes, image_size: tuple[int, int]) -> Boxes:
        """The crops around boxes, see :class:`RegionMaskHead`."""
        if self.crop == "outer_box":
            return outer_boxes(boxes, self.outer_box_scale, image_size)
        return fixed_crops(boxes, self.side, self.levels)

    def detection_prior(self, context: RegionContext, features: Tensor) -> Tensor:
        """Where in its crop an object is supposed to be, float [R, P, P] in [0, 1].

        Args:
            context: the regions.
            features: float [R, C, P, P], reduced.
        """
        boxes, frames = (
            cat([x.tensor for x in rectangles]) for rectangles in (context.boxes, context.frames)
        )
        size, offset = (self.side, self.side), self.sample_offset
        # A prior of ones that fills the box; there is nothing to weigh.
        one = features.new_ones(1, self.side, self.side)
        nothing = features.new_zeros(len(boxes), 1)
        indicator = shape_prior_blend(nothing, one, boxes, frames, size, None, offset)
        if self.shape is None:
            return indicator
        classes = context.classes
        logits = self.shape(features, indicator.unsqueeze(1), classes)
        priors = self.shape.priors.to(logits.dtype)
        rows = classes if priors.dim() == 4 else None
        return shape_prior_blend(logits, priors, boxes, frames, size, rows, offset)

    def masks(self, context: RegionContext) -> tuple[Tensor, Tensor, Tensor]:
        """The three masks of R > 0 regions.

        Returns:
            The detection prior [R, P, P]; coarse logits [R, num_outputs, P, P]; fine logits
            [R, num_outputs, upsampling * P, upsampling * P].
        """
        features = self.reduce(context.features)
        prior = self.detection_prior(context, features)
        features = self.regularize(features)
        conditioned = features + self.embed_prior(prior.unsqueeze(1))
        coarse = self.coarse_predictor(self.coarse_trunk(conditioned))

        x = conditioned if self.fine_features == "prior" else features
        probability = select_class(coarse, context.classes).sigmoid().unsqueeze(1)
        if self.instance_embedding:
            x = x - masked_mean(x, (probability > 0.5).to(x.dtype))
        if self.embed_coarse is not None:
            x = x + self.embed_coarse(probability)
        return prior, coarse, self.predictor(self.trunk(x))

    def predict(self, context: RegionContext) -> Tensor:
        """Logits of the fine mask."""
        return self.masks(context)[2]

    def losses(self, context: RegionContext) -> dict[str, Tensor]:
        """``loss_prior``, ``loss_coarse`` and ``loss_mask``, over mask-annotated regions."""
        if self.missing_priors is not None:
            raise UserError(
                f"The shape priors {self.missing_priors} do not exist; make them with "
                "psis-d2 make-shape-priors and name them as PSIS.SHAPEMASK.PRIORS, or start "
                "training with psis-d2 train, which makes them."
            )
        names = ["loss_coarse", "loss_mask"] + ["loss_prior"] * (self.shape is not None)
        if len(context) == 0:
            losses = {name: zero_loss(self) for name in names}
            return losses | {"loss_mask": losses["loss_mask"] + self.take_part(context)}
        prior, coarse, fine = self.masks(context)
        targets = self.mask_targets(context, self.side)
        losses = {
            "loss_coarse": self.coarse_weight * self._cross_entropy(context, coarse, targets),
            "loss_mask": self.loss_weight
            * self._cross_entropy(context, fine, self.mask_targets(context, fine.shape[-1])),
        }
        if self.shape is not None:
            squares = (prior.to(targets.dtype) - targets) ** 2
            # The released code's half goes with its sum over cells, the paper's mean has none.
            half = 0.5 if self.loss_normalizer == "foreground" else 1.0
            losses["loss_prior"] = (
                self.prior_weight * half * self._average(context, squares, targets)
            )
        return losses

    def mask_targets(self, context: RegionContext, side: int) -> Tensor:
        """The context's mask targets, float32 [R, side, side], where ``sample_offset`` has them.

        A target is the mask around the center of its cell; another offset moves the cells.
        """
        if self.sample_offset == 0.5:
            return context.mask_targets(side)
        moved = []
        for frames in (x.tensor for x in context.frames):
            cells = (frames[:, 2:] - frames[:, :2]) / side
            moved.append(Boxes(frames + ((self.sample_offset - 0.5) * cells).repeat(1, 2)))
        return replace(context, wide_frames=moved).mask_targets(side)

    def _cross_entropy(self, context: RegionContext, logits: Tensor, targets: Tensor) -> Tensor:
        logits = select_class(logits, context.classes).to(targets.dtype)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return self._average(context, losses, targets)

    def _average(self, context: RegionContext, losses: Tensor, targets: Tensor) -> Tensor:
        """Losses [R, M, M] as one number; only regions with a mask are among them."""
        if context.mask_weights is not None:
            losses = losses * context.mask_weights[:, None, None]
        if self.loss_normalizer == "cells":
            return losses.mean()
        return losses.sum() / targets.sum().clamp(min=1)


def _embedding(conv_dim: int, init: str) -> Conv2d:
    """A map of one channel to the width of the features."""
    conv = Conv2d(1, conv_dim, kernel_size=1)
    if init == "glorot":
        nn.init.xavier_uniform_(conv.weight)
        nn.init.zeros_(conv.bias)
    else:
        weight_init.c2_xavier_fill(conv)  # by the fan-in, which is 1
    return conv


class UpsampleThenPredict(nn.Sequential):
    """Transposed convolution and 1x1 predictor with nothing between, as ShapeMask is released.

    Two linear layers are one: the predictor is applied to the weights of the upsampling instead of
    its result, so that no map of ``conv_dim`` channels is ever as large as the masks.

    Args:
        conv_dim: channels of the input.
        num_outputs: channels of the logits.
        factor: times by which the side grows.
        initial_prob: probability that the logits start from.
    """

    def __init__(self, conv_dim: int, num_outputs: int, factor: int, initial_prob: float):
        upsample = ConvTranspose2d(conv_dim, conv_dim, kernel_size=factor, stride=factor)
        weight_init.c2_msra_fill(upsample)
        super().__init__(upsample, _predictor(conv_dim, num_outputs, initial_prob))

    def forward(self, x: Tensor) -> Tensor:
        """Features [R, conv_dim, P, P] to logits [R, num_outputs, factor * P, factor * P]."""
        upsample, predictor = self
        mix = predictor.weight.flatten(1)  # [num_outputs, conv_dim]
        weight = torch.einsum("om,imhw->iohw", mix, upsample.weight)
        bias = mix @ upsample.bias + predictor.bias
        return F.conv_transpose2d(x, weight, bias, stride=upsample.stride)


def _predictor(conv_dim: int, num_outputs: int, initial_prob: float) -> Conv2d:
    predictor = Conv2d(conv_dim, num_outputs, kernel_size=1)
    nn.init.normal_(predictor.weight, std=0.01)
    nn.init.constant_(predictor.bias, math.log(initial_prob / (1 - initial_prob)))
    return predictor


def _levels_of(names: list[str]) -> tuple[int, int]:
    levels = [int(name[1:]) for name in names if name[1:].isdecimal()]
    if len(levels) != len(names):
        raise UserError(
            f"MODEL.ROI_HEADS.IN_FEATURES is {list(names)}; ShapeMask crops from the levels of a "
            "feature pyramid, such as [p3, p4, p5]."
        )
    return min(levels), max(levels)


def _priors_of(cfg) -> tuple[Tensor, str | None]:
    """The priors, and the file that they could not be read from.

    A trained model has them in its checkpoint, so that the file may be gone; zeros keep its place.
    """
    path, k = priors_path(cfg), num_priors(cfg)
    num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    agnostic = cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK
    wanted = (k,) if agnostic else (num_classes, k)
    if not os.path.isfile(path):
        return torch.zeros(*wanted, SIDE, SIDE), path
    priors = torch.from_numpy(load_shape_priors(path).priors)
    if priors.shape[:-2] != wanted:
        raise UserError(
            f"The shape priors {path} are {list(priors.shape[:-2])}, but this config needs "
            f"{list(wanted)} (categories if MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK is False, and "
            "PSIS.SHAPEMASK.NUM_PRIORS); make them with this config."
        )
    return priors, None
