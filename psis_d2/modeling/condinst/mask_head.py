"""Masks from dynamic filters: what they are made of, and what they are trained on.

CondInst (Tian et al., ECCV 2020) learns from true masks, BoxInst (Tian et al., CVPR 2021) from
boxes; "mixed" takes for every instance what there is.

Legend: n instances, B images, H x W cells of the masks' grid.
"""

from collections import defaultdict
from dataclasses import dataclass, replace

from psis_d2.config_rules import check_keys
from psis_d2.errors import UserError
from psis_d2.modeling import released_grids
from psis_d2.modeling.box_supervision import cell_indicators, pairwise_loss, projection_loss
from psis_d2.modeling.condinst.box_grids import paste_into_boxes, pool_from_boxes
from psis_d2.modeling.condinst.dynamic_filters import (
    Controller,
    DynamicLayers,
    Queries,
    dynamic_logits,
    gather_patches,
)
from psis_d2.modeling.condinst.mask_branch import MaskBranch
from psis_d2.modeling.condinst.monitor import BoxMaskMonitor
from psis_d2.modeling.losses import dice_loss, zero_loss
from psis_d2.modeling.pseudo_masks import PseudoMasks

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LOSSES = {
    "masks": ("loss_mask",),
    "boxes": ("loss_projection", "loss_pairwise"),
    "mixed": ("loss_mask", "loss_projection", "loss_pairwise"),
}


@dataclass(frozen=True)
class MaskTargets:
    """What is known of the masks of n instances."""

    cells: Tensor
    """int64 [n, 4], their boxes, see :func:`~psis_d2.modeling.box_supervision.box_cells`."""
    has_mask: Tensor
    """bool [n], whether there is a mask to learn from, true or foreign; those without learn from
    boxes."""
    truth_rows: Tensor
    """int64 [n], which of `truth` it is; of no meaning without one."""
    truth: Tensor
    """float [T, H, W] in [0, 1], the masks of the batch's objects that have one."""
    seen: Tensor
    """bool [B, H, W], what they cover in each image."""
    similar: Tensor | None
    """bool [B, 4, H, W], see :func:`~psis_d2.modeling.box_supervision.similar_neighbors`; None
    without losses on boxes."""
    colors: Tensor | None = None
    """float [n, 3, S, S], the image in each box, in gray levels but for a constant; None without a
    CRF."""
    weights: Tensor | None = None
    """float [n], factors of the losses on the masks, 1 for true ones; None if all are true."""

    def part(self, item) -> "MaskTargets":
        """The targets of some of the instances."""
        return replace(
            self,
            cells=self.cells[item],
            has_mask=self.has_mask[item],
            truth_rows=self.truth_rows[item],
            colors=None if self.colors is None else self.colors[item],
            weights=None if self.weights is None else self.weights[item],
        )

    def mask_losses(self, losses: Tensor, rows: Tensor) -> Tensor:
        """Losses [m] of the instances `rows`, int64 [m], on their masks, times their weights."""
        return losses if self.weights is None else losses * self.weights[rows]


