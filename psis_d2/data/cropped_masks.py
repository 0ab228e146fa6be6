"""Bit masks of an image that are kept only where they have foreground."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.layers import ROIAlign
from detectron2.structures import BitMasks, Boxes
from torch import Tensor

# Masks that are laid out in float32 over the image at once: 4 MB each at 1000 x 1000 pixels.
_AT_A_TIME = 32


class CroppedMasks:
    """N bit masks of one image, each as the rectangle that its foreground fills.

    It has the interface of Detectron2's ``BitMasks`` and says the same, since nothing outside of
    the rectangles is foreground; but an image with many objects costs what they cover, and one
    without a mask costs nothing. Detectron2's ``Instances`` carry it.

    Attributes:
        bits: bool [P], the pixels of all rectangles row by row, one rectangle after the other.
        rows: int64 [N, 5], of each mask the rectangle x0, y0, x1, y1 in pixels, x1 and y1 not
            included, and its first place in ``bits``; zeros where there is no foreground. Always on
            the CPU, so that laying masks out never waits for a GPU.
        image_size: (height, width).
    """

    def __init__(self, bits: Tensor, rows: Tensor, image_size: tuple[int, int]):
        self.bits = bits
        self.rows = rows
        self.image_size = tuple(image_size)

    @classmethod
    def from_crops(
        cls, crops: Sequence[tuple[np.ndarray, int, int] | None], image_size: tuple[int, int]
    ) -> CroppedMasks:
        """Make it of parts of masks.

        Args:
            crops: for each mask the rectangle that its foreground fills, a bool or uint8 array
                [h, w], and the column and the row of the image where it begins; None for no mask.
            image_size: (height, width).
        """
        parts, rows, start = [], np.zeros((len(crops), 5), dtype=np.int64), 0
        for row, crop in zip(rows, crops, strict=True):
            if crop is None:
                continue
            pixels, x, y = crop
            parts.append(pixels.reshape(-1))
            row[:] = x, y, x + pixels.shape[1], y + pixels.shape[0], start
            start += pixels.size
        bits = np.empty(start, dtype=bool)
        if parts:
            np.concatenate(parts, out=bits, casting="unsafe")
        return cls(torch.from_numpy(bits), torch.from_numpy(rows), image_size)

    @classmethod
    def from_dense(cls, masks: Tensor) -> CroppedMasks:
        """Make it of masks bool [N, height, width]; the result is on their device."""
        crops = [tighten(mask, 0, 0) for mask in masks.cpu().numpy()]
        return cls.from_crops(crops, masks.shape[1:]).to(masks.device)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"CroppedMasks(num_instances={len(self)}, image_size={self.image_size})"

    @property
    def device(self) -> torch.device:
        return self.bits.device

    def to(self, *args, **kwargs) -> CroppedMasks:
        """A copy of the pixels elsewhere; arguments are those of ``Tensor.to``."""
        return CroppedMasks(self.bits.to(*args, **kwargs), self.rows, self.image_size)

    def pin_memory(self) -> CroppedMasks:
        """For copies to a GPU that nothing waits for."""
        return CroppedMasks(self.bits.pin_memory(), self.rows, self.image_size)

    def __getitem__(self, item: int | slice | Tensor) -> CroppedMasks:
        """Some of the masks; an index on a GPU is waited for. The pixels are shared."""
        if isinstance(item, int):
            item = slice(item, item + 1) if item != -1 else slice(-1, None)
        rows = self.rows[item.cpu() if isinstance(item, Tensor) else item]
        return CroppedMasks(self.bits, rows, self.image_size)

    @staticmethod
    def cat(masks: list[CroppedMasks]) -> CroppedMasks:
        """All masks of a list, which are of one image."""
        rows, start = [], 0
        for part in masks:
            rows.append(part.rows + start * torch.tensor([0, 0, 0, 0, 1]))
            start += len(part.bits)
        bits = torch.cat([part.bits for part in masks])
        return CroppedMasks(bits, torch.cat(rows), masks[0].image_size)

    def nonempty(self) -> Tensor:
        """bool [N], on the device of the pixels: which masks have any foreground."""
        return (self.rows[:, 2] > self.rows[:, 0]).to(self.device)

    def get_bounding_boxes(self) -> Boxes:
        """Of the foreground, on the device of the pixels; zeros where there is none."""
        return Boxes(self.rows[:, :4].to(self.device, torch.float32))

    @property
    def tensor(self) -> Tensor:
        """bool [N, height, width], a new one each time: writing into it changes no mask."""
        return self.dense()

    def dense(self, keep: Tensor | None = None) -> Tensor:
        """Masks laid out over the whole image.

        Args:
            keep: bool [N] or int64, which of them; None for all.

        Returns:
            bool [n, height, width].
        """
        masks = self if keep is None else self[keep]
        return masks._lay_out(torch.bool, *self.image_size)

    def union(self, keep: Tensor) -> Tensor:
        """Where any of some masks is.

        Args:
            keep: bool [N], on the device of the pixels. It is not waited for.

        Returns:
            bool [height, width].
        """
        result = torch.zeros(self.image_size, dtype=torch.bool, device=self.device)
        for number, (window, pixels) in self._crops():
            result[window] |= pixels & keep[number]
        return result

    @torch.no_grad()
    def crop(self, index: Tensor, boxes: Boxes, size: int) -> Tensor:
        """Cut one mask out for every box, as Detectron2's ``BitMasks.crop_and_resize`` does.

        The same bits come out of the same sampling: each mask is laid out from the image's upper
        left corner, as moving it would round coordinates differently.

        Args:
            index: int64 [R], which mask each box cuts.
            boxes: R boxes, XYXY in pixels.
            size: side of the result in cells.

        Returns:
            float32 [R, size, size] of 0 and 1.
        """
        align = ROIAlign((size, size), 1.0, 0, aligned=True)
        rois = torch.cat([index[:, None].to(boxes.tensor), boxes.tensor], dim=1).float()
        total = rois.new_zeros(len(rois), size, size)
        for first in range(0, len(self), _AT_A_TIME):
            part = self[first : first + _AT_A_TIME]
            # One row and column of background behind the last foreground, unless the image ends
            # there: beyond an edge, the sampling repeats the edge.
            right, bottom = (int(side) + 1 for side in part.rows[:, 2:4].amax(dim=0))
            height, width = min(bottom, self.image_size[0]), min(right, self.image_size[1])
            masks = part._lay_out(torch.float32, height, width)
            own = rois
            if len(self) > _AT_A_TIME:
                # Boxes of other masks become empty ones, which have no samples: no branch has to
                # wait for what `index` says.
                mine = (index >= first) & (index < first + _AT_A_TIME)
                own = (rois - rois.new_tensor([first, 0, 0, 0, 0])) * mine[:, None]
            total += align(masks[:, None], own)[:, 0]
        return (total >= 0.5).to(torch.float32)

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """See Detectron2's ``BitMasks``: bool [N, mask_size, mask_size], one box [N, 4] a mask."""
        return self.crop(torch.arange(len(self), device=boxes.device), Boxes(boxes), mask_size) > 0

    def _crops(self):
        """(number, (window of the image, bool [h, w])) of all masks with foreground."""
        for number, (x0, y0, x1, y1, start) in enumerate(self.rows.tolist()):
            if x1 > x0:
                pixels = self.bits[start : start + (y1 - y0) * (x1 - x0)]
                yield number, ((slice(y0, y1), slice(x0, x1)), pixels.view(y1 - y0, x1 - x0))

    def _lay_out(self, dtype: torch.dtype, height: int, width: int) -> Tensor:
        """[N, height, width], which hold all foreground."""
        result = torch.zeros(len(self), height, width, dtype=dtype, device=self.device)
        for number, (window, pixels) in self._crops():
            result[(number, *window)] = pixels
        return result


def tighten(pixels: np.ndarray, x: int, y: int) -> tuple[np.ndarray, int, int] | None:
    """A part of a mask, bool or uint8 [h, w] from (x, y) on, for CroppedMasks.from_crops."""
    rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    top, left = int(rows[0]), int(columns[0])
    return pixels[top : rows[-1] + 1, left : columns[-1] + 1], x + left, y + top


def full_masks(masks: BitMasks | CroppedMasks, keep: Tensor) -> Tensor:
    """Some of an image's masks, whatever holds them.

    Args:
        masks: N masks.
        keep: bool [N].

    Returns:
        bool [n, height, width].
    """
    return masks.dense(keep) if isinstance(masks, CroppedMasks) else masks.tensor[keep]


def union_of_masks(masks: BitMasks | CroppedMasks, keep: Tensor) -> Tensor:
    """Where any of some of an image's masks is: bool [height, width]; arguments as above."""
    if isinstance(masks, CroppedMasks):
        return masks.union(keep)
    return (masks.tensor & keep[:, None, None]).any(dim=0)
