"""Maps of the masks' grid inside of boxes, in the same number of cells whatever the box.

Legend: n instances, H x W cells of the masks' grid, S x S cells of a box.
"""

import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign
from torch import Tensor


def edges_of(cells: Tensor) -> Tensor:
    """The outlines of rectangles of cells, float32 [n, 4], XYXY in cells.

    Args:
        cells: int64 [n, 4], of :func:`~psis_d2.modeling.box_supervision.box_cells`.
    """
    return torch.cat([cells[:, :2], cells[:, 2:] + 1], dim=1).float()


def pool_from_boxes(maps: Tensor, cells: Tensor, side: int) -> Tensor:
    """What maps have in their boxes, a cell being the mean of what it covers.

    Args:
        maps: float [n, H, W].
        cells: int64 [n, 4], of :func:`~psis_d2.modeling.box_supervision.box_cells`.
        side: S.

    Returns:
        float32 [n, S, S].
    """
    index = torch.arange(len(maps), device=maps.device)[:, None]
    rois = torch.cat([index.float(), edges_of(cells)], dim=1)
    align = ROIAlign((side, side), 1.0, 0, aligned=True)
    return align(maps[:, None].float(), rois)[:, 0]


def paste_into_boxes(values: Tensor, cells: Tensor, maps: Tensor) -> Tensor:
    """Maps with other values in their boxes, bilinear between the centers of the boxes' cells.

    Args:
        values: float [n, S, S].
        cells: int64 [n, 4], of :func:`~psis_d2.modeling.box_supervision.box_cells`.
        maps: float [n, H, W], what there is outside of the boxes.

    Returns:
        float [n, H, W].
    """
    height, width = maps.shape[-2:]
    edges = edges_of(cells)
    x, y = (torch.arange(n, device=maps.device) + 0.5 for n in (width, height))
    # Of the centers of the grid's cells, from -1 to 1 within a box.
    x, y = (
        2 * (centers - edges[:, k, None]) / (edges[:, k + 2] - edges[:, k])[:, None] - 1
        for k, centers in enumerate((x, y))
    )
    grid = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), dim=-1)
    pasted = F.grid_sample(values[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    inside = (x.abs() < 1)[:, None] & (y.abs() < 1)[:, :, None]
    return torch.where(inside, pasted.to(maps.dtype), maps)
