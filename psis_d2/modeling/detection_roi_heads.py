"""ROI heads behind a one-stage detector: its proposals are the detections, there is no box branch.

The mask branch is that of :class:`~psis_d2.modeling.roi_heads.PartialROIHeads`: the same switch of
training boxes, the same context for the mask head.
"""

from psis_d2.errors import UserError
from psis_d2.modeling.roi_heads import PartialROIHeads

import torch
from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import Tensor


@ROI_HEADS_REGISTRY.register()
class DetectionROIHeads(PartialROIHeads):
    """A mask branch on proposals that carry ``scores`` and ``pred_classes``.

    In training, proposals and annotated boxes are matched and sampled by ``MODEL.ROI_HEADS`` as
    two-stage proposals are; with ``PSIS.MASK_TRAIN_BOXES`` "proposals" the foreground among them
    trains the mask head (RetinaMask; its released code too appends the annotated boxes to the
    detections and matches at an IoU of 0.5). CPMask's released code discards the detections and
    trains on the annotated boxes: "gt".

    At test time the proposals become the detections as they are: score threshold, non-maximum
    suppression and the number of detections are the detector's.
    """

    @configurable
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        if not self.mask_on:
            return
        needs = self.mask_head.needs
        if needs.box_predictor or needs.box_features:
            read = "weights of a box predictor" if needs.box_predictor else "maps of a box head"
            raise UserError(
                f"{type(self.mask_head).__name__} reads the {read}, and one-stage detectors have "
                "none; use MODEL.ROI_HEADS.NAME PartialROIHeads with MODEL.PROPOSAL_GENERATOR.NAME "
                "RPN."
            )

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        names = ("box_in_features", "box_pooler", "box_head", "box_predictor")
        return dict.fromkeys(names)

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """See Detectron2's ``ROIHeads.forward``; same arguments and results."""
        if not all(x.has("scores") and x.has("pred_classes") for x in proposals):
            raise UserError(
                "DetectionROIHeads takes the detections of a one-stage detector; set "
                "MODEL.PROPOSAL_GENERATOR.NAME to FCOS or RetinaNet, or MODEL.ROI_HEADS.NAME to "
                "PartialROIHeads."
            )
        if not self.training:
            detections = [
                Instances(
                    x.image_size,
                    pred_boxes=x.proposal_boxes,
                    scores=x.scores,
                    pred_classes=x.pred_classes,
                )
                for x in proposals
            ]
            return self.forward_with_given_boxes(features, detections), {}
        if not self.mask_on:
            return proposals, {}
        sampled = self.label_and_sample_proposals(proposals, targets)
        rows = self._sampled_rows(sampled)
        context = self._training_context(images, features, sampled, targets, rows)
        return sampled, self.mask_head(context)

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """See :class:`PartialROIHeads`; scores and predicted classes play no part in it."""
        # Detectron2 appends annotated boxes to proposals with just these fields.
        boxes = [
            Instances(
                x.image_size,
                proposal_boxes=x.proposal_boxes,
                objectness_logits=x.scores.logit(),
            )
            for x in proposals
        ]
        return super().label_and_sample_proposals(boxes, targets)
