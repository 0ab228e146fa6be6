"""Measure masks apart from detection: the boxes come from the annotations."""

import torch
from detectron2.structures import Instances
from torch import nn


class GivenBoxModel(nn.Module):
    """A model whose detections are the annotated boxes and classes of its inputs.

    Wraps any meta-architecture with Detectron2's ``inference(batched_inputs,
    detected_instances)``. Inputs need ``instances`` with ``gt_boxes``, ``gt_classes`` and
    ``gt_ids``, in the frame of the (resized) input image.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model.module if hasattr(model, "module") else model

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Detectron2's outputs, with ``gt_ids`` (annotation ids) beside every prediction."""
        given = []
        for item in batched_inputs:
            truth = item["instances"]
            given.append(
                Instances(
                    truth.image_size,
                    # Detectron2's post-processing scales boxes in place.
                    pred_boxes=truth.gt_boxes.clone(),
                    pred_classes=truth.gt_classes,
                    scores=torch.ones(len(truth)),
                    gt_ids=truth.gt_ids,
                )
            )
        return self.model.inference(batched_inputs, given)
