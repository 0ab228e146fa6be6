"""What the ROI heads hand to a mask head, in one typed object.

A mask head sees nothing else: no globals, no other head. Whatever a new method needs from the
detector (pooled features, sampled background regions, the box predictor) is a field here.

Legend: R regions of the whole batch, S sampled proposals, C channels, P pooler resolution.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from psis_d2.data.cropped_masks import union_of_masks
from psis_d2.modeling.mask_targets import cells_in_boxes, crop_images, crop_masks
from psis_d2.modeling.rows import batch_rows, rows_where

import torch
from detectron2.layers import cat
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from torch import Tensor, nn


def learnable(instances: Instances) -> Tensor:
    """Which annotations have a mask to learn from: a true one, or a foreign one with a weight.

    Args:
        instances: N annotations or regions with ``gt_has_mask`` and, if foreign masks are in use,
            ``gt_mask_weight``.

    Returns:
        bool [N].
    """
    if instances.has("gt_mask_weight"):
        return instances.gt_mask_weight > 0
    return instances.gt_has_mask


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
    objects: Tensor
    """int64 [S], in [0, num_classes]: the class of the object that a sample overlaps most, be it
    its own or one that is missed; num_classes if it touches none."""


@dataclass(frozen=True)
class RegionContext:
    """One batch of regions for a mask head.

    In training `regions` have ``proposal_boxes``, ``gt_classes``, ``gt_has_mask``, ``gt_index``
    (the row of their object in the image's target) and, if foreign masks are in use,
    ``gt_mask_weight``; at test time ``pred_boxes`` and ``pred_classes``.
    """

    regions: list[Instances]
    """One entry an image; R regions in all."""
    features: Tensor
    """float [R, C, P, P], pooled from the regions' frames."""
    pool: Callable[[list[Boxes]], Tensor]
    """Pools any other boxes (one `Boxes` an image, input pixels) from the same feature maps."""
    box_predictor: nn.Module | None = None
    """The detector's box predictor itself, for heads with ``needs.box_predictor``; None behind a
    one-stage detector."""
    box_features: Tensor | None = None
    """float [R, D, S, S], the box head's feature maps of the regions' boxes, before its pooling;
    for heads with ``needs.box_features``."""
    targets: list[Instances] | None = None
    """Training: the images' annotations, with ``gt_masks`` where there are masks."""
    sampled: SampledRegions | None = None
    """Training, and only for heads with ``needs.sampled``."""
    wide_frames: list[Boxes] | None = None
    """What features and masks cover, for heads with ``needs.wide_frames``; else that is the
    boxes."""
    images: ImageList | None = None
    """Training, and only for heads with ``needs.images``: the model's normalized input."""
    all_annotated: bool = False
    """Training: whether it is certain that every region has a mask, without asking ``has_mask``;
    see :attr:`annotated`."""

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
        """bool [R]: whether the region's object has a mask to learn from (training).

        See :func:`learnable`.
        """
        return cat([learnable(regions) for regions in self.regions])

    @property
    def mask_weights(self) -> Tensor | None:
        """float32 [R], the factors of the regions' mask losses (training).

        1 for true masks, that of its mask for a region with a foreign one, 0 for one without a
        mask; None if no foreign masks are in use.
        """
        if not all(regions.has("gt_mask_weight") for regions in self.regions):
            return None
        return cat([regions.gt_mask_weight for regions in self.regions])

    @property
    def object_boxes(self) -> list[Boxes]:
        """The annotated box of each region's object, one entry an image (training)."""
        return [
            target.gt_boxes[regions.gt_index]
            for regions, target in zip(self.regions, self.targets, strict=True)
        ]

    @cached_property
    def annotated(self) -> "RegionContext":
        """The context of the regions with :attr:`has_mask`, which alone have mask targets."""
        if self.all_annotated:
            return self
        return replace(self._take(self._rows_by_mask[0]), all_annotated=True)

    @cached_property
    def annotated_rows(self) -> Tensor:
        """int64 [A], which of the R regions are those of :attr:`annotated`."""
        return batch_rows(self._rows_by_mask[0], self._sizes)

    @cached_property
    def maskless(self) -> "RegionContext":
        """The context of the regions without :attr:`has_mask`."""
        return self._take(self._rows_by_mask[1])

    @cached_property
    def maskless_rows(self) -> Tensor:
        """int64 [R - A], which of the R regions are those of :attr:`maskless`."""
        return batch_rows(self._rows_by_mask[1], self._sizes)

    @cached_property
    def _rows_by_mask(self) -> list[list[Tensor]]:
        """Rows of each image with and without a mask; the host waits once for both."""
        if self.all_annotated:
            device = self.features.device
            rows = [torch.arange(n, device=device) for n in self._sizes]
            return [rows, [x[:0] for x in rows]]
        flags = self.has_mask.split(self._sizes)
        return rows_where(flags, [~x for x in flags])

    @property
    def _sizes(self) -> list[int]:
        return [len(regions) for regions in self.regions]

    def select(self, keep: Tensor) -> "RegionContext":
        """The context of some of the regions; what is not a region's own stays as it is.

        Args:
            keep: bool [R]; on a GPU it is waited for.
        """
        return self._take(rows_where(keep.split(self._sizes), device=self.features.device)[0])

    def _take(self, rows: list[Tensor]) -> "RegionContext":
        """The context of the regions that are these rows of their images."""
        of_batch = batch_rows(rows, self._sizes)
        sampled, wide_frames, box_features = self.sampled, self.wide_frames, self.box_features
        if sampled is not None and sampled.rows is not None:
            sampled = replace(sampled, rows=sampled.rows[of_batch])
        if wide_frames is not None:
            wide_frames = [x[k] for x, k in zip(wide_frames, rows, strict=True)]
        return replace(
            self,
            regions=[x[k] for x, k in zip(self.regions, rows, strict=True)],
            features=self.features[of_batch],
            box_features=None if box_features is None else box_features[of_batch],
            sampled=sampled,
            wide_frames=wide_frames,
        )

    def mask_targets(self, size: int) -> Tensor:
        """Masks cut out by the regions' frames, of :attr:`annotated` regions (training).

        Args:
            size: side of the target in cells.

        Returns:
            float32 [R, size, size] of 0 and 1.

        Raises:
            ValueError: the context may have regions without a mask, whatever it has this time.
        """
        if not self.all_annotated:
            raise ValueError(
                "mask_targets: only regions with a mask have mask targets; ask context.annotated "
                "for them, and take its rows of all else by context.annotated_rows."
            )
        if size not in self._crops:
            crops = [
                crop_masks(target.gt_masks, regions.gt_index, frames, size)
                for regions, target, frames in zip(
                    self.regions, self.targets, self.frames, strict=True
                )
                if len(regions)
            ]
            nothing = torch.zeros(0, size, size, device=self.features.device)
            self._crops[size] = cat(crops) if crops else nothing
        return self._crops[size]

    @cached_property
    def _crops(self) -> dict[int, Tensor]:
        """Mask targets by size: two heads may ask for the same ones."""
        return {}

    def annotated_cells(self, size: int) -> Tensor:
        """Where a region's frame shows any object of its image with a mask (training).

        Args:
            size: side of the result in cells.

        Returns:
            bool [R, size, size], a cell counting as in :meth:`mask_targets`. Masks that are not
            :func:`learnable` do not count.
        """
        crops = []
        for regions, target, frames in zip(self.regions, self.targets, self.frames, strict=True):
            if len(regions) == 0 or len(target) == 0:
                crops.append(self.features.new_zeros(len(regions), size, size, dtype=torch.bool))
                continue
            # One crop of their union: of two masks that share a cell, none may have half of it.
            union = BitMasks(union_of_masks(target.gt_masks, learnable(target))[None])
            crops.append(crop_masks(union, torch.zeros_like(regions.gt_index), frames, size) > 0)
        return cat(crops)

    def object_cells(self, size: int) -> Tensor:
        """The cells of a region's frame that lie in its object's annotated box (training).

        Returns:
            bool [R, size, size], see :func:`~psis_d2.modeling.mask_targets.cells_in_boxes`.
        """
        boxes, frames = (cat([x.tensor for x in y]) for y in (self.object_boxes, self.frames))
        return cells_in_boxes(boxes, frames, size)

    def image_crops(self, size: int) -> Tensor:
        """The images cut out by the regions' frames (training, heads with ``needs.images``).

        Returns:
            float32 [R, 3, size, size], normalized as the model's input.
        """
        return crop_images(self.images.tensor, self.frames, size)
