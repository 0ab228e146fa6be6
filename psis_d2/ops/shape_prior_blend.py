"""Blend of shape priors and its placement in a grid, the detection prior of ShapeMask.

Shape legend: N boxes, K priors, P x P prior, H x W output grid.
"""

from psis_d2.ops import reference
from psis_d2.ops._arguments import (
    check_dtype,
    check_same_device,
    check_same_dtype,
    dtype_name,
    join_dtypes,
)
from psis_d2.ops._extension import has_extension, shared_memory_limit, use_extension

import torch
from torch import Tensor

_OP = "shape_prior_blend"
# Of priors and grid: the CUDA kernels keep both in shared memory.
_MAX_CUDA_SIDE = {torch.float64: 80}
_MAX_CUDA_SIDE_ELSE = 128
# Of csrc/cuda/shape_prior_blend_kernels.cuh.
_THREADS, _LANES, _SUMS = 256, 32, 64


def shape_prior_blend(
    logits: Tensor,
    priors: Tensor,
    boxes: Tensor,
    frames: Tensor,
    size: tuple[int, int],
    classes: Tensor | None = None,
    sample_offset: float = 0.5,
) -> Tensor:
    """Blends the priors of each box and places the result where the box lies in its frame.

    Eq. 2 of ShapeMask (Kuo et al., ICCV 2019) and the fitting into the box that follows it::

        S[n] = sum_k softmax(logits[n])[k] * priors[classes[n], k]
        output[n, y, x] = S[n] at row v(y) and column u(x), bilinear, zero around S
        u(x) = (X - x0 of box) * P / (width of box) - sample_offset
        X    = x0 of frame + (x + sample_offset) * (width of frame) / W

    and v(y) alike. The prior covers the box, the output grid covers the frame.

    Args:
        logits: float [N, K].
        priors: float [K, P, P], or [classes, K, P, P] with `classes`.
        boxes: float32 or float64 [N, 4], x0, y0, x1, y1. A box without width or height places
            nothing.
        frames: the same, the region that the output grid covers, in the units of `boxes`.
        size: (H, W) of the output grid.
        classes: int64 [N], which row of `priors` each box uses.
        sample_offset: where in its cell a value sits, as a part of the cell, in the prior and in
            the output grid. 0.5 is the center, grid_sample(align_corners=False) and RoIAlignV2;
            0 is the upper left corner, as in the released code.

    Returns:
        float [N, H, W] of the dtype of `logits`, contiguous.

    Differentiable with respect to `logits` and `priors`. **Boxes and frames get no gradient**: they
    are annotated, jittered or detected boxes, which are constants to the mask branch. Only the
    inputs are kept for the backward pass, which is deterministic and bitwise repeatable. The
    compiled op refuses to be differentiated twice.

    float16 and bfloat16 are read and written as they are, float32 is computed with. So autocast has
    nothing to cast, except that under it `logits` and `priors` of different dtypes are brought to
    their common one.

    CPU and CUDA (P, H and W up to 128, for float64 up to 80, and as the GPU's shared memory allows)
    have kernels; everything else runs on the reference,
    :func:`psis_d2.ops.reference.shape_prior_blend`.

    Raises:
        ValueError: shapes or devices do not fit.
        TypeError: dtypes differ or are none of those above.
        IndexError: a class is not among the priors (CPU). On CUDA, where a check would have to wait
            for the GPU, it is a failed device-side assertion, as of PyTorch's own indexing.
    """
    logits, priors = join_dtypes(logits, priors)
    height, width = size
    _check(logits, priors, boxes, frames, height, width, classes)
    device = logits.device.type
    if _fits(logits, priors, height, width) and use_extension(_OP, device):
        return torch.ops.psis_d2.shape_prior_blend(
            logits, priors, boxes, frames, height, width, classes, sample_offset
        )
    return reference.shape_prior_blend(logits, priors, boxes, frames, size, classes, sample_offset)


