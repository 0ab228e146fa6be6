"""What a box says about a mask: BoxInst's two losses (Tian et al., CVPR 2021).

Projection: the mask's extents are the box's. Pairwise: pixels of like color in
and around the box belong together. Both are computed on maps of a coarser grid
than the image's, whose cells are squares of `stride` pixels.

Legend: N instances, B images, H x W cells, D = 4 directions.
"""

from psis_d2.errors import UserError, check_choice
from psis_d2.modeling.losses import dice_loss

import torch
import torch.nn.functional as F
from torch import Tensor

FORMATS = ("BGR", "RGB")


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
    first = (boxes[:, :2] / stride - 0.5).ceil()
    last = (boxes[:, 2:] / stride - 0.5).floor()
    center = ((boxes[:, :2] + boxes[:, 2:]) / (2 * stride)).floor()
    nothing = last < first
    corners = torch.cat([torch.where(nothing, center, x) for x in (first, last)], dim=1)
    columns, rows = corners[:, 0::2].clamp(0, size[1] - 1), corners[:, 1::2].clamp(0, size[0] - 1)
    return torch.stack([columns, rows], dim=2).flatten(1).long()


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


def check_format(image_format: str) -> None:
    """Raises a UserError if ``INPUT.FORMAT`` has no colors."""
    check_choice("INPUT.FORMAT", image_format, FORMATS)


def lab_colors(colors: Tensor, image_format: str) -> Tensor:
    """Colors in CIE L*a*b* (D65), in which distances are seen ones.

    Args:
        colors: float [N, 3, ...] in [0, 1], sRGB.
        image_format: "BGR" or "RGB".

    Returns:
        float of the same shape.

    Raises:
        UserError: another format has no colors.
    """
    check_format(image_format)
    if image_format == "BGR":
        colors = colors.flip(1)
    linear = torch.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    r, g, b = linear.unbind(dim=1)
    # ITU-R BT.709 primaries, divided by the white point. Not a matrix: a GPU would wait for it.
    x = (0.412453 * r + 0.357580 * g + 0.180423 * b) / 0.950456
    y = 0.212671 * r + 0.715160 * g + 0.072169 * b
    z = (0.019334 * r + 0.119193 * g + 0.950227 * b) / 1.088754
    xyz = torch.stack([x, y, z], dim=1)
    root = torch.where(xyz > 0.008856, xyz.clamp(min=1e-6) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = root.unbind(dim=1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def lab_image(image: Tensor, image_format: str, stride: int) -> Tensor:
    """The mean colors of an image's cells, see :func:`lab_colors`.

    Args:
        image: uint8 [3, height, width]. On a GPU nothing waits for it; OpenCV's conversion would
            hold up the host for 11 ms an image of 800 pixels.
        image_format: "BGR" or "RGB".
        stride: side of a cell in pixels; cells at the lower and right edge may be cut off.

    Returns:
        float32 [3, ceil(height / stride), ceil(width / stride)].

    Raises:
        UserError: another format has no colors.
    """
    if image.dtype != torch.uint8:
        raise UserError(f"Colors need images of type uint8, not {image.dtype}.")
    # Cells that are cut off are averaged over what there is of them.
    cells = F.avg_pool2d(image[None].float(), stride, ceil_mode=True) / 255
    return lab_colors(cells, image_format)[0]


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
    similar = torch.zeros(4, *size, dtype=torch.bool, device=colors.device)
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
    steps = directions(dilation)
    weights = torch.zeros(len(steps), *inside.shape, dtype=torch.uint8, device=flat.device)
    for k, step in enumerate(steps):
        here, there = pair_windows(height, width, step)
        weights[k][here] = inside[here].byte() + inside[there].byte()
        weights[k] *= similar[images, k]
    # All directions at once: on a GPU, the host waits for each list of places.
    direction, first = weights.flatten(1).nonzero().unbind(dim=1)
    weight = weights.flatten(1)[direction, first].to(flat.dtype)
    away = torch.tensor([down * width + right for down, right in steps])
    second = first + away.to(flat.device, non_blocking=True)[direction]
    x, y = flat[first], flat[second]
    losses = F.softplus(x) + F.softplus(y) - F.softplus(x + y)
    return (weight * losses).sum(), weight.sum()
