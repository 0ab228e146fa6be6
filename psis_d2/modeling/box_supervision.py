"""What a box says about a mask: BoxInst's two losses (Tian et al., CVPR 2021).

Projection: the mask's extents are the box's. Pairwise: pixels of like color in
and around the box belong together. Both are computed on maps of a coarser grid
than the image's, whose cells are squares of `stride` pixels.

Legend: N instances, B images, H x W cells, D = 4 directions.
"""

from psis_d2.errors import UserError, check_choice
from psis_d2.modeling.losses import dice_loss
from psis_d2.optional import require

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_TO_LAB = {"BGR": "COLOR_BGR2Lab", "RGB": "COLOR_RGB2Lab"}  # of OpenCV


def box_cells(boxes: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """The rectangles of cells that boxes cover.

    A cell is covered if its center is; a box without one covers the cell that its own center is in,
    so that no rectangle is empty.

    Args:
        boxes: float [N, 4], XYXY pixels.
        stride: side of a cell in pixels.
        size: (H, W).

    Returns:
        int64 [N, 4]: first column, first row, last column, last row, the last ones included.
    """
    limit = boxes.new_tensor([size[1] - 1, size[0] - 1])
    first = (boxes[:, :2] / stride - 0.5).ceil()
    last = (boxes[:, 2:] / stride - 0.5).floor()
    center = ((boxes[:, :2] + boxes[:, 2:]) / (2 * stride)).floor()
    nothing = last < first
    first, last = (torch.where(nothing, center, x).clamp(min=0) for x in (first, last))
    return torch.cat([first.minimum(limit), last.minimum(limit)], dim=1).long()


def cell_indicators(cells: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Which columns and which rows rectangles of cells have.

    Args:
        cells: int64 [N, 4], of :func:`box_cells`.
        size: (H, W).

    Returns:
        bool [N, W] and bool [N, H].
    """
    x, y = (torch.arange(n, device=cells.device) for n in (size[1], size[0]))
    columns = (x >= cells[:, :1]) & (x <= cells[:, 2:3])
    rows = (y >= cells[:, 1:2]) & (y <= cells[:, 3:])
    return columns, rows


def projection_loss(probabilities: Tensor, cells: Tensor) -> Tensor:
    """How far the extents of masks are from those of their boxes.

    The maxima of the mask over rows and over columns are compared with the box's by the Dice loss.

    Args:
        probabilities: float [N, H, W].
        cells: int64 [N, 4], of :func:`box_cells`.

    Returns:
        float [N] in [0, 2], the sum of both directions; 0 for a mask that fills its box.
    """
    columns, rows = cell_indicators(cells, probabilities.shape[-2:])
    on_columns = dice_loss(probabilities.amax(dim=1), columns.to(probabilities.dtype))
    return on_columns + dice_loss(probabilities.amax(dim=2), rows.to(probabilities.dtype))


def lab_image(image: Tensor, image_format: str, stride: int) -> Tensor:
    """The mean colors of an image's cells in CIE L*a*b* (D65), in which distances are seen ones.

    Args:
        image: uint8 [3, height, width], on the CPU.
        image_format: "BGR" or "RGB".
        stride: side of a cell in pixels; cells at the lower and right edge may be cut off.

    Returns:
        float32 [3, ceil(height / stride), ceil(width / stride)].

    Raises:
        UserError: another format has no colors.
    """
    check_choice("INPUT.FORMAT", image_format, _TO_LAB)
    if image.dtype != torch.uint8:
        raise UserError(f"Colors need images of type uint8, not {image.dtype}.")
    # Cells that are cut off are averaged over what there is of them.
    cells = F.avg_pool2d(image[None].float(), stride, ceil_mode=True)[0] / 255
    colors = np.ascontiguousarray(cells.permute(1, 2, 0).numpy())
    cv2 = require("cv2")
    conversion = getattr(cv2, _TO_LAB[image_format])
    return torch.from_numpy(cv2.cvtColor(colors, conversion)).permute(2, 0, 1)


def directions(dilation: int) -> list[tuple[int, int]]:
    """(down, right) of four of a cell's eight neighbors; the others are their opposites."""
    return [(0, dilation), (dilation, -dilation), (dilation, 0), (dilation, dilation)]


def pair_windows(height: int, width: int, step: tuple[int, int]) -> tuple[tuple, tuple]:
    """Index of all cells that have a neighbor in a direction, and of these neighbors."""
    down, right = step
    here = slice(0, max(height - down, 0)), slice(max(-right, 0), max(width - max(right, 0), 0))
    there = slice(down, height), slice(max(right, 0), max(width + min(right, 0), 0))
    return (..., *here), (..., *there)


def similar_neighbors(
    colors: Tensor, size: tuple[int, int], valid_rows: int, dilation: int, threshold: float
) -> Tensor:
    """Which neighbors have like colors: exp(-distance / 2) of at least a threshold.

    Args:
        colors: float [3, h, w], of :func:`lab_image`.
        size: (H, W) of the result, at least (h, w): the batch's padding included.
        valid_rows: rows below take no part.
        dilation: distance of neighbors in cells.
        threshold: of the similarity, in [0, 1].

    Returns:
        bool [D, H, W], the cell's similarity to its neighbor in each of :func:`directions`; false
        where one of the two is no cell of the image.
    """
    similar = torch.zeros(4, *size, dtype=torch.bool)
    colors = colors[:, :valid_rows]
    height, width = colors.shape[-2:]
    for k, step in enumerate(directions(dilation)):
        here, there = pair_windows(height, width, step)
        distance = (colors[here] - colors[there]).norm(dim=0)
        similar[k, :height, :width][here[1:]] = (-distance / 2).exp() >= threshold
    return similar


def pairwise_loss(
    logits: Tensor, cells: Tensor, similar: Tensor, images: Tensor, dilation: int
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of "both in the mask or both out of it" for pairs of like color.

    The probability of that is p q + (1 - p)(1 - q) for independent pixels, and minus its logarithm
    is s(x) + s(y) - s(x + y) of their logits, s being the softplus. Both directions of a pair count
    alike, so that four of the eight are computed; and only pairs of which a cell lies in the box
    are touched, so that memory goes with the boxes' area.

    Args:
        logits: float [N, H, W].
        cells: int64 [N, 4], of :func:`box_cells`. A pair counts once for each of its cells that
            lies inside.
        similar: bool [B, D, H, W], of :func:`similar_neighbors`; all other pairs do not count.
        images: int64 [N], rows of `similar`.
        dilation: as in `similar`.

    Returns:
        Two float scalars, the sum over pairs and their number: the loss is their quotient.
    """
    height, width = logits.shape[-2:]
    columns, rows = cell_indicators(cells, (height, width))
    inside = rows[:, :, None] & columns[:, None]
    flat = logits.flatten()
    total, count = flat.new_zeros(()), flat.new_zeros(())
    for k, (down, right) in enumerate(directions(dilation)):
        here, there = pair_windows(height, width, (down, right))
        weights = torch.zeros_like(inside, dtype=torch.uint8)
        weights[here] = inside[here].byte() + inside[there].byte()
        weights *= similar[images, k]
        pairs = weights.flatten().nonzero()[:, 0]
        x, y = flat[pairs], flat[pairs + down * width + right]
        weight = weights.flatten()[pairs].to(flat.dtype)
        losses = F.softplus(x) + F.softplus(y) - F.softplus(x + y)
        total = total + (weight * losses).sum()
        count = count + weight.sum()
    return total, count
