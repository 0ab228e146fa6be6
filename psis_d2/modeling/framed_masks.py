"""Soft masks of rectangles other than their objects' boxes."""

from detectron2.structures import Boxes, ROIMasks
from torch import Tensor


class FramedMasks(ROIMasks):
    """Detectron2's ``ROIMasks`` with a frame of its own for each mask.

    A mask of a region that is wider than the detected box can reach outside of the box. Detectron2
    pastes masks into the boxes that stand beside them; these go where their frames are.

    Args:
        tensor: float [N, M, M] in [0, 1].
        frames: float [N, 4], XYXY in pixels of the input image, possibly outside of it.
        image_size: (height, width) of the input image.
    """

    def __init__(self, tensor: Tensor, frames: Tensor, image_size: tuple[int, int]):
        super().__init__(tensor)
        self.frames = frames
        self.input_size = image_size

    def to(self, device) -> "FramedMasks":
        return FramedMasks(self.tensor.to(device), self.frames.to(device), self.input_size)

    def __getitem__(self, item) -> "FramedMasks":
        return FramedMasks(super().__getitem__(item).tensor, self.frames[item], self.input_size)

    def to_bitmasks(self, boxes, height: int, width: int, threshold: float = 0.5):
        """Masks of an image of (height, width); `boxes` are not asked."""
        frames = Boxes(self.frames.clone())
        frames.scale(width / self.input_size[1], height / self.input_size[0])
        return super().to_bitmasks(frames, height, width, threshold)
