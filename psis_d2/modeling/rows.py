"""Rows of several images at once, without letting the host wait for a GPU more than once.

An index by a mask waits for each tensor that it is applied to, since the size of the result depends
on values. Instances have half a dozen fields, and a batch has many images.
"""

from collections.abc import Sequence

import torch
from detectron2.layers import cat
from torch import Tensor


def rows_where(*flags: Sequence[Tensor], device: torch.device | None = None) -> list[list[Tensor]]:
    """Which rows are true, of any number of lists of masks; the host waits once.

    Args:
        *flags: each a list with a bool [N] for every image; all on one device. The host waits for
            none that it has itself.
        device: of the result, that of `flags` by default.

    Returns:
        For each list a list of int64 [n], increasing.
    """
    joined = [x for of_images in flags for x in of_images]
    if not joined:
        return [[] for _ in flags]
    on_host = cat(joined).cpu().split([len(x) for x in joined])
    rows = [x.nonzero()[:, 0] for x in on_host]
    # Nothing waits for a copy to the device.
    moved = cat(rows).to(device or joined[0].device, non_blocking=True)
    parts = iter(moved.split([len(x) for x in rows]))
    return [[next(parts) for _ in of_images] for of_images in flags]


def batch_rows(rows: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Rows of images as rows of the whole batch.

    Args:
        rows: int64 [n] of each image.
        sizes: how many rows each image has.

    Returns:
        int64, of all images.
    """
    first, shifted = 0, []
    for of_image, size in zip(rows, sizes, strict=True):
        shifted.append(of_image + first)
        first += size
    return cat(shifted) if shifted else torch.zeros(0, dtype=torch.int64)
