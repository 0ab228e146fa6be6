"""GrabCut: a mask for a box from nothing but the pixels (Rother et al., SIGGRAPH 2004).

Two color models, of the box and of the band around it, and a graph cut in turns. "Learning to
Segment Every Thing" (Hu et al., CVPR 2018, sec. 4.3) has it as two baselines: Mask R-CNN trained on
such masks, and a detector whose boxes are segmented so at test time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psis_d2.optional import require

import numpy as np
from pycocotools import mask as mask_util

# OpenCV fits five Gaussians to the colors of each side.
_LEAST_PIXELS = 5

FALLBACKS = ("whole image", "tiny", "empty")
"""Boxes that are filled instead: the crop has no pixel outside the box; the box or the band has
fewer pixels than a color model needs; GrabCut took all of the box for background."""
OUTSIDE = "outside"
"""A box without a pixel of the image: it gets no mask."""


@dataclass(frozen=True)
class GrabCut:
    """GrabCut in boxes, the same for the same pixels and box wherever it runs.

    Attributes:
        iterations: turns of color models and cut.
        context: width of the band around the box that is background for sure, in box sides. The
            band stops at the image's border.
        max_side: longest side in pixels of the crop (box and band) that is cut; a larger one is
            shrunk and its mask enlarged. 0 shrinks nothing.
    """

    iterations: int = 5
    context: float = 0.5
    max_side: int = 256

    @classmethod
    def from_config(cls, cfg) -> GrabCut:
        """The settings of a config."""
        node = cfg.PSIS.GRABCUT
        return cls(node.ITERATIONS, node.CONTEXT, node.MAX_SIDE)

    def __call__(self, image: np.ndarray, box: Sequence[float]) -> tuple[np.ndarray | None, str]:
        """Segment one box.

        Args:
            image: uint8 [H, W, 3].
            box: XYXY in pixels. It counts as the smallest rectangle of whole pixels around it.

        Returns:
            bool [H, W], true nowhere outside the box, or None if no pixel is in it; and how it was
            made: ``grabcut``, one of :data:`FALLBACKS` (the box is filled), or :data:`OUTSIDE`.
        """
        height, width = image.shape[:2]
        inner = _whole_pixels(box, width, height)
        x0, y0, x1, y1 = inner
        if x1 <= x0 or y1 <= y0:
            return None, OUTSIDE
        band_x, band_y = (int(np.ceil(self.context * side)) for side in (x1 - x0, y1 - y0))
        outer = _whole_pixels((x0 - band_x, y0 - band_y, x1 + band_x, y1 + band_y), width, height)
        mask = np.zeros((height, width), dtype=bool)
        window = mask[y0:y1, x0:x1]
        if inner == outer:
            window[:] = True
            return mask, "whole image"
        left, top, right, bottom = outer
        place = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
        foreground = self._cut(image[top:bottom, left:right], place)
        if foreground is None:
            window[:] = True
            return mask, "tiny"
        window[:] = foreground[place]
        if not window.any():
            window[:] = True
            return mask, "empty"
        return mask, "grabcut"

    def _cut(self, crop: np.ndarray, place: tuple[slice, slice]) -> np.ndarray | None:
        """bool [h, w] of a crop with the box at `place`; None: too few pixels for color models."""
        cv2 = require("cv2")
        height, width = crop.shape[:2]
        labels = np.full((height, width), cv2.GC_BGD, np.uint8)
        labels[place] = cv2.GC_PR_FGD
        crop = np.ascontiguousarray(crop)
        scale = self.max_side / max(height, width) if self.max_side else 1
        if scale < 1:
            size = max(1, round(width * scale)), max(1, round(height * scale))
            crop = cv2.resize(crop, size, interpolation=cv2.INTER_AREA)
            labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        inside = np.count_nonzero(labels)
        if min(inside, labels.size - inside) < _LEAST_PIXELS:
            return None
        # The color models start from a k-means that draws. The generator is the thread's own.
        cv2.setRNGSeed(0)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(crop, labels, None, *models, self.iterations, cv2.GC_INIT_WITH_MASK)
        foreground = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
        if scale < 1:
            soft = foreground.astype(np.float32)
            foreground = cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR) >= 0.5
        return foreground


def encode_mask(mask: np.ndarray) -> dict:
    """Compressed RLE (text) of a bool [H, W] mask."""
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def _whole_pixels(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = box
    return (
        max(0, int(np.floor(x0))),
        max(0, int(np.floor(y0))),
        min(width, int(np.ceil(x1))),
        min(height, int(np.ceil(y1))),
    )
