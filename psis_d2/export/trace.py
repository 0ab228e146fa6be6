"""A detector as a function from one image to a few tensors, and the conditions to trace it under.

Detectron2's own adapter does the same for any model. In v0.6 its package cannot be imported beside
a PyTorch without Caffe2, so nothing of it is used here.
"""

from __future__ import annotations

import builtins
import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator

from psis_d2.modeling.condinst.dynamic_filters import Queries
from psis_d2.modeling.condinst.mask_head import DynamicMaskHead
from psis_d2.modeling.framed_masks import FramedMasks
from psis_d2.modeling.image_masks import ImageMasks
from psis_d2.ops import without_kernels

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

_TRACED_PACKAGES = ("detectron2.modeling", "psis_d2.modeling", "psis_d2.ops")
_MISSING = object()


class TraceableModel(nn.Module):
    """A model of this project in eval mode, for one image.

    Attributes:
        model: Detectron2's ``GeneralizedRCNN`` or a meta-architecture with the same ``inference``.
        output_names: names of the tensors that :meth:`forward` gives; known after its first call.
        mask_grid: what the masks cover: "boxes", "mask_boxes" (an output of its own) or "image";
            "" for a model without masks. Known after the first call.
        mask_stride: side of a mask's cell in input pixels if the grid is the image's, else 0.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.output_names: tuple[str, ...] = ()
        self.mask_grid = ""
        self.mask_stride = 0

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Objects of an image.

        Args:
            image: uint8 or float [3, H, W], 0 to 255, in the model's order of channels.

        Returns:
            boxes float [N, 4] (XYXY in pixels of `image`), classes int64 [N], scores float [N]; if
            the model has masks, probabilities float [N, M, M] over `mask_grid`; and where this is
            "mask_boxes", these boxes, float [N, 4].
        """
        (found,) = self.model.inference([{"image": image.float()}], do_postprocess=False)
        outputs = {
            "boxes": found.pred_boxes.tensor,
            "classes": found.pred_classes,
            "scores": found.scores,
        }
        if found.has("pred_masks"):
            masks = found.pred_masks
            self.mask_grid = "boxes"
            if isinstance(masks, FramedMasks):
                self.mask_grid, outputs["masks"] = "mask_boxes", masks.tensor
                outputs["mask_boxes"] = masks.frames
            elif isinstance(masks, ImageMasks):
                self.mask_grid, outputs["masks"] = "image", masks.tensor
                self.mask_stride = masks.stride
            else:
                outputs["masks"] = masks[:, 0]
        self.output_names = tuple(outputs)
        return tuple(outputs.values())


@contextlib.contextmanager
def tracing_conditions(model: nn.Module) -> Iterator[None]:
    """While it lasts, what is traced holds for other images, too, and on other machines.

    * ``len`` and ``min`` of the traced packages keep sizes as tensors: Python's own turn them to
      integers, and the sample's number of objects would stand in the graph.
    * Our ops run on their PyTorch references, since nobody who loads the file has our kernels.
    * CondInst makes all masks at once; the number of its parts would be the sample's.
    * There is always an object to draw: one more than detected, whose mask is dropped. A graph has
      no way around the mask branch, and not all of its operators take nothing.

    Args:
        model: Detectron2's ``GeneralizedRCNN`` or :class:`~psis_d2.modeling.condinst.CondInst`.
    """
    changes = {
        (module, "at_a_time"): 0 for module in model.modules() if hasattr(module, "at_a_time")
    }
    if hasattr(model, "roi_heads"):
        changes[model.roi_heads, "forward_with_given_boxes"] = _one_more_region(model.roi_heads)
    else:
        changes[model.mask_head, "forward"] = _one_more_query(model.mask_head)
    modules = [
        module
        for name, module in list(sys.modules.items())
        if module is not None and name.startswith(_TRACED_PACKAGES)
    ]
    changes |= {(module, "len"): _traceable_len for module in modules}
    changes |= {(module, "min"): _traceable_min for module in modules}
    with _changed(changes), without_kernels(), torch.no_grad(), warnings.catch_warnings():
        # Of each size that Python looks at on the way. The comparison with the model itself, behind
        # the export, says whether one of them mattered.
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _changed(attributes: dict[tuple[object, str], object]) -> Iterator[None]:
    """While it lasts, attributes of objects have other values."""
    before = {(owner, name): vars(owner).get(name, _MISSING) for owner, name in attributes}
    for (owner, name), value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name), value in before.items():
            if value is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def _one_more_region(roi_heads: nn.Module) -> Callable:
    draw = roi_heads.forward_with_given_boxes

    def forward_with_given_boxes(features, instances):
        return [x[:-1] for x in draw(features, [_append(x) for x in instances])]

    return forward_with_given_boxes


def _append(detected: Instances) -> Instances:
    boxes = detected.pred_boxes.tensor
    return Instances(
        detected.image_size,
        pred_boxes=Boxes(torch.cat([boxes, boxes.new_tensor([[0.0, 0.0, 32.0, 32.0]])])),
        pred_classes=_with_zero(detected.pred_classes),
        scores=_with_zero(detected.scores),
    )


def _one_more_query(mask_head: DynamicMaskHead) -> Callable:
    draw = mask_head.forward

    def forward(maps, tower, queries):
        fields = {name: _with_zero(value) for name, value in vars(queries).items()}
        fields["sizes"] = torch.cat([queries.sizes, queries.sizes.new_ones(1)])  # it divides
        return draw(maps, tower, Queries(**fields))[:-1]

    return forward


def _with_zero(values: Tensor) -> Tensor:
    """[N, ...] to [N + 1, ...]."""
    return torch.cat([values, values.new_zeros(1, *values.shape[1:])])


def _traceable_len(value) -> int | Tensor:
    # Not builtins.len, which makes an int of what __len__ returns.
    return value.__len__()


def _traceable_min(*values, **options):
    if len(values) == 2 and isinstance(values[1], Tensor) and isinstance(values[0], int):
        return values[1].clamp(max=values[0])
    return builtins.min(*values, **options)
