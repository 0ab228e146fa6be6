"""Turn annotated masks into the small targets that mask heads are trained on."""

from psis_d2.data.cropped_masks import CroppedMasks

import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign
from detectron2.structures import BitMasks, Boxes
from torch import Tensor


@torch.no_grad()
def crop_masks(masks: BitMasks | CroppedMasks, index: Tensor, boxes: Boxes, size: int) -> Tensor:
    """Cut one mask out of an image's masks for every box.

    The same sampling as Detectron2's ``BitMasks.crop_and_resize`` (RoIAlign over whole cells, then
    a cut at one half), but several boxes may share a mask: nothing of image size is copied per box.

    Args:
        masks: the image's G masks.
        index: int64 [R], which mask each box cuts.
        boxes: R boxes, XYXY in pixels of `masks`.
        size: side of the result in cells.

    Returns:
        float32 [R, size, size] of 0 and 1.
    """
    if isinstance(masks, CroppedMasks):
        return masks.crop(index, boxes, size)
    rois = torch.cat([index[:, None].to(boxes.tensor), boxes.tensor], dim=1)
    align = ROIAlign((size, size), 1.0, 0, aligned=True)
    crops = align(masks.tensor[:, None].to(dtype=torch.float32), rois.to(dtype=torch.float32))
    return (crops.squeeze(1) >= 0.5).to(dtype=torch.float32)


@torch.no_grad()
def crop_images(images: Tensor, boxes: list[Boxes], size: int) -> Tensor:
    """Cut boxes out of images, a cell being the mean of what it covers.

    Args:
        images: float [N, C, H, W].
        boxes: one entry an image, R boxes in all, XYXY pixels.
        size: side of the result in cells.

    Returns:
        float32 [R, C, size, size]; outside of the images it is 0.
    """
    index = torch.cat([x.tensor.new_full((len(x), 1), n) for n, x in enumerate(boxes)])
    rois = torch.cat([index, torch.cat([x.tensor for x in boxes])], dim=1)
    align = ROIAlign((size, size), 1.0, 0, aligned=True)
    return align(images.to(dtype=torch.float32), rois.to(dtype=torch.float32))


@torch.no_grad()
def cells_in_boxes(boxes: Tensor, frames: Tensor, size: int) -> Tensor:
    """The cells of frames whose centers lie in boxes, edges included.

    Args:
        boxes: float [R, 4], XYXY pixels.
        frames: float [R, 4], each divided into `size` x `size` cells.
        size: cells of a side.

    Returns:
        bool [R, size, size].
    """
    steps = (torch.arange(size, dtype=frames.dtype, device=frames.device) + 0.5) / size
    centers = frames[:, None, :2] + steps[:, None] * (frames[:, 2:] - frames[:, :2])[:, None]
    inside = (centers >= boxes[:, None, :2]) & (centers <= boxes[:, None, 2:])
    return inside[:, :, None, 1] & inside[:, None, :, 0]


@torch.no_grad()
def boundary_targets(masks: Tensor, width: int) -> Tensor:
    """The band along the contours of cropped masks.

    A cell belongs to it if foreground and background both lie at most `width` steps from it, a step
    going to one of the four neighbors. That is the dilated minus the eroded mask, `width` times
    with a cross: `width` cells on either side of a straight contour.

    Cells outside the region are neither foreground nor background: where the region's edge cuts a
    mask there is no boundary, since the edge is the box's and not the object's (so do CPMask's
    authors).

    Args:
        masks: float [R, M, M] of 0 and 1.
        width: at least 1.

    Returns:
        float [R, M, M] of 0 and 1.
    """
    sides = torch.stack([masks, 1 - masks], dim=1)
    for _ in range(width):
        # Pooling pads with minus infinity, which no maximum is.
        sides = torch.maximum(
            F.max_pool2d(sides, (3, 1), stride=1, padding=(1, 0)),
            F.max_pool2d(sides, (1, 3), stride=1, padding=(0, 1)),
        )
    return sides.amin(dim=1)


@torch.no_grad()
def shrink_masks(masks: Tensor, stride: int, size: tuple[int, int], at_a_time: int = 32) -> Tensor:
    """Masks on a coarser grid: the share of each cell that they cover.

    Args:
        masks: bool [G, height, width].
        stride: side of a cell in pixels.
        size: (H, W) of the grid; cells outside the image are empty.
        at_a_time: number of masks that are converted to float32 in full resolution at once.

    Returns:
        float32 [G, H, W] in [0, 1]; cells that the image's edge cuts count what there is of them.
    """
    result = torch.zeros(len(masks), *size, device=masks.device)
    for first in range(0, len(masks), at_a_time):
        part = masks[first : first + at_a_time].to(torch.float32)
        shrunk = F.avg_pool2d(part[:, None], stride, ceil_mode=True)[:, 0]
        result[first : first + at_a_time, : shrunk.shape[1], : shrunk.shape[2]] = shrunk
    return result
