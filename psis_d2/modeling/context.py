"""What the ROI heads hand to a mask head, in one typed object.

A mask head sees nothing else: no globals, no other head. Whatever a new method needs from the
detector (pooled features, sampled background regions, the box predictor) is a field here.

Legend: R regions of the whole batch, S sampled proposals, C channels, P pooler resolution.
"""

from collections.abc import Callable
from dataclasses import dataclass

from psis_d2.modeling.mask_targets import crop_masks

import torch
from detectron2.layers import cat
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn


@dataclass(frozen=True)
class SampledRegions:
    """All sampled proposals, background included (training only).

    They are what the box branch is trained on, where there is one.
    """

    features: Tensor
    """float [S, C, P, P], pooled as the mask regions are."""
    classes: Tensor
    """int64 [S], in [0, num_classes); num_classes = background."""
    rows: Tensor | None
    """int64 [R]: the row of `features` that each mask region is; None if regions are no samples."""


@dataclass(frozen=True)
class RegionContext:
    """One batch of regions for a mask head.

    In training `regions` have ``proposal_boxes``, ``gt_classes``, ``gt_has_mask`` and ``gt_index``
    (the row of their object in the image's target), at test time ``pred_boxes`` and
    ``pred_classes``.
    """

    regions: list[Instances]
    """One entry an image; R regions in all."""
    features: Tensor
    """float [R, C, P, P], pooled from the regions' frames."""
    pool: Callable[[list[Boxes]], Tensor]
    """Pools any other boxes (one `Boxes` an image, input pixels) from the same feature maps."""
    box_predictor: nn.Module | None = None
    """The detector's live box predictor, for heads that read its weights and say so by
    ``needs_box_predictor``; None behind a one-stage detector."""
    box_features: Tensor | None = None
    """float [R, D, S, S], the box head's feature maps of the regions' boxes, before its pooling;
    for heads with ``needs_box_features``."""
    targets: list[Instances] | None = None
    """Training: the images' annotations, with ``gt_masks`` where there are masks."""
    sampled: SampledRegions | None = None
    """Training, and only for heads with ``uses_sampled``."""
    wide_frames: list[Boxes] | None = None
    """What features and masks cover, for heads with ``looks_around``; else that is the boxes."""

    def __len__(self) -> int:
        """Number of regions R."""
        return sum(len(regions) for regions in self.regions)

    @property
    def boxes(self) -> list[Boxes]:
        """The regions' boxes, one entry an image, in pixels of the input."""
        field = "pred_boxes" if self.targets is None else "proposal_boxes"
        return [regions.get(field) for regions in self.regions]

    @property
    def frames(self) -> list[Boxes]:
        """What the regions' features and masks cover, one entry an image."""
        return self.boxes if self.wide_frames is None else self.wide_frames

    @property
    def classes(self) -> Tensor:
        """int64 [R]: annotated class in training, predicted (or given) class at test time."""
        field = "pred_classes" if self.targets is None else "gt_classes"
        return cat([regions.get(field) for regions in self.regions])

    @property
    def has_mask(self) -> Tensor:
        """bool [R]: whether the region's object is mask-annotated (training)."""
        return cat([regions.gt_has_mask for regions in self.regions])

    def mask_targets(self, size: int) -> Tensor:
        """Annotated masks cut out by the regions' frames (training).

        Args:
            size: side of the target in cells.

        Returns:
            float32 [R, size, size] of 0 and 1; rows without ``has_mask`` hold no information.
        """
        crops = [
            crop_masks(target.gt_masks.tensor, regions.gt_index, frames, size)
            for regions, target, frames in zip(self.regions, self.targets, self.frames, strict=True)
            if len(regions)
        ]
        return cat(crops) if crops else torch.zeros(0, size, size, device=self.features.device)
