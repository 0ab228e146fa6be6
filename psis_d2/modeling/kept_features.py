"""Feature maps of a frozen backbone, computed once an image and kept in a folder.

Where the mask head alone learns, an iteration on a CPU is mostly the frozen backbone's forward
pass, and every run that trains on one detector repeats it for the same images. Here a file an image
holds the maps. Its name is a digest of the pixels as the backbone gets them, its folder one of the
backbone's weights: nothing has to be told when either changes.
"""

import hashlib
import logging
import math
import os
from pathlib import Path

from psis_d2.errors import UserError
from psis_d2.files import written_at_once

import numpy as np
import torch
from detectron2.layers import cat
from torch import Tensor, nn
from torch.nn import functional as F

logger = logging.getLogger(__name__)


class KeptFeatures:
    """A frozen backbone's forward pass that looks into a folder first.

    The features of an image are those of the image alone, as at test time: padding, which depends
    on the other images of a batch, is cut off before and made of zeros after. So they are the same
    whatever batch an image comes in, and whoever computed them.

    Args:
        backbone: in eval mode, without parameters that learn. All images that it gets are padded
            by zeros to multiples of its ``size_divisibility``, or of its largest stride.
        folder: where the files are, made if it is missing.
    """

    def __init__(self, backbone: nn.Module, folder: str):
        self.compute = backbone.forward
        self.backbone = backbone
        self.shapes = backbone.output_shape()
        strides = [shape.stride for shape in self.shapes.values()]
        self.multiple = backbone.size_divisibility or max(strides)
        self.root = Path(folder)
        self.folder: Path | None = None

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Images float [N, 3, H, W], normalized, to feature maps [N, C, H / stride, W / stride]."""
        if self.folder is None:  # weights are loaded after the model is built
            self.folder = self.root / _digest(*self.backbone.state_dict().values())
        each = [self._of_image(image) for image in images]
        maps = {}
        for name, shape in self.shapes.items():
            size = _size(images, shape.stride)
            maps[name] = cat([_padded(one[name], size) for one in each])
        return maps

    def _of_image(self, image: Tensor) -> dict[str, Tensor]:
        used = image.ne(0).any(dim=0)
        height, width = (_last(used.any(dim=dim)) for dim in (1, 0))
        height, width = (-(-side // self.multiple) * self.multiple for side in (height, width))
        image = image[:, :height, :width].contiguous()
        sizes = {
            name: (1, shape.channels, *_size(image, shape.stride))
            for name, shape in self.shapes.items()
        }
        path = self.folder / f"{_digest(image)}.float32"
        lengths = [math.prod(size) for size in sizes.values()]
        if path.exists():
            values = torch.from_numpy(np.fromfile(path, dtype=np.float32)).to(image.device)
            if len(values) == sum(lengths):
                parts = values.split(lengths)
                return {name: x.view(sizes[name]) for name, x in zip(sizes, parts, strict=True)}
            logger.warning("%s is empty or cut off; its feature maps are computed again", path)
        with torch.no_grad():
            maps = self.compute(image[None])
        maps = {name: maps[name].contiguous() for name in sizes}
        with written_at_once(str(path), binary=True) as file:
            for x in maps.values():  # one after the other: their sizes follow from the image's
                file.write(x.cpu().float().numpy().tobytes())
        return maps


def keep_features(backbone: nn.Module, folder: str) -> None:
    """Let a backbone keep its feature maps in a folder, see :class:`KeptFeatures`; in place.

    Raises:
        UserError: the backbone learns.
    """
    if any(p.requires_grad for p in backbone.parameters()):
        raise UserError(
            "PSIS.KEEP_FEATURES keeps what a frozen backbone computes, and this one learns; set "
            "PSIS.TRAIN_ONLY mask_head, or PSIS.KEEP_FEATURES ''."
        )
    backbone.forward = KeptFeatures(backbone, os.path.abspath(folder))


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _last(used: Tensor) -> int:
    """How many entries there are up to the last true one; at least 1."""
    rows = used.nonzero()
    return int(rows[-1]) + 1 if len(rows) else 1


def _size(image: Tensor, stride: int) -> list[int]:
    return [-(-side // stride) for side in image.shape[-2:]]


def _padded(x: Tensor, size: list[int]) -> Tensor:
    return F.pad(x, (0, size[1] - x.shape[-1], 0, size[0] - x.shape[-2]))
