"""Measure masks apart from detection: in annotated boxes, or in boxes that are too small."""

import hashlib
from dataclasses import dataclass

from psis_d2.errors import UserError

import torch
from detectron2.structures import Boxes, Instances
from torch import nn


@dataclass(frozen=True)
class BoxShrink:
    """Boxes with both sides multiplied by random factors (ShapeMask, ICCV 2019, Tab. 3).

    The center stays, so that the paper's factors from U(0.75, 1) leave a box inside itself. What is
    drawn depends on the seed, the image and the box's place in the list: not on the model, the
    order of the images or the number of processes.

    Args:
        least: smallest factor.
        seed: of the draws.
    """

    least: float
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.least <= 1:
            raise UserError(
                f"TEST.BOX_SHRINK is {self.least}; give a factor above 0, or 1 for no shrinking."
            )

    def __call__(self, boxes: Boxes, image_id) -> Boxes:
        """N smaller boxes in the place of N boxes of an image."""
        digest = hashlib.sha256(f"{self.seed}:{image_id}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        factors = self.least + (1 - self.least) * torch.rand(len(boxes), 2, generator=generator)
        center = boxes.get_centers().repeat(1, 2)
        return Boxes(center + (boxes.tensor - center) * factors.repeat(1, 2).to(boxes.device))


class GivenBoxModel(nn.Module):
    """A model whose detections are the annotated boxes and classes of its inputs.

    Wraps any meta-architecture with Detectron2's ``inference(batched_inputs,
    detected_instances)``. Inputs need ``instances`` with ``gt_boxes``, ``gt_classes`` and
    ``gt_ids``, in the frame of the (resized) input image.

    Args:
        model: the model.
        shrink: what to do to the boxes first, None for nothing.
    """

    def __init__(self, model: nn.Module, shrink: BoxShrink | None = None):
        super().__init__()
        self.model = model.module if hasattr(model, "module") else model
        self.shrink = shrink

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Detectron2's outputs, with ``gt_ids`` (annotation ids) beside every prediction."""
        given = []
        for item in batched_inputs:
            truth = item["instances"]
            # Detectron2's post-processing scales boxes in place.
            boxes = truth.gt_boxes.clone()
            given.append(
                Instances(
                    truth.image_size,
                    pred_boxes=self.shrink(boxes, item["image_id"]) if self.shrink else boxes,
                    pred_classes=truth.gt_classes,
                    scores=torch.ones(len(truth)),
                    gt_ids=truth.gt_ids,
                )
            )
        return self.model.inference(batched_inputs, given)


class ShrunkBoxModel(nn.Module):
    """A model that draws masks in boxes smaller than those it has detected.

    Args:
        model: any meta-architecture with Detectron2's ``inference``.
        shrink: what to do to the boxes.
    """

    def __init__(self, model: nn.Module, shrink: BoxShrink):
        super().__init__()
        self.model = model.module if hasattr(model, "module") else model
        self.shrink = shrink

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Detectron2's outputs; boxes are the smaller ones."""
        detections = self.model.inference(batched_inputs, do_postprocess=False)
        given = [
            Instances(
                found.image_size,
                pred_boxes=self.shrink(found.pred_boxes, item["image_id"]),
                pred_classes=found.pred_classes,
                scores=found.scores,
            )
            for item, found in zip(batched_inputs, detections, strict=True)
        ]
        return self.model.inference(batched_inputs, given)
