"""ROI heads for partially annotated masks: choose the regions, hand them to the mask head.

The box branch is Detectron2's. What differs is what the mask head gets: regions whose object has
a mask, cut from sampled proposals, annotated boxes or jittered annotated boxes (one switch for all
methods), in one typed :class:`~psis_d2.modeling.context.RegionContext`.
"""

from psis_d2.errors import check_choice
from psis_d2.modeling.box_maps import BoxMaps
from psis_d2.modeling.context import RegionContext, SampledRegions, learnable
from psis_d2.modeling.rows import batch_rows, rows_where

import torch
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor

MASK_TRAIN_BOXES = ("proposals", "gt", "jittered_gt")


def jitter_boxes(boxes: Boxes, std: float, image_size: tuple[int, int]) -> Boxes:
    """Annotated boxes moved and resized at random (ShapeMask, Kuo et al., ICCV 2019, sec. 4).

    The center moves by a normal shift of `std` box sides, each side is multiplied by the
    exponential of a normal of the same `std`.

    Args:
        boxes: N boxes, XYXY pixels.
        std: standard deviation, in units of the box.
        image_size: (height, width) that the result is clipped to.

    Returns:
        N boxes.
    """
    tensor = boxes.tensor
    center = (tensor[:, :2] + tensor[:, 2:]) / 2
    size = tensor[:, 2:] - tensor[:, :2]
    noise = torch.randn(len(tensor), 4, device=tensor.device, dtype=tensor.dtype) * std
    center = center + noise[:, :2] * size
    size = size * noise[:, 2:].exp()
    jittered = Boxes(torch.cat([center - size / 2, center + size / 2], dim=1))
    jittered.clip(image_size)
    # A box that left the image is of no use: take the annotated one instead.
    return Boxes(torch.where(jittered.nonempty()[:, None], jittered.tensor, tensor))


def shrink_boxes(boxes: Boxes, least: float) -> Boxes:
    """Boxes with both sides multiplied by random factors (Kuo et al., ICCV 2019, Tab. 3).

    Args:
        boxes: N boxes, XYXY pixels.
        least: smallest factor; factors are uniform from it to 1, those of width and height
            independent. 1 returns the boxes as they are, without drawing numbers.

    Returns:
        N boxes around the same centers.
    """
    if least == 1:
        return boxes
    tensor = boxes.tensor
    factors = least + (1 - least) * torch.rand_like(tensor[:, :2])
    center = (tensor[:, :2] + tensor[:, 2:]) / 2
    half = (tensor[:, 2:] - tensor[:, :2]) * factors / 2
    return Boxes(torch.cat([center - half, center + half], dim=1))


def touched_classes(sampled: Instances, target: Instances, num_classes: int) -> Tensor:
    """The class of the object that each sampled proposal overlaps most.

    Args:
        sampled: S proposals of an image, with ``gt_index`` as the matcher gave it.
        target: the image's annotations.
        num_classes: K.

    Returns:
        int64 [S] in [0, K]; K for a proposal that touches no object.
    """
    classes = torch.full_like(sampled.gt_index, num_classes)
    if len(target) == 0:
        return classes
    index = sampled.gt_index
    overlap = matched_pairwise_iou(sampled.proposal_boxes, target.gt_boxes[index])
    return torch.where(overlap > 0, target.gt_classes[index], classes)