def _fits(logits: Tensor, priors: Tensor, height: int, width: int) -> bool:
    """Whether the device's kernels, forward and backward, take priors and a grid of this size."""
    if logits.device.type != "cuda":
        return True
    side = priors.shape[-1]
    most = _MAX_CUDA_SIDE.get(logits.dtype, _MAX_CUDA_SIDE_ELSE)
    if max(side, height, width) > most:
        return False
    need = _cuda_bytes(logits.shape[1], side, height, width, logits.dtype)
    return need <= shared_memory_limit(logits.device.index)


def _cuda_bytes(count: int, side: int, height: int, width: int, dtype: torch.dtype) -> int:
    """Shared memory of the CUDA kernel that needs most: BlendShape::backward_shared."""
    sums = _SUMS * (_LANES + 1)
    elements = 2 * count + _THREADS + height + width + sums + side * width + side**2
    return elements * (8 if dtype == torch.float64 else 4)


def _check(logits, priors, boxes, frames, height, width, classes) -> None:
    """Raises one sentence about the first argument that does not fit.

    ``csrc/shape_prior_blend.cpp`` repeats these sentences for calls of the op itself.
    """
    if logits.dim() != 2:
        raise ValueError(f"{_OP}: logits must be [N, K], not {list(logits.shape)}.")
    if priors.dim() not in (3, 4) or priors.shape[-1] != priors.shape[-2]:
        raise ValueError(
            f"{_OP}: priors must be [K, P, P] or [classes, K, P, P], not {list(priors.shape)}."
        )
    if priors.shape[-3] != logits.shape[1]:
        raise ValueError(
            f"{_OP}: priors {list(priors.shape)} do not fit logits {list(logits.shape)}: "
            "both must have the same K."
        )
    if priors.numel() == 0:
        raise ValueError(f"{_OP}: priors {list(priors.shape)} are empty.")
    if (classes is not None) != (priors.dim() == 4):
        raise ValueError(
            f"{_OP}: classes go with priors [classes, K, P, P] and only with them; "
            f"priors are {list(priors.shape)}."
        )
    for name, rectangles in (("boxes", boxes), ("frames", frames)):
        _check_rectangles(name, rectangles, logits)
    check_same_device(_OP, "logits", logits, "priors", priors)
    check_same_dtype(_OP, "logits", logits, "priors", priors)
    check_dtype(_OP, logits)
    if height <= 0 or width <= 0:
        raise ValueError(f"{_OP}: size must be positive, not {[height, width]}.")
    if classes is None:
        return
    if classes.dim() != 1 or classes.shape[0] != logits.shape[0]:
        raise ValueError(
            f"{_OP}: classes must be [N] with the N of logits {list(logits.shape)}, "
            f"not {list(classes.shape)}."
        )
    check_same_device(_OP, "logits", logits, "classes", classes)
    if classes.dtype != torch.int64:
        raise TypeError(f"{_OP}: classes must be int64, not {dtype_name(classes)}.")


def _check_rectangles(name: str, rectangles: Tensor, logits: Tensor) -> None:
    if rectangles.dim() != 2 or rectangles.shape[0] != logits.shape[0] or rectangles.shape[1] != 4:
        raise ValueError(
            f"{_OP}: {name} must be [N, 4] with the N of logits {list(logits.shape)}, "
            f"not {list(rectangles.shape)}."
        )
    check_same_device(_OP, "logits", logits, name, rectangles)
    if rectangles.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{_OP}: {name} must be float32 or float64, not {dtype_name(rectangles)}.")


def _fake(logits, priors, boxes, frames, height, width, classes, sample_offset):
    _check(logits, priors, boxes, frames, height, width, classes)
    return logits.new_empty(logits.shape[0], height, width)


def _fake_bwd(grad, logits, priors, boxes, frames, classes, sample_offset, priors_need_grad):
    _check(logits, priors, boxes, frames, *grad.shape[1:], classes)
    return logits.new_empty(logits.shape), priors.new_empty(
        priors.shape if priors_need_grad else (0,)
    )


# Autograd is csrc/shape_prior_blend_autograd.cpp.
if has_extension():
    torch.library.register_fake("psis_d2::shape_prior_blend", _fake)
    torch.library.register_fake("psis_d2::shape_prior_blend_bwd", _fake_bwd)
