"""Attention by pixel affinities with the affinities' sums over a foreground, as CPMask needs them.

Shape legend: N regions, C channels that affinities are made of, G channels of the value, H x W
map, L = H * W pixels.
"""

from psis_d2.ops import reference
from psis_d2.ops._arguments import (
    check_dtype,
    check_same_device,
    check_same_dtype,
    join_dtypes,
)
from psis_d2.ops._extension import has_extension, shared_memory_limit, use_extension

import torch
from torch import Tensor

_OP = "affinity_attention"
_STATS = 6  # rows of what the forward op hands to the backward op
_MAX_CUDA_PIXELS = 208  # a block keeps whole rows of affinities on chip
# Of csrc/cuda/affinity_attention_kernels.cuh.
_ROWS, _TILE, _DEPTH, _THREADS = 32, 64, 16, 128


def affinity_attention(
    theta: Tensor,
    phi: Tensor,
    value: Tensor,
    foreground: Tensor,
    scale: float = 1.0,
    eps: float = 1e-5,
    unbiased: bool = False,
) -> tuple[Tensor, Tensor]:
    """Attends to pixels by the affinity of their appearance, and sums affinities over a foreground.

    Eq. 4 to 6 of CPMask (Fan et al., ECCV 2020), for pixels i and j of a region::

        z(x)        = (x - mean(x)) / sqrt(var(x) + eps), over the channels of a pixel
        A[i, j]     = softmax over j of scale * sum_c z(theta)[c, i] * z(phi)[c, j]
        attended[i] = sum_j A[i, j] * value[j]
        sums[i]     = sum_j A[i, j] * foreground[j]

    The softmax runs over the second pixel: eq. 5 wants the affinities of a foreground pixel to the
    whole foreground, ``sums``, to be 1. Those to the background are ``1 - sums``. A, of L x L per
    region, is never stored.

    Args:
        theta, phi: float [N, C, H, W].
        value: float [N, G, H, W].
        foreground: bool or float [N, H, W]; soft masks are allowed.
        scale: of the scores; 1 is the paper's, the released code has C ** -0.5.
        eps: added to the variance; 0 is the released code's and gives NaN for a pixel whose
            channels are all equal.
        unbiased: divide the variance by C - 1, as the released code does, instead of C.

    Returns:
        attended: float [N, G, H, W].
        sums: float [N, L], pixels in row-major order; both of the dtype of `theta`.

    Differentiable with respect to `theta`, `phi`, `value` and a float `foreground`. The backward
    pass computes A again from the inputs and six numbers per pixel; the kernels are deterministic
    and bitwise repeatable. The compiled op refuses to be differentiated twice.

    float16 and bfloat16 are read and written as they are; z-scores, scores, A and all sums are
    float32 in the kernels. Under autocast nothing is lowered, and inputs of different dtypes are
    brought to their common one.

    CPU and CUDA (up to 208 pixels, such as 14 x 14, and as the GPU's shared memory allows) have
    kernels; the one for CUDA runs under :func:`psis_d2.ops.with_kernels` only, until a GPU has
    measured it. Everything else runs on PyTorch's scaled_dot_product_attention,
    :func:`psis_d2.ops.reference.affinity_attention`.

    Raises:
        ValueError: shapes, devices, `eps` or `unbiased` do not fit.
        TypeError: dtypes differ or are not floating point.
    """
    theta, phi, value = join_dtypes(theta, phi, value)
    foreground = foreground.to(theta.dtype)
    _check(theta, phi, value, foreground, eps, unbiased)
    arguments = (theta, phi, value, foreground, scale, eps, unbiased)
    if _fits(theta) and use_extension(_OP, theta.device.type):
        return torch.ops.psis_d2.affinity_attention(*arguments)[:2]
    return reference.affinity_attention(*arguments)


def _fits(theta: Tensor) -> bool:
    """Whether the device's kernels, forward and backward, take a map of this size."""
    if theta.device.type != "cuda":
        return True
    pixels = theta.shape[2] * theta.shape[3]
    if pixels > _MAX_CUDA_PIXELS:
        return False
    return _cuda_bytes(pixels, theta.dtype) <= shared_memory_limit(theta.device.index)


def _cuda_bytes(pixels: int, dtype: torch.dtype) -> int:
    """Shared memory of the CUDA kernel that needs most: AttentionShared::size of two matrices."""
    pitch = pixels + 1 - pixels % 2
    elements = _DEPTH * _ROWS + _DEPTH * (_TILE + 4) + _THREADS + _ROWS + 2 * _ROWS * pitch
    return elements * (8 if dtype == torch.float64 else 4)


def _check(theta, phi, value, foreground, eps, unbiased) -> None:
    """Raises one sentence about the first argument that does not fit.

    ``csrc/affinity_attention.cpp`` repeats these sentences for calls of the op itself.
    """
    if theta.dim() != 4:
        raise ValueError(f"{_OP}: theta must be [N, C, H, W], not {list(theta.shape)}.")
    n, channels, height, width = theta.shape
    if phi.shape != theta.shape:
        raise ValueError(
            f"{_OP}: phi {list(phi.shape)} must have the shape of theta {list(theta.shape)}."
        )
    if value.dim() != 4 or value.shape[0] != n or tuple(value.shape[2:]) != (height, width):
        raise ValueError(
            f"{_OP}: value {list(value.shape)} does not fit theta {list(theta.shape)}: "
            "it must be [N, G, H, W]."
        )
    if tuple(foreground.shape) != (n, height, width):
        raise ValueError(
            f"{_OP}: foreground {list(foreground.shape)} does not fit theta {list(theta.shape)}: "
            "it must be [N, H, W]."
        )
    if channels == 0 or height == 0 or width == 0:
        raise ValueError(f"{_OP}: theta {list(theta.shape)} has no channels or no pixels.")
    for name, tensor in (("phi", phi), ("value", value), ("foreground", foreground)):
        check_same_device(_OP, "theta", theta, name, tensor)
        check_same_dtype(_OP, "theta", theta, name, tensor)
    check_dtype(_OP, theta)
    if eps < 0:
        raise ValueError(f"{_OP}: eps must be at least 0, not {eps:g}.")
    if unbiased and channels == 1:
        raise ValueError(f"{_OP}: the unbiased variance needs at least 2 channels.")


def _fake(theta, phi, value, foreground, scale, eps, unbiased):
    _check(theta, phi, value, foreground, eps, unbiased)
    n, _, height, width = theta.shape
    dtype = reference.state_dtype(theta)
    return (
        value.new_empty(value.shape),
        theta.new_empty(n, height * width),
        theta.new_empty(n, _STATS, height * width, dtype=dtype),
    )


def _fake_bwd(grad_attended, grad_sums, theta, phi, value, foreground, stats, scale, unbiased):
    _check(theta, phi, value, foreground, 0.0, unbiased)
    return tuple(t.new_empty(t.shape) for t in (theta, phi, value, foreground))


# Autograd is csrc/affinity_attention_autograd.cpp.
if has_extension():
    torch.library.register_fake("psis_d2::affinity_attention", _fake)
    torch.library.register_fake("psis_d2::affinity_attention_bwd", _fake_bwd)
