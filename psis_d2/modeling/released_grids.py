"""The grids of AdelaiDet's CondInst, on which its released weights were trained.

Upsampled maps, targets and pasted masks lie half a cell or less beside where areas would have them.
psis_d2's own grids are aligned by area; these are for ``PSIS.CONDINST.RELEASED_GRIDS``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample(maps: Tensor, factor: int) -> Tensor:
    """Maps `factor` times as large: value i of a side comes to lie at i * factor + factor // 2.

    Bilinear between these places, constant beyond the first and the last.

    Args:
        maps: float [N, C, H, W].
        factor: at least 1.

    Returns:
        float [N, C, factor * H, factor * W].
    """
    if factor == 1:
        return maps
    exact = torch.promote_types(maps.dtype, torch.float32)
    # Places in the input in units of half its side from its center, as grid_sample has them.
    y, x = (
        ((torch.arange(factor * n, device=maps.device, dtype=exact) - factor // 2) / factor + 0.5)
        * (2 / n)
        - 1
        for n in maps.shape[2:]
    )
    grid = torch.stack(torch.broadcast_tensors(x[None], y[:, None]), dim=-1)
    grid = grid.to(maps.dtype).expand(len(maps), *grid.shape)
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)


def pick(masks: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Masks on a coarser grid: one pixel of every cell, the one after its center.

    Args:
        masks: bool [G, height, width].
        stride: side of a cell in pixels.
        size: (H, W) of the grid; cells outside the image are empty.

    Returns:
        float32 [G, H, W] of 0 and 1.
    """
    picked = masks[:, stride // 2 :: stride, stride // 2 :: stride].to(torch.float32)
    result = torch.zeros(len(masks), *size, device=masks.device)
    result[:, : picked.shape[1], : picked.shape[2]] = picked
    return result


def paste(masks: Tensor, stride: int, input_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Masks of an output image: upsampled to the pixels of the input, cut, and resized.

    Args:
        masks: float [N, H, W].
        stride: side of a cell in pixels of the input.
        input_size: (height, width) of the input, not padded.
        size: (height, width) of the output.

    Returns:
        float [N, height, width].
    """
    pixels = upsample(masks[:, None], stride)[:, :, : input_size[0], : input_size[1]]
    return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)[:, 0]