class DynamicMaskHead(nn.Module):
    """Mask branch, controller and, if there is one, the student's controller.

    Losses are sums over instances, made of a few instances at a time: only these have masks in
    memory, which are computed again for the gradient.

    **The student** (Teacher-Student mask heads) reads the same mask features and the same tower
    through a controller of its own, whose last layer has an output for each class. That is what the
    paper's class-specific head is to a RoI head: own convolutions on shared features, and a last
    layer of as many kernels as classes, of which the instance's class chooses one. It learns from
    true masks and, where there are none, from the teacher's, by CondInst's loss; the teacher does
    not learn from it. A CRF sees each box in the same number of cells, whatever its size, as it
    does beside RoI heads. At test time the student is alone.

    Args:
        input_shape: of the mask branch's feature maps, from high to low resolution.
        tower_dim: channels of the detector's box tower.
        supervision: "masks", "boxes" or "mixed".
        channels, branch_dim, branch_convs, branch_norm, branch_init: see :class:`MaskBranch`.
        released_grids: see :mod:`psis_d2.modeling.released_grids`.
        layers: the dynamic network.
        student_layers: the student's, None for no student.
        pseudo_masks: how its masks are made of the teacher's.
        warm_start: iterations in which the student learns from true masks only.
        teacher_weight, student_weight: factors of all losses of the two, if there is a student.
        pseudo_weight: factor of the student's loss of an instance without a true mask.
        predict_with: whose masks are predicted, if there is a student: "student" or "teacher".
        upsampling: factor from the resolution of the mask branch to that of masks.
        at_a_time: instances whose masks are in memory together; 0 = all.
        dilation: distance of pairs in cells.
        pairwise_warmup: iterations in which the pairwise loss grows linearly to its full weight.
        collapse_fill: see :class:`BoxMaskMonitor`.
        student_only: forget the teacher's controller; such a model can only be tested.
    """

    @configurable
    def __init__(
        self,
        input_shape: list[ShapeSpec],
        tower_dim: int,
        *,
        supervision: str,
        channels: int,
        branch_dim: int,
        branch_convs: int,
        branch_norm: str,
        layers: DynamicLayers,
        branch_init: str = "released",
        released_grids: bool = False,
        student_layers: DynamicLayers | None = None,
        pseudo_masks: PseudoMasks | None = None,
        warm_start: int = 0,
        teacher_weight: float = 1.0,
        student_weight: float = 1.0,
        pseudo_weight: float = 1.0,
        predict_with: str = "student",
        upsampling: int = 2,
        at_a_time: int = 64,
        dilation: int = 2,
        pairwise_warmup: int = 10000,
        collapse_fill: float = 0.95,
        student_only: bool = False,
    ):
        super().__init__()
        self.branch = MaskBranch(
            input_shape,
            dim=branch_dim,
            num_convs=branch_convs,
            norm=branch_norm,
            channels=channels,
            init=branch_init,
            released_grids=released_grids,
        )
        self.released_grids = released_grids
        self.stride = input_shape[0].stride
        self.upsampling = upsampling
        self.supervision = supervision
        self.layers = layers
        self.controller = None if student_only else Controller(tower_dim, layers.num_params)
        self.student_layers = student_layers
        self.student = None
        if student_layers is not None:
            self.student = Controller(tower_dim, student_layers.num_params)
        self.pseudo_masks = pseudo_masks or PseudoMasks()
        self.warm_start = warm_start
        self.teacher_weight = 1.0 if student_layers is None else teacher_weight
        self.student_weight = student_weight
        self.pseudo_weight = pseudo_weight
        self.predicts_with_student = student_layers is not None and predict_with == "student"
        if student_only and not self.predicts_with_student:
            raise UserError(
                "PSIS.TEACHER_STUDENT.PREDICT_WITH is teacher, but with STUDENT_ONLY True there is "
                "none; set it to student."
            )
        self.at_a_time = at_a_time
        self.dilation = dilation
        self.pairwise_warmup = pairwise_warmup
        self.monitor = BoxMaskMonitor(collapse_fill, start=pairwise_warmup)

    @classmethod
    def from_config(cls, cfg, input_shape, tower_dim):
        node = cfg.PSIS.CONDINST
        check_keys(cfg, "PSIS.CONDINST")
        if node.STUDENT and node.SUPERVISION == "boxes":
            raise UserError(
                "PSIS.CONDINST.STUDENT learns from true masks, and PSIS.CONDINST.SUPERVISION is "
                "boxes; set it to mixed or masks."
            )
        classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        shape = {"features": node.CHANNELS, "dim": node.HEAD_DIM, "depth": node.HEAD_LAYERS}
        arguments = {
            "input_shape": input_shape,
            "tower_dim": tower_dim,
            "supervision": node.SUPERVISION,
            "channels": node.CHANNELS,
            "branch_dim": node.BRANCH_DIM,
            "branch_convs": node.BRANCH_CONVS,
            "branch_norm": node.BRANCH_NORM,
            "branch_init": node.BRANCH_INIT,
            "released_grids": node.RELEASED_GRIDS,
            "layers": DynamicLayers(**shape),
            "upsampling": node.UPSAMPLING,
            "at_a_time": node.INSTANCES_AT_A_TIME,
            "dilation": node.PAIRWISE_DILATION,
            "pairwise_warmup": node.PAIRWISE_WARMUP,
            "collapse_fill": node.COLLAPSE_FILL,
        }
        if node.STUDENT:  # else its keys are not read, and setting one is known to be in vain
            arguments |= _student_arguments(cfg, DynamicLayers(**shape, classes=classes))
        return arguments

    @property
    def mask_stride(self) -> int:
        """Side of a cell of the masks' grid in pixels."""
        return self.stride // self.upsampling

    @property
    def uses_boxes(self) -> bool:
        """Whether there are losses on boxes."""
        return self.supervision != "masks"

    @property
    def learns_without_masks(self) -> bool:
        """Whether instances without a true mask have a loss."""
        return self.uses_boxes or self.student is not None

    @property
    def uses_colors(self) -> bool:
        """Whether training needs the colors in boxes."""
        return self.student is not None and self.pseudo_masks.uses_colors

    def forward(self, maps: list[Tensor], tower: list[Tensor], queries: Queries) -> Tensor:
        """Test time: masks, float [n, H, W] in [0, 1].

        Args:
            maps: float [B, *, h, w], the mask branch's feature maps.
            tower: float [B, D, h, w] of each of the detector's levels, its box tower's output.
            queries: n instances.
        """
        features = self.branch(maps).float()
        controller, layers = self.controller, self.layers
        if self.predicts_with_student:
            controller, layers = self.student, self.student_layers
        filters = controller(tower, queries.images, queries.locations)
        masks = [
            self._logits(layers, filters[part], features, queries[part]).sigmoid()
            for part in self._parts(len(queries))
        ]
        shape = [self.upsampling * side for side in features.shape[-2:]]
        return torch.cat(masks) if masks else features.new_zeros(0, *shape)

    def losses(
        self, maps: list[Tensor], tower: list[Tensor], queries: Queries, targets: MaskTargets
    ) -> dict[str, Tensor]:
        """Losses by name, within Detectron2's event storage; see :meth:`forward`.

        ``loss_mask`` is the mean Dice loss of the mask-annotated instances, ``loss_projection`` and
        ``loss_pairwise`` are those of the instances that learn from boxes, ``loss_student`` is the
        mean Dice loss of the student. A loss that no instance has is a zero that is connected to
        all parameters.

        With a student, ``pseudo_masks/foreground`` is logged, the share of their boxes that the
        batch's pseudo masks fill: near 0 or 1, the student learns to mark nothing or to fill boxes.
        """
        if self.controller is None:
            raise UserError(
                "PSIS.TEACHER_STUDENT.STUDENT_ONLY True builds a model without a teacher, which "
                "cannot be trained; set it to False."
            )
        names = LOSSES[self.supervision] + ("loss_student",) * (self.student is not None)
        if len(queries) == 0:
            return {name: zero_loss(self) for name in names}
        iteration = get_event_storage().iter
        features = self.branch(maps).float()
        patches = gather_patches(tower, queries.images, queries.locations)
        filters = self.controller.of_patches(patches)
        student = None if self.student is None else self.student.of_patches(patches)

        sums = defaultdict(float)
        parts = self._parts(len(queries))
        for part in parts:
            arguments = (
                features,
                filters[part],
                None if student is None else student[part],
                queries[part],
                targets.part(part),
                iteration >= self.warm_start,
            )
            if len(parts) == 1:
                partial = self._partial_sums(*arguments)
            else:
                partial = checkpoint(
                    self._partial_sums, *arguments, use_reentrant=False, preserve_rng_state=False
                )
            for name, value in partial.items():
                sums[name] = sums[name] + value

        known = _on_host(sums)
        if known["with_box"]:
            share = known["pairs"] / (8 * known["cells"])
            self.monitor.update(share, known["fill"] / known["with_box"])
        if known["with_pseudo"]:
            get_event_storage().put_scalar(
                "pseudo_masks/foreground", known["pseudo"] / known["with_pseudo"]
            )
        growth = min((iteration + 1) / max(self.pairwise_warmup, 1), 1.0)
        losses = {
            "loss_mask": (self.teacher_weight * sums["mask"], "with_mask"),
            "loss_projection": (self.teacher_weight * sums["projection"], "with_box"),
            "loss_pairwise": (self.teacher_weight * growth * sums["pairwise"], "pairs"),
            "loss_student": (self.student_weight * sums["student"], "with_student"),
        }
        return {
            name: total / sums[count] if known[count] else zero_loss(self)
            for name, (total, count) in losses.items()
            if name in names
        }

    def _parts(self, n: int) -> list[slice]:
        size = self.at_a_time or max(n, 1)
        return [slice(first, first + size) for first in range(0, n, size)]

    def _logits(
        self, layers: DynamicLayers, filters: Tensor, features: Tensor, queries: Queries
    ) -> Tensor:
        """float [n, H, W]. In float32: coordinates and sums of few channels are sensitive."""
        with torch.autocast(features.device.type, enabled=False):
            split = layers.split(filters, queries.classes)
            logits = dynamic_logits(split, features, queries, self.stride)
            if self.released_grids:
                return released_grids.upsample(logits[None], self.upsampling)[0]
            return F.interpolate(
                logits[None], scale_factor=self.upsampling, mode="bilinear", align_corners=False
            )[0]

    def _partial_sums(
        self,
        features: Tensor,
        filters: Tensor,
        student: Tensor | None,
        queries: Queries,
        targets: MaskTargets,
        use_pseudo: bool,
    ) -> dict[str, Tensor]:
        """Sums over a few instances of losses, of their counts, and of what is logged."""
        logits = self._logits(self.layers, filters, features, queries)
        masks = logits.sigmoid()
        annotated = targets.has_mask.nonzero()[:, 0]
        truth = targets.truth[targets.truth_rows[annotated]]
        sums = {
            "mask": targets.mask_losses(dice_loss(masks[annotated], truth), annotated).sum(),
            "with_mask": targets.has_mask.sum(),
        }
        if self.uses_boxes:
            sums |= self._box_sums(logits, masks, queries, targets)
        if student is not None:
            sums |= self._student_sums(
                self._logits(self.student_layers, student, features, queries).sigmoid(),
                masks.detach(),
                queries,
                targets,
                use_pseudo,
            )
        return sums

    def _box_sums(
        self, logits: Tensor, masks: Tensor, queries: Queries, targets: MaskTargets
    ) -> dict[str, Tensor]:
        rows = (~targets.has_mask).nonzero()[:, 0]
        masks, cells = masks[rows], targets.cells[rows]
        pairwise, pairs = pairwise_loss(
            logits[rows], cells, targets.similar, queries.images[rows], self.dilation
        )
        columns, lines = cell_indicators(cells, masks.shape[-2:])
        area = columns.sum(dim=1) * lines.sum(dim=1)
        inside = columns[:, None] & lines[:, :, None]
        covered = ((masks.detach() >= 0.5) & inside).flatten(1).sum(dim=1)
        return {
            "projection": projection_loss(masks, cells).sum(),
            "with_box": (~targets.has_mask).sum(),
            "pairwise": pairwise,
            "pairs": pairs,
            "cells": area.sum(),
            "fill": (covered / area).sum(),
        }

    def _student_sums(
        self,
        student: Tensor,
        teacher: Tensor,
        queries: Queries,
        targets: MaskTargets,
        use_pseudo: bool,
    ) -> dict[str, Tensor]:
        annotated = targets.has_mask.nonzero()[:, 0]
        goal = torch.zeros_like(student)
        goal[annotated] = targets.truth[targets.truth_rows[annotated]]
        sums = {}
        if use_pseudo:
            others = (~targets.has_mask).nonzero()[:, 0]
            pseudo, inside = self._pseudo_masks(
                student.detach()[others], teacher[others], queries[others], targets.part(others)
            )
            goal[others] = pseudo.to(goal.dtype)
            shares = (pseudo & inside).flatten(1).sum(dim=1) / inside.flatten(1).sum(dim=1)
            sums = {"pseudo": shares.sum(), "with_pseudo": (~targets.has_mask).sum()}
        learns = targets.has_mask | use_pseudo
        of_masks = 1.0 if targets.weights is None else targets.weights
        weights = torch.where(targets.has_mask, of_masks, self.pseudo_weight)[learns]
        return sums | {
            "student": (weights * dice_loss(student[learns], goal[learns])).sum(),
            "with_student": learns.sum(),
        }

    def _pseudo_masks(
        self, student: Tensor, teacher: Tensor, queries: Queries, targets: MaskTargets
    ) -> tuple[Tensor, Tensor]:
        """Two bool [n, H, W], the masks that the student learns and the insides of their boxes."""
        columns, lines = cell_indicators(targets.cells, student.shape[-2:])
        inside = columns[:, None] & lines[:, :, None]
        if self.uses_colors:
            side = targets.colors.shape[-1]
            pooled = pool_from_boxes(teacher, targets.cells, side)
            sharpened = self.pseudo_masks.sharpen(pooled, targets.colors)
            teacher = paste_into_boxes(sharpened, targets.cells, teacher)
        seen = targets.seen[queries.images]
        return self.pseudo_masks(teacher, student, inside, seen), inside


def _on_host(sums: dict[str, Tensor]) -> dict[str, float]:
    """Counts, and what is logged, as numbers, 0 for what there is none of; the host waits once."""
    names = [name for name in sums if name not in ("mask", "projection", "pairwise", "student")]
    values = torch.stack([sums[name].detach().double() for name in names]).tolist()
    return defaultdict(float, zip(names, values, strict=True))


def _student_arguments(cfg, layers: DynamicLayers) -> dict:
    """How a student learns beside a teacher, as ``PSIS.TEACHER_STUDENT`` says."""
    check_keys(cfg, "PSIS.TEACHER_STUDENT")
    node = cfg.PSIS.TEACHER_STUDENT
    return {
        "student_layers": layers,
        "pseudo_masks": PseudoMasks.from_config(cfg),
        "warm_start": node.WARM_START,
        "teacher_weight": node.TEACHER_WEIGHT,
        "student_weight": node.STUDENT_WEIGHT,
        "pseudo_weight": node.PSEUDO_WEIGHT,
        "predict_with": node.PREDICT_WITH,
        "student_only": node.STUDENT_ONLY,
    }
