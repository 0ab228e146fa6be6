"""Segment the boxes that a detector found by GrabCut, in place of a mask head."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from psis_d2.data.catalog import get_dataset_dicts
from psis_d2.data.grabcut import GrabCut, cached_grabcut_masks
from psis_d2.data.images import read_image
from psis_d2.data.supervision import restrict_masks

import numpy as np
import torch
from pycocotools import mask as mask_util
from torch import nn


class GrabCutModel(nn.Module):
    """A model whose masks are GrabCut's: "Faster R-CNN tested with GrabCut" (Hu et al., CVPR 2018).

    Masks are cut in the image as its file has it, at full resolution; whatever masks the wrapped
    model predicts are replaced. A box outside the image gets an empty one.

    Args:
        model: any model with Detectron2's outputs, one on given boxes included.
        grabcut: segments one box.
        masks: {(image id, annotation id): RLE} of boxes whose masks are known already; they are
            taken for predictions with ``gt_ids``.
        threads: boxes that are cut at a time; 0 = one a core.
        pixel_range: see :func:`~psis_d2.data.images.read_pixels`.
    """

    def __init__(
        self,
        model: nn.Module,
        grabcut: GrabCut,
        masks: Mapping[tuple, dict] | None = None,
        threads: int = 0,
        pixel_range: Sequence[float] = (),
    ):
        super().__init__()
        self.model = model
        self.grabcut = grabcut
        self.masks = masks or {}
        self.pixel_range = pixel_range
        self.pool = ThreadPoolExecutor(threads or os.cpu_count())

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Detectron2's outputs.

        Args:
            batched_inputs: dicts that need ``file_name``, ``image_id``, ``height`` and ``width`` of
                the original image, beside what the model needs.
        """
        outputs = self.model(batched_inputs)
        for item, output in zip(batched_inputs, outputs, strict=True):
            instances = output["instances"]
            instances.pred_masks = self._segment(item, instances).to(instances.pred_boxes.device)
        return outputs

    def _segment(self, item: dict, instances) -> torch.Tensor:
        """bool [N, height, width]."""
        masks = np.zeros((len(instances), item["height"], item["width"]), dtype=bool)
        ids = instances.gt_ids.tolist() if instances.has("gt_ids") else [None] * len(instances)
        open_rows = []
        for row, key in enumerate(ids):
            known = self.masks.get((item["image_id"], key))
            if known is None:
                open_rows.append(row)
            else:
                masks[row] = mask_util.decode(known)
        if open_rows:
            image = read_image(item, "BGR", self.pixel_range)
            boxes = instances.pred_boxes.tensor.tolist()
            cuts = self.pool.map(lambda row: self.grabcut(image, boxes[row])[0], open_rows)
            for row, mask in zip(open_rows, cuts, strict=True):
                if mask is not None:
                    masks[row] = mask
        return torch.from_numpy(masks)


def build_grabcut_model(cfg, model: nn.Module, name: str, annotated_boxes: bool) -> GrabCutModel:
    """The model with GrabCut's masks; those of annotated boxes come from the cache.

    Args:
        cfg: the config.
        model: its model, wrapped for given boxes if they are.
        name: the data set that is evaluated.
        annotated_boxes: whether the model's boxes are the annotations' as they are.
    """
    masks = None
    if annotated_boxes:
        dicts = get_dataset_dicts(name, cfg.PSIS.CROWDS)
        restrict_masks(dicts, seen_ids=())  # GrabCut cuts what has no mask: everything
        masks = cached_grabcut_masks(cfg, dicts, name)
    return GrabCutModel(
        model,
        GrabCut.from_config(cfg),
        masks,
        cfg.PSIS.GRABCUT.THREADS,
        pixel_range=cfg.PSIS.PIXEL_RANGE,
    )
