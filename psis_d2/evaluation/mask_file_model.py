"""Measure masks that lie in a file as if a model had drawn them in the annotated boxes."""

from collections.abc import Mapping, Sequence

from psis_d2.data.foreign_masks import ForeignMask, as_rle, match_masks, names_file, read_mask_file
from psis_d2.errors import UserError

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_util
from torch import nn


class MaskFileModel(nn.Module):
    """A model whose predictions are the masks of a file; it does not look at the images.

    Args:
        masks: {(image id, annotation id): mask}; annotated boxes without one get no prediction.
    """

    def __init__(self, masks: Mapping[tuple, ForeignMask]):
        super().__init__()
        self.masks = masks

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Detectron2's outputs, with ``gt_ids`` (annotation ids) beside every prediction.

        Args:
            batched_inputs: dicts with ``instances`` (``gt_boxes``, ``gt_classes``, ``gt_ids`` in
                the frame of the input), ``image_id``, ``height`` and ``width`` of the original.
        """
        return [{"instances": self._of_image(item)} for item in batched_inputs]

    def _of_image(self, item: dict) -> Instances:
        truth, size = item["instances"], (item["height"], item["width"])
        found = [self.masks.get((item["image_id"], key)) for key in truth.gt_ids.tolist()]
        has_one = torch.tensor([mask is not None for mask in found], dtype=torch.bool)
        found = [mask for mask in found if mask is not None]
        masks = np.zeros((len(found), *size), dtype=bool)
        for row, mask in enumerate(found):
            masks[row] = mask_util.decode(as_rle(mask.segmentation, *size))
        boxes = Boxes(truth.gt_boxes.tensor[has_one].clone())
        boxes.scale(size[1] / truth.image_size[1], size[0] / truth.image_size[0])
        return Instances(
            size,
            pred_boxes=boxes,
            pred_classes=truth.gt_classes[has_one],
            scores=torch.tensor([mask.score for mask in found], dtype=torch.float32),
            gt_ids=truth.gt_ids[has_one],
            pred_masks=torch.from_numpy(masks),
        )


def check_mask_file(cfg) -> None:
    """Make sure that a file of masks is measured in the boxes that its masks are of.

    Raises:
        UserError: ``TEST.MASKS`` names a file, and ``TEST.BOXES`` or ``TEST.BOX_SHRINK`` other
            boxes.
    """
    if not names_file(cfg.TEST.MASKS):
        return
    for key, value, wanted in (
        ("TEST.BOXES", cfg.TEST.BOXES, "gt"),
        ("TEST.BOX_SHRINK", cfg.TEST.BOX_SHRINK, 1.0),
    ):
        if value != wanted:
            raise UserError(
                f"{key} is {value}, but TEST.MASKS {cfg.TEST.MASKS} has masks of annotated boxes "
                f"alone; set {key} {wanted}."
            )


def build_mask_file_model(cfg, dicts: Sequence[dict]) -> MaskFileModel:
    """The model of the file ``TEST.MASKS``, see :func:`~psis_d2.data.foreign_masks.match_masks`.

    Args:
        cfg: the config.
        dicts: what is evaluated.
    """
    return MaskFileModel(match_masks(read_mask_file(cfg.TEST.MASKS, "TEST.MASKS"), dicts).masks)
