"""Soft masks of the whole image on a coarse grid, not of a region."""

from psis_d2.modeling import released_grids

import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, ROIMasks
from torch import Tensor

# Masks of the output's size that are made at a time, in float32.
_AT_A_TIME = 16


class ImageMasks(ROIMasks):
    """Detectron2's ``ROIMasks`` for masks that no box frames.

    Detectron2 pastes masks into boxes; these are stretched over the image, and they may reach
    outside of the boxes that stand beside them.

    Args:
        tensor: float [N, H, W] in [0, 1], on a grid that starts at the image's upper left corner.
        stride: side of a cell in pixels of the input image.
        image_size: (height, width) of the input image, not padded.
        released: pasted as AdelaiDet does, see :mod:`psis_d2.modeling.released_grids`.
    """

    def __init__(
        self, tensor: Tensor, stride: int, image_size: tuple[int, int], released: bool = False
    ):
        super().__init__(tensor)
        self.stride = stride
        self.input_size = image_size
        self.released = released

    def to(self, device) -> "ImageMasks":
        return self._with(self.tensor.to(device))

    def __getitem__(self, item) -> "ImageMasks":
        return self._with(super().__getitem__(item).tensor)

    def _with(self, tensor: Tensor) -> "ImageMasks":
        return ImageMasks(tensor, self.stride, self.input_size, self.released)

    def to_bitmasks(self, boxes, height: int, width: int, threshold: float = 0.5):
        """Masks of an image of (height, width), bilinear; `boxes` are not asked."""
        masks = torch.zeros(len(self), height, width, dtype=torch.bool, device=self.device)
        for first in range(0, len(self), _AT_A_TIME):
            part = self.tensor[first : first + _AT_A_TIME].float()
            masks[first : first + _AT_A_TIME] = self._paste(part, height, width) >= threshold
        return BitMasks(masks)

    def _paste(self, part: Tensor, height: int, width: int) -> Tensor:
        """Soft masks float [n, H, W] to float [n, height, width]."""
        if self.released:
            size = (height, width)
            return released_grids.paste(part, self.stride, self.input_size, size)
        centers = [
            (torch.arange(n, device=self.device) + 0.5) * (pixels / n / self.stride)
            for n, pixels in zip((height, width), self.input_size, strict=True)
        ]
        y, x = (2 * c / n - 1 for c, n in zip(centers, self.tensor.shape[1:], strict=True))
        grid = torch.stack(torch.broadcast_tensors(x[None], y[:, None]), dim=-1)[None]
        return F.grid_sample(part[None], grid, padding_mode="border", align_corners=False)[0]
