"""Turn annotated masks into the small targets that RoI mask heads are trained on."""

import torch
from detectron2.layers import ROIAlign
from detectron2.structures import Boxes
from torch import Tensor


@torch.no_grad()
def crop_masks(masks: Tensor, index: Tensor, boxes: Boxes, size: int) -> Tensor:
    """Cut one mask out of an image's masks for every box.

    The same sampling as Detectron2's ``BitMasks.crop_and_resize`` (RoIAlign over whole cells, then
    a cut at one half), but several boxes may share a mask: nothing of image size is copied per box.

    Args:
        masks: bool [G, H, W], the image's masks.
        index: int64 [R], which mask each box cuts.
        boxes: R boxes, XYXY in pixels of `masks`.
        size: side of the result in cells.

    Returns:
        float32 [R, size, size] of 0 and 1.
    """
    rois = torch.cat([index[:, None].to(boxes.tensor), boxes.tensor], dim=1)
    align = ROIAlign((size, size), 1.0, 0, aligned=True)
    crops = align(masks[:, None].to(dtype=torch.float32), rois.to(dtype=torch.float32))
    return (crops.squeeze(1) >= 0.5).to(dtype=torch.float32)