@ROI_HEADS_REGISTRY.register()
class PartialROIHeads(StandardROIHeads):
    """Detectron2's standard ROI heads with a mask branch for partial supervision.

    Training targets need ``gt_boxes``, ``gt_classes``, ``gt_masks`` (BitMasks) and ``gt_has_mask``
    (bool); if foreign masks are in use, all have ``gt_mask_weight`` (float32), too. The mask branch
    never reads a mask that is not :func:`~psis_d2.modeling.context.learnable`.

    Args:
        mask_train_boxes: "proposals", "gt" or "jittered_gt".
        box_jitter_std: see :func:`jitter_boxes`.
        box_train_shrink: `least` of :func:`shrink_boxes`, before the jitter.
        mask_boxes_per_image: the largest number of annotated boxes that train the mask head, 0 =
            all.
        **kwargs: see Detectron2's ``StandardROIHeads``.
    """

    @configurable
    def __init__(
        self,
        *,
        mask_train_boxes: str = "proposals",
        box_jitter_std: float = 0.1,
        box_train_shrink: float = 1.0,
        mask_boxes_per_image: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_choice("PSIS.MASK_TRAIN_BOXES", mask_train_boxes, MASK_TRAIN_BOXES)
        self.mask_train_boxes = mask_train_boxes
        self.box_jitter_std = box_jitter_std
        self.box_train_shrink = box_train_shrink
        self.mask_boxes_per_image = mask_boxes_per_image
        if self.mask_on:
            self.mask_pooler.canonical_box_size = self.mask_head.needs.canonical_frame
            if self.box_head is not None and self.mask_head.needs.box_features:
                BoxMaps(self).check()

    @classmethod
    def from_config(cls, cfg, input_shape):
        ret = super().from_config(cfg, input_shape)
        ret["mask_train_boxes"] = cfg.PSIS.MASK_TRAIN_BOXES
        ret["box_jitter_std"] = cfg.PSIS.BOX_JITTER_STD
        ret["box_train_shrink"] = cfg.PSIS.BOX_TRAIN_SHRINK
        ret["mask_boxes_per_image"] = cfg.PSIS.MASK_BOXES_PER_IMAGE
        return ret

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """See Detectron2's ``ROIHeads.forward``; same arguments and results."""
        if not self.training:
            detections = self._forward_box(features, proposals)
            return self.forward_with_given_boxes(features, detections), {}
        sampled = self.label_and_sample_proposals(proposals, targets)
        trains_boxes = self._uses_box_branch()
        if self.mask_on and self.mask_head.needs.box_features:
            rows = self._sampled_rows(sampled)
            context = self._training_context(images, features, sampled, targets, rows)
            kept = None if rows is None else batch_rows(rows, [len(x) for x in sampled])
            losses, context = BoxMaps(self).train(features, sampled, context, kept, trains_boxes)
            return sampled, losses | self.mask_head(context)
        losses = self._forward_box(features, sampled) if trains_boxes else {}
        if self.mask_on:
            rows = self._sampled_rows(sampled)
            context = self._training_context(images, features, sampled, targets, rows)
            losses.update(self.mask_head(context))
        return sampled, losses

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """Sample proposals as Detectron2 does, without copying a mask or points for each of them.

        Every sampled proposal gets ``gt_index``, the row of its object in the image's target, and
        ``gt_has_mask`` and ``gt_mask_weight``, if targets have it; ``gt_masks`` and points stay in
        the target, where they are cut out on demand. Background of images that are annotated for a
        part of the classes (``gt_exhaustive`` false) is left out of the sample: it may be an object
        of another class.
        """
        light = []
        for target in targets:
            fields = Instances(target.image_size, **target.get_fields())
            for name in ("gt_masks", "gt_points", "gt_point_labels"):
                if fields.has(name):
                    fields.remove(name)
            fields.gt_index = torch.arange(len(target), device=target.gt_classes.device)
            light.append(fields)
        sampled = super().label_and_sample_proposals(proposals, light)
        for instances, target in zip(sampled, targets, strict=True):
            if not instances.has("gt_index"):  # an image without a single object
                instances.gt_index = torch.zeros_like(instances.gt_classes)
                instances.gt_has_mask = torch.zeros_like(instances.gt_classes, dtype=torch.bool)
                if target.has("gt_mask_weight"):
                    instances.gt_mask_weight = torch.zeros_like(
                        instances.gt_classes, dtype=torch.float32
                    )
        if not any(instances.has("gt_exhaustive") for instances in sampled):
            return sampled
        (rows,) = rows_where([self._known(instances) for instances in sampled])
        return [instances[k] for instances, k in zip(sampled, rows, strict=True)]

    def _known(self, instances: Instances) -> Tensor:
        """bool [N]: an object, or background of an image that is annotated for all classes."""
        if not instances.has("gt_exhaustive"):
            return torch.ones_like(instances.gt_classes, dtype=torch.bool)
        return (instances.gt_classes < self.num_classes) | instances.gt_exhaustive

    def _forward_mask(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Test time: add ``pred_masks`` to instances with ``pred_boxes`` and ``pred_classes``."""
        if not self.mask_on:
            return instances
        pool = self._pool_from(features)
        frames = self._frames(instances, "pred_boxes")
        box_features = None
        if self.mask_head.needs.box_features:
            (box_features,) = BoxMaps(self)(features, [x.pred_boxes for x in instances])
        return self.mask_head(
            RegionContext(
                regions=instances,
                features=pool(frames),
                pool=pool,
                box_predictor=self.box_predictor,
                box_features=box_features,
                wide_frames=frames if self.mask_head.needs.wide_frames else None,
            )
        )

    def _uses_box_branch(self) -> bool:
        """Whether training has a use for it: it is not frozen, or moves the proposals."""
        modules = (self.box_head, self.box_predictor)
        learns = any(p.requires_grad for module in modules for p in module.parameters())
        return learns or self.train_on_pred_boxes

    def _pool_from(self, features: dict[str, Tensor]):
        maps = [features[name] for name in self.mask_in_features]
        return lambda boxes: self.mask_pooler(maps, boxes)

    def _frames(self, instances: list[Instances], field: str) -> list[Boxes]:
        """What the mask head sees of each box: by default the box itself."""
        return [self.mask_head.frames(x.get(field), x.image_size) for x in instances]

    def _training_context(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        sampled: list[Instances],
        targets: list[Instances],
        kept: list[Tensor] | None,
    ) -> RegionContext:
        """The mask head's context; `kept` is of :meth:`_sampled_rows`."""
        pool = self._pool_from(features)
        samples, sampled_features = None, None
        if self.mask_head.needs.sampled:
            sampled_features = pool(self._frames(sampled, "proposal_boxes"))

        if kept is not None:
            regions = [x[k] for x, k in zip(sampled, kept, strict=True)]
            rows = batch_rows(kept, [len(x) for x in sampled])
        else:
            regions = self._regions_from_annotations(targets, self._annotated_only)
            rows = None

        if sampled_features is not None:
            classes = cat([x.gt_classes for x in sampled])
            objects = cat(
                [
                    touched_classes(x, target, self.num_classes)
                    for x, target in zip(sampled, targets, strict=True)
                ]
            )
            samples = SampledRegions(sampled_features, classes, rows, objects)
        frames = self._frames(regions, "proposal_boxes")
        if sampled_features is not None and rows is not None:
            region_features = sampled_features[rows]
        else:
            region_features = pool(frames)
        return RegionContext(
            regions=regions,
            features=region_features,
            pool=pool,
            box_predictor=self.box_predictor,
            targets=targets,
            sampled=samples,
            wide_frames=frames if self.mask_head.needs.wide_frames else None,
            images=images if self.mask_head.wants_images else None,
            all_annotated=self._annotated_only,
        )

    def _sampled_rows(self, sampled: list[Instances]) -> list[Tensor] | None:
        """int64 [n] of each image: which samples train the mask head; None if other boxes do."""
        if self.mask_train_boxes != "proposals":
            return None
        return rows_where([self._trainable(x, self._annotated_only) for x in sampled])[0]

    @property
    def _annotated_only(self) -> bool:
        """Whether regions without a mask are of no use to the mask head."""
        return not self.mask_head.wants_all

    def _trainable(self, instances: Instances, annotated_only: bool) -> Tensor:
        """bool [N]: foreground, and with a mask to learn from where the mask head asks for it."""
        classes = instances.gt_classes
        keep = (classes >= 0) & (classes < self.num_classes)
        return keep & learnable(instances) if annotated_only else keep

    def _regions_from_annotations(
        self, targets: list[Instances], annotated_only: bool
    ) -> list[Instances]:
        """Annotated boxes as regions, jittered if so configured."""
        regions = []
        (rows,) = rows_where([self._trainable(target, annotated_only) for target in targets])
        for target, kept in zip(targets, rows, strict=True):
            boxes = target.gt_boxes
            if self.mask_train_boxes == "jittered_gt":
                boxes = shrink_boxes(boxes, self.box_train_shrink)
                boxes = jitter_boxes(boxes, self.box_jitter_std, target.image_size)
            region = Instances(
                target.image_size,
                proposal_boxes=boxes,
                gt_boxes=target.gt_boxes,
                gt_classes=target.gt_classes,
                gt_has_mask=target.gt_has_mask,
                gt_index=torch.arange(len(target), device=target.gt_classes.device),
            )
            if target.has("gt_mask_weight"):
                region.gt_mask_weight = target.gt_mask_weight
            regions.append(region[self._drawn(kept)])
        return regions

    def _drawn(self, rows: Tensor) -> Tensor:
        """At most ``mask_boxes_per_image`` of the rows, at random and in order."""
        limit = self.mask_boxes_per_image
        if not 0 < limit < len(rows):
            return rows
        drawn = torch.randperm(len(rows))[:limit].sort().values
        return rows[drawn.to(rows.device, non_blocking=True)]
