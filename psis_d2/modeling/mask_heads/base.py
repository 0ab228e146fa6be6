"""The contract of a RoI mask head, and the pieces that every head shares.

A method subclasses :class:`RegionMaskHead`, registers itself in Detectron2's
``ROI_MASK_HEAD_REGISTRY`` and lives in one file of this folder.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from psis_d2.errors import UserError
from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.framed_masks import FramedMasks
from psis_d2.modeling.losses import boundary_bce, mask_bce, select_class, zero_loss
from psis_d2.modeling.rows import rows_where
from psis_d2.modeling.weak_losses import WeakLoss, weak_losses_of

import torch
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import Tensor, nn


@dataclass(frozen=True)
class Needs:
    """What a mask head asks the ROI heads for, beside its regions and their features.

    ``a | b`` is what a head that is made of two others needs: all that either of them asks for.
    Both get the same features, those of the frames that `a` has.
    """

    sampled: bool = False
    """Training: the pooled features of all sampled proposals, background included."""
    images: bool = False
    """Training: the images."""
    box_predictor: bool = False
    """``RegionContext.box_predictor``, which one-stage detectors lack."""
    box_features: bool = False
    """``RegionContext.box_features``; the box head has to have feature maps."""
    wide_frames: bool = False
    """Features and masks cover the head's ``frames()`` instead of the regions' boxes."""
    canonical_frame: int = 224
    """Side in pixels of the smallest frame that is pooled from P4: one of half the side is pooled
    from P3, and so on (Lin et al., "Feature Pyramid Networks", CVPR 2017, Eq. 1)."""

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            sampled=self.sampled or other.sampled,
            images=self.images or other.images,
            box_predictor=self.box_predictor or other.box_predictor,
            box_features=self.box_features or other.box_features,
            wide_frames=self.wide_frames,
            canonical_frame=self.canonical_frame,
        )


class RegionRegularizer(nn.Module):
    """Noise on the RoI features that enter a mask head's trunk, in training only.

    Args:
        channel_dropout: probability of zeroing a channel of a region (the rest is scaled up).
        feature_drop: probability of zeroing all features of a region, unscaled: what is left to
            the head is its shape prior.
    """

    def __init__(self, channel_dropout: float = 0.0, feature_drop: float = 0.0):
        super().__init__()
        self.channel_dropout = nn.Dropout2d(channel_dropout)
        self.feature_drop = feature_drop

    def forward(self, x: Tensor) -> Tensor:
        """float [R, C, P, P] to the same shape."""
        x = self.channel_dropout(x)
        if self.training and self.feature_drop > 0:
            keep = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.feature_drop
            x = x * keep
        return x


class RegionMaskHead(nn.Module, ABC):
    """Base of all RoI mask heads: from a :class:`RegionContext` to mask logits and losses.

    Subclasses define :meth:`predict`; those with further losses extend :meth:`losses`. No loss can
    read a mask that training may not see: :meth:`mask_loss` leaves regions without a mask out, and
    :meth:`RegionContext.mask_targets` refuses them. Every loss on masks multiplies each region's by
    its :attr:`RegionContext.mask_weights`, if there are some, and averages over the regions with a
    mask as if there were none.
    """

    trains_on: ClassVar[str] = "annotated"
    """Regions that :meth:`losses` is given: "annotated", foreground with a mask; "foreground", all
    foreground, for a head that has a use for features without a mask."""
    needs: Needs = Needs()
    """What the head asks the ROI heads for; of the class, or of one that knows it when built."""
    reads_classes: bool = True
    """Whether the masks of given boxes depend on their classes; a head that does not ask for them
    draws objects of categories that it was not built for, too."""
    has_shape_prior: ClassVar[bool] = False
    """Whether the head knows anything of a region's shape beside its RoI features."""
    uses_mask_loss: ClassVar[bool] = True
    """Whether the masks are learned by :meth:`mask_loss`."""
    can_fuse_mlp: ClassVar[bool] = False
    """Whether the head adds an MLP's logits where ``PSIS.MLP_BRANCH`` asks for it."""

    def __init__(
        self,
        *,
        loss_weight: float = 1.0,
        channel_dropout: float = 0.0,
        feature_drop: float = 0.0,
        contour_weight: float = 0.0,
        weak: tuple[WeakLoss, ...] = (),
    ):
        super().__init__()
        if feature_drop > 0 and not self.has_shape_prior:
            raise UserError(
                f"PSIS.ROI_FEATURE_DROP is {feature_drop}, but {type(self).__name__} has no shape "
                "prior to fall back on; set it to 0 or use a mask head with a shape prior."
            )
        if contour_weight > 0 and not self.uses_mask_loss:
            raise UserError(
                f"PSIS.BOUNDARY_WEIGHT is {contour_weight}, but {type(self).__name__} has a mask "
                "loss of its own, without that of contours; set it to 0."
            )
        self.loss_weight = loss_weight
        self.contour_weight = contour_weight
        self.weak = weak
        self.regularize = RegionRegularizer(channel_dropout, feature_drop)

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        """Arguments that every head takes from a config."""
        if cfg.PSIS.MLP_BRANCH and not cls.can_fuse_mlp:
            raise UserError(
                f"PSIS.MLP_BRANCH is True, but {cls.__name__} has no place for it; set it to False "
                "or use FCNMaskHead or MaskXMaskHead."
            )
        return {
            "channel_dropout": cfg.PSIS.ROI_CHANNEL_DROPOUT,
            "feature_drop": cfg.PSIS.ROI_FEATURE_DROP,
            "contour_weight": cfg.PSIS.BOUNDARY_WEIGHT,
            "weak": weak_losses_of(cfg),
        }

    @property
    def wants_all(self) -> bool:
        """Whether training is to bring all foreground: the head has a use for it, or its losses of
        regions without a mask have."""
        return bool(self.weak) or self.trains_on == "foreground"

    @property
    def wants_images(self) -> bool:
        """Whether training is to bring the images, for the head or its losses."""
        return self.needs.images or any(loss.reads_images for loss in self.weak)

    @classmethod
    def prepare(cls, cfg) -> None:
        """Make the files that training a head of `cfg` needs, unless they are there; nothing here.

        Called once, before processes start and models are built; see :func:`prepare_mask_head`.

        Args:
            cfg: the config that the head will be built from.
        """

    def frames(self, boxes: Boxes, image_size: tuple[int, int]) -> Boxes:
        """What the features and masks of boxes cover, for heads with ``needs.wide_frames``.

        Args:
            boxes: N boxes of an image, XYXY pixels of the input.
            image_size: (height, width) of the input.

        Returns:
            N rectangles, not necessarily inside the image.
        """
        return boxes

    @abstractmethod
    def predict(self, context: RegionContext) -> Tensor:
        """Mask logits of the context's regions, float [R, K, M, M].

        With K = 1 a region has one mask, be it class-agnostic or of the region's own class; else
        there is one for each of the K classes.
        """

    def predict_all(self, context: RegionContext) -> Tensor:
        """Mask logits of every class, float [R, K, M, M]; of a head that predicts those of one
        class a region, by whatever it has them from, [R, 1, M, M]."""
        return self.predict(context)

    def heat_maps(self, context: RegionContext) -> dict[str, Tensor]:
        """What the head saw on its way to the masks, for pictures; nothing by default.

        Called at test time with R > 0.

        Returns:
            Name -> float [R, S, S], a map over each region's box, S as it likes.
        """
        return {}

    def losses(self, context: RegionContext) -> dict[str, Tensor]:
        """Losses by name: ``loss_mask``, see :meth:`mask_loss`. R may be 0."""
        if len(context) == 0:
            return {"loss_mask": zero_loss(self) + self.take_part(context)}
        logits = self.predict(context)
        return {"loss_mask": self.mask_loss(context, logits)}

    def weak_losses(self, context: RegionContext) -> dict[str, Tensor]:
        """What regions without a mask say by their boxes and points, see :class:`WeakLoss`.

        These regions pass the head by themselves, after those that :meth:`losses` is given, so that
        a head need not know of them.

        Args:
            context: R >= 0 regions, those with a mask among them.

        Returns:
            The losses by name; a zero that is connected to all parameters where no region has one.
        """
        if not self.weak:
            return {}
        losses = {name: zero_loss(self) for loss in self.weak for name in loss.names}
        others = context.maskless
        wanted = torch.stack([loss.wants(others) for loss in self.weak]).cpu()  # one wait for all
        some = wanted.any(dim=0)
        others = others.select(some)
        if len(others) == 0:
            losses[self.weak[0].names[0]] += self.take_part(others)
            return losses
        logits = select_class(self.predict(others), others.classes).float()
        for loss, keep in zip(self.weak, wanted[:, some], strict=True):
            if keep.any():
                ((rows,),) = rows_where([keep], device=logits.device)
                losses |= loss(others.select(keep), logits[rows])
        return losses

    def take_part(self, context: RegionContext) -> Tensor | float:
        """A zero that comes of R = 0 regions, for norms that synchronize processes.

        Such a norm waits, forward and backward, for every process, also for one that has no region
        this time. Where there is none, nothing is computed.
        """
        shares = comm.get_world_size() > 1 and self.training
        if not shares or not any(isinstance(m, NaiveSyncBatchNorm) for m in self.modules()):
            return 0.0
        return self.predict(context).sum()

    def mask_loss(
        self, context: RegionContext, logits: Tensor, targets: Tensor | None = None
    ) -> Tensor:
        """The weighted mask loss, averaged over the regions with a mask.

        Args:
            context: R > 0 regions.
            logits: float [R, K, M, M].
            targets: float [A, M, M], ``context.annotated.mask_targets(M)``, for a head that has it
                already.

        Returns:
            float scalar, connected to all parameters of the head if no region has a mask.
        """
        annotated = context.annotated
        if len(annotated) == 0:
            return zero_loss(self) + logits[:0].sum()  # norms may wait for its gradient
        if annotated is not context:
            logits = logits[context.annotated_rows]
        if targets is None:
            targets = annotated.mask_targets(logits.shape[-1])
        classes, weights = annotated.classes, annotated.mask_weights
        loss = mask_bce(logits, targets, classes, weights)
        if self.contour_weight > 0:
            own = select_class(logits, classes)
            loss = loss + self.contour_weight * boundary_bce(own, targets, weights)
        return self.loss_weight * loss

    def forward(self, context: RegionContext) -> dict[str, Tensor] | list[Instances]:
        """Losses in training; else the regions with ``pred_masks``, [R, 1, M, M] in [0, 1].

        Masks of wide frames are :class:`~psis_d2.modeling.framed_masks.FramedMasks`.
        """
        if self.training:
            own = context if self.trains_on == "foreground" else context.annotated
            return self.losses(own) | self.weak_losses(context)
        # Detectron2 pastes an empty tensor as it is, whatever the size of its empty masks.
        logits = self.predict(context) if len(context) else context.features.new_zeros(0, 1, 1, 1)
        mask_rcnn_inference(logits, context.regions)
        if self.needs.wide_frames:
            for regions, frames in zip(context.regions, context.frames, strict=True):
                masks = regions.pred_masks[:, 0]
                regions.pred_masks = FramedMasks(masks, frames.tensor, regions.image_size)
        return context.regions


def prepare_mask_head(cfg) -> None:
    """Let the mask head that a config names make the files that its training needs.

    Args:
        cfg: the config; ``MODEL.ROI_MASK_HEAD.NAME`` may be a head of Detectron2's, too.
    """
    name = cfg.MODEL.ROI_MASK_HEAD.NAME
    kind = ROI_MASK_HEAD_REGISTRY.get(name) if cfg.MODEL.MASK_ON and name else None
    if isinstance(kind, type) and issubclass(kind, RegionMaskHead):
        kind.prepare(cfg)
