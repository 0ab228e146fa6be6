"""A region proposal network for images in which not everything is annotated."""

import torch
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.structures import Boxes, Instances
from torch import Tensor


@PROPOSAL_GENERATOR_REGISTRY.register()
class PartialRPN(RPN):
    """Detectron2's RPN that takes no background from images annotated for a part of the classes.

    What is no annotated object there may be an object of another class. Targets say so by
    ``gt_exhaustive`` (bool, the same for all of an image's objects); without that field nothing
    differs from Detectron2's.
    """

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See Detectron2's ``RPN``: labels 1 object, 0 background, -1 not sampled, and boxes."""
        labels, boxes = super().label_and_sample_anchors(anchors, gt_instances)
        for label, target in zip(labels, gt_instances, strict=True):
            if target.has("gt_exhaustive") and not target.gt_exhaustive.all():
                label[label == 0] = -1
        return labels, boxes
