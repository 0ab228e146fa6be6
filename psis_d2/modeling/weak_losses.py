"""Losses of regions whose object has no mask: of its box, or of a few points.

They read the mask logits of any RoI mask head, see ``RegionMaskHead.weak_losses``.

Legend: R regions, M x M cells of their masks, P points.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from psis_d2.modeling.box_supervision import (
    box_cells,
    cell_indicators,
    check_format,
    directions,
    lab_colors,
    pair_windows,
    pairwise_loss,
    projection_loss,
)
from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.mask_targets import cells_in_boxes

import torch
import torch.nn.functional as F
from detectron2.layers import cat
from detectron2.utils.events import get_event_storage
from torch import Tensor


class WeakLoss(ABC):
    """Losses of regions without a mask."""

    names: ClassVar[tuple[str, ...]]
    """Of the losses, whatever a batch has."""
    reads_images: ClassVar[bool] = False
    """Whether ``RegionContext.images`` is read."""

    @abstractmethod
    def wants(self, context: RegionContext) -> Tensor:
        """bool [R]: the regions without a mask that have such losses."""

    @abstractmethod
    def __call__(self, context: RegionContext, logits: Tensor) -> dict[str, Tensor]:
        """The weighted losses by :attr:`names`.

        Args:
            context: R > 0 regions, those that are wanted.
            logits: float32 [R, M, M], of each region's own class.
        """


def weak_losses_of(cfg) -> tuple[WeakLoss, ...]:
    """What a config asks for: ``PSIS.BOX_LOSSES``, ``PSIS.POINTS``."""
    node = cfg.PSIS
    losses: list[WeakLoss] = []
    if node.BOX_LOSSES:
        losses.append(
            BoxLosses(
                pixel_mean=cfg.MODEL.PIXEL_MEAN,
                pixel_std=cfg.MODEL.PIXEL_STD,
                image_format=cfg.INPUT.FORMAT,
                projection_weight=node.PROJECTION_WEIGHT,
                pairwise_weight=node.PAIRWISE_WEIGHT,
                dilation=node.PAIRWISE_DILATION,
                threshold=node.COLOR_THRESHOLD,
                warmup=node.PAIRWISE_WARMUP,
            )
        )
    if node.POINTS:
        losses.append(PointLoss(node.POINT_WEIGHT))
    return tuple(losses)


# ------------------------------------------------------------------------------ boxes


def similar_cells(colors: Tensor, valid: Tensor, dilation: int, threshold: float) -> Tensor:
    """Which neighbors in regions have like colors, see
    :func:`~psis_d2.modeling.box_supervision.similar_neighbors`.

    Args:
        colors: float [R, 3, M, M] of :func:`~psis_d2.modeling.box_supervision.lab_colors`.
        valid: bool [R, M, M], the cells that take part.
        dilation: distance of neighbors in cells.
        threshold: of the similarity exp(-distance / 2).

    Returns:
        bool [R, D, M, M], D = 4 :func:`~psis_d2.modeling.box_supervision.directions`.
    """
    size = colors.shape[-2:]
    similar = torch.zeros(len(colors), 4, *size, dtype=torch.bool, device=colors.device)
    for k, step in enumerate(directions(dilation)):
        here, there = pair_windows(*size, step)
        distance = (colors[here] - colors[there]).norm(dim=1)
        alike = (-distance / 2).exp() >= threshold
        similar[:, k][here] = alike & valid[here] & valid[there]
    return similar


def cells_of_boxes(boxes: Tensor, frames: Tensor, size: int) -> Tensor:
    """The rectangles of cells of frames that boxes cover, at least one cell each.

    Args:
        boxes: float [R, 4], XYXY pixels.
        frames: float [R, 4], each divided into `size` x `size` cells.
        size: M.

    Returns:
        int64 [R, 4], see :func:`~psis_d2.modeling.box_supervision.box_cells`; what of a box is
        outside of its frame is cut off.
    """
    origin = frames[:, :2].repeat(1, 2)
    sides = (frames[:, 2:] - frames[:, :2]).clamp(min=1e-3).repeat(1, 2)
    return box_cells((boxes - origin) / sides * size, 1, (size, size))


class BoxLosses(WeakLoss):
    """BoxInst's two losses (Tian et al., CVPR 2021) on the masks of regions.

    As in :mod:`psis_d2.modeling.box_supervision`, on the grid of the region's frame: extents are
    compared with those of the object's *annotated* box in it, and neighbors are cells of that grid,
    so that a pair of a small object is nearer in the image than one of a large object.

    Logs ``box_losses/fill``, the share of their boxes that the masks fill: near 1, they fill boxes.

    Args:
        pixel_mean, pixel_std: of the model's input, to find the colors again.
        image_format: "BGR" or "RGB".
        projection_weight, pairwise_weight: of the two.
        dilation: distance of the neighbors of a pair in cells.
        threshold: least similarity of a pair's colors.
        warmup: iterations in which the pairwise loss grows to its full weight.
    """

    names = ("loss_projection", "loss_pairwise")
    reads_images = True

    def __init__(
        self,
        *,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        image_format: str,
        projection_weight: float = 1.0,
        pairwise_weight: float = 1.0,
        dilation: int = 2,
        threshold: float = 0.3,
        warmup: int = 0,
    ):
        check_format(image_format)
        self.pixel_mean = tuple(pixel_mean)
        self.pixel_std = tuple(pixel_std)
        self.image_format = image_format
        self.projection_weight = projection_weight
        self.pairwise_weight = pairwise_weight
        self.dilation = dilation
        self.threshold = threshold
        self.warmup = warmup

    def wants(self, context: RegionContext) -> Tensor:
        """All regions have a box."""
        return torch.ones_like(context.has_mask)

    def __call__(self, context: RegionContext, logits: Tensor) -> dict[str, Tensor]:
        """``loss_projection``, a mean over regions; ``loss_pairwise``, one over pairs."""
        size = logits.shape[-1]
        frames, boxes = (cat([x.tensor for x in y]) for y in (context.frames, context.object_boxes))
        cells = cells_of_boxes(boxes, frames, size)
        masks = logits.sigmoid()
        rows = torch.arange(len(logits), device=logits.device)
        similar = self.similar(context, size)
        total, pairs = pairwise_loss(logits, cells, similar, rows, self.dilation)
        self._log_fill(masks.detach(), cells)
        growth = 1.0
        if self.warmup > 0:
            growth = min((get_event_storage().iter + 1) / self.warmup, 1.0)
        return {
            "loss_projection": self.projection_weight * projection_loss(masks, cells).mean(),
            "loss_pairwise": self.pairwise_weight * growth * total / pairs.clamp(min=1),
        }

    @torch.no_grad()
    def similar(self, context: RegionContext, size: int) -> Tensor:
        """Which cells of R regions belong together with which neighbors, bool [R, D, M, M]."""
        crops = context.image_crops(size)
        # Numbers, not tensors: a GPU would wait for a copy of them.
        channels = zip(crops.unbind(dim=1), self.pixel_std, self.pixel_mean, strict=True)
        crops = torch.stack([x * std + mean for x, std, mean in channels], dim=1)
        colors = lab_colors((crops / 255).clamp(0, 1), self.image_format)
        frames = cat([x.tensor for x in context.frames])
        images = []
        for regions in context.regions:
            height, width = regions.image_size
            sides = [frames.new_full((len(regions),), float(x)) for x in (0, 0, width, height)]
            images.append(torch.stack(sides, dim=1))
        valid = cells_in_boxes(torch.cat(images), frames, size)
        return similar_cells(colors, valid, self.dilation, self.threshold)

    def _log_fill(self, masks: Tensor, cells: Tensor) -> None:
        columns, rows = cell_indicators(cells, masks.shape[-2:])
        inside = rows[:, :, None] & columns[:, None]
        covered = ((masks >= 0.5) & inside).flatten(1).sum(dim=1) / inside.flatten(1).sum(dim=1)
        get_event_storage().put_scalar("box_losses/fill", covered.mean().item())


# ------------------------------------------------------------------------------ points


def points_of(context: RegionContext) -> tuple[Tensor, Tensor]:
    """The annotated points of the regions' objects.

    Args:
        context: R regions.

    Returns:
        float [R, P, 2], X and Y from 0 to 1 over the region's frame, and int64 [R, P]: 1 for a
        point on the object, 0 for one on the background, -1 for none, and for one outside of the
        frame. P is the largest number of points in the batch.
    """
    most = max((x.gt_points.shape[1] for x in context.targets if x.has("gt_points")), default=0)
    points, labels = [], []
    triples = zip(context.regions, context.targets, context.frames, strict=True)
    for regions, target, frames in triples:
        if len(regions) == 0:
            continue
        if not target.has("gt_points"):
            points.append(regions.gt_index.new_zeros(len(regions), most, 2).float())
            labels.append(regions.gt_index.new_full((len(regions), most), -1))
            continue
        own = target.gt_points[regions.gt_index]
        box = frames.tensor
        sides = (box[:, 2:] - box[:, :2]).clamp(min=1e-3)
        places = (own - box[:, None, :2]) / sides[:, None]
        inside = ((places >= 0) & (places <= 1)).all(dim=2)
        label = target.gt_point_labels[regions.gt_index]
        padding = most - own.shape[1]
        points.append(F.pad(places, (0, 0, 0, padding)))
        labels.append(F.pad(torch.where(inside, label, -1), (0, padding), value=-1))
    if not points:
        empty = context.features.new_zeros(0, most, 2)
        return empty, torch.zeros(0, most, dtype=torch.int64, device=empty.device)
    return torch.cat(points), torch.cat(labels)


class PointLoss(WeakLoss):
    """The cross-entropy at annotated points (Cheng et al., "Pointly-Supervised Instance
    Segmentation", CVPR 2022).

    Logits are read between the centers of cells, bilinearly. The mean is over the points in the
    regions; Detectron2's project also counts those outside, with a loss of zero.

    Args:
        weight: of the loss.
    """

    names = ("loss_points",)

    def __init__(self, weight: float = 1.0):
        self.weight = weight

    def wants(self, context: RegionContext) -> Tensor:
        """The regions without a mask whose object has a point in their frame."""
        return (points_of(context)[1] >= 0).any(dim=1)

    def __call__(self, context: RegionContext, logits: Tensor) -> dict[str, Tensor]:
        """``loss_points``, a mean over points."""
        points, labels = points_of(context)
        grid = (2 * points - 1)[:, :, None].to(logits.dtype)
        values = F.grid_sample(logits[:, None], grid, padding_mode="border", align_corners=False)
        known = labels >= 0
        losses = F.binary_cross_entropy_with_logits(
            values[:, 0, :, 0], labels.clamp(min=0).to(logits.dtype), reduction="none"
        )
        return {"loss_points": self.weight * (losses * known).sum() / known.sum().clamp(min=1)}
