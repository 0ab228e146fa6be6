"""Location-specific message passing, the propagation of ShapeProp.

Shape legend: N regions, C channels, Wc weight channels (1 or C), H x W map.
"""

from psis_d2.ops import reference
from psis_d2.ops._arguments import check_dtype, dtype_name, join_dtypes
from psis_d2.ops._extension import has_extension, use_extension
from psis_d2.ops.reference import TAPS

import torch
from torch import Tensor

NORMS = ("softmax", "sigmoid_sum", "none")
_MAX_CUDA_SIDE = 64  # the CUDA kernel keeps two whole maps in shared memory


def message_passing(m0: Tensor, weights: Tensor, steps: int, norm: str = "sigmoid_sum") -> Tensor:
    """Passes messages between neighboring positions, each with weights of its own.

    Eq. 4 of ShapeProp (Zhou et al., CVPR 2020), the same K in every step::

        m_{t+1}[n, c, u, v] = sum_j K[n, c, j, u, v] * m_t[n, c, u + j // 3 - 1, v + j % 3 - 1]

    Outside the map m_t is zero, while K is normalized over all nine taps: mass leaks at the border,
    as in the authors' code.

    Args:
        m0: float [N, C, H, W], the initial map.
        weights: float [N, Wc * 9, H, W], as a convolution emits them: channel-major, then taps in
            row-major order (upper left first). Wc is C, or 1 for weights that all channels share.
        steps: number of steps T >= 0; 0 returns a copy of `m0`.
        norm: how K follows from `weights` w at each position:
            "softmax", over the nine taps;
            "sigmoid_sum", s / (sum of s over the nine taps + 1e-5) with s = sigmoid(w), as in the
            released code;
            "none", w itself.

    Returns:
        float [N, C, H, W], m_T, contiguous, of the dtype of `m0`.

    Differentiable with respect to `m0` and `weights`. Only these two are kept for the backward
    pass, which recomputes the maps; it is deterministic, and bitwise repeatable. The compiled op
    refuses to be differentiated twice.

    float16 and bfloat16 are read and written as they are; maps and weights are float32 in between.
    So autocast has nothing to cast, except that under it two inputs of different dtypes are brought
    to their common one.

    CPU and CUDA (maps up to 64 x 64) have kernels; everything else runs on the reference,
    :func:`psis_d2.ops.reference.message_passing`. On CUDA 14 x 14 and 28 x 28 maps have kernels of
    their own, see :func:`cuda_kernels`.

    Raises:
        ValueError: shapes, devices, `steps` or `norm` do not fit.
        TypeError: dtypes differ or are not floating point, or `steps` is not an integer.
    """
    m0, weights = join_dtypes(m0, weights)
    _check(m0, weights, steps, norm)
    device = m0.device.type
    fits = device != "cuda" or max(m0.shape[2:]) <= _MAX_CUDA_SIDE
    if fits and use_extension("message_passing", device):
        return torch.ops.psis_d2.message_passing(m0, weights, steps, norm)
    return reference.message_passing(m0, weights, steps, norm)


def cuda_kernels() -> str:
    """Which kernels maps of a common size take on the current CUDA device, in words."""
    sides = [14, 28]
    tile = torch.ops.psis_d2.message_passing_tile
    own = [s for s in sides if tile(s, s, s, torch.float32, True) == s]
    names = " and ".join(f"{s}x{s}" for s in own)
    return f"{names} in registers, other sizes and float64 generic" if own else "generic"


def _check(m0: Tensor, weights: Tensor, steps: int, norm: str) -> None:
    """Raises one sentence about the first argument that does not fit.

    ``csrc/message_passing.cpp`` repeats these sentences for calls of the op itself.
    """
    op = "message_passing"
    if m0.dim() != 4:
        raise ValueError(f"{op}: m0 must be [N, C, H, W], not {list(m0.shape)}.")
    if weights.dim() != 4:
        raise ValueError(f"{op}: weights must be [N, Wc * 9, H, W], not {list(weights.shape)}.")
    n, channels, height, width = m0.shape
    fits = weights.shape[1] == TAPS or weights.shape[1] == channels * TAPS
    if weights.shape[0] != n or tuple(weights.shape[2:]) != (height, width) or not fits:
        raise ValueError(
            f"{op}: weights {list(weights.shape)} do not fit m0 {list(m0.shape)}: "
            "they must be [N, 9, H, W] or [N, C * 9, H, W]."
        )
    if weights.device != m0.device:
        raise ValueError(f"{op}: m0 is on {m0.device} but weights are on {weights.device}.")
    if weights.dtype != m0.dtype:
        raise TypeError(f"{op}: m0 is {dtype_name(m0)} but weights are {dtype_name(weights)}.")
    check_dtype(op, m0)
    if isinstance(steps, bool) or not isinstance(steps, (int, torch.SymInt)):
        raise TypeError(f"{op}: steps must be an integer, not {type(steps).__name__}.")
    if steps < 0:
        raise ValueError(f"{op}: steps must be at least 0, not {steps}.")
    if norm not in NORMS:
        raise ValueError(f"{op}: norm must be 'softmax', 'sigmoid_sum' or 'none', not '{norm}'.")


def _fake(m0, weights, steps, norm):
    _check(m0, weights, steps, norm)
    return m0.new_empty(m0.shape)


def _fake_bwd(grad, m0, weights, steps, norm):
    _check(m0, weights, steps, norm)
    return m0.new_empty(m0.shape), weights.new_empty(weights.shape)


# Autograd is csrc/message_passing_autograd.cpp.
if has_extension():
    torch.library.register_fake("psis_d2::message_passing", _fake)
    torch.library.register_fake("psis_d2::message_passing_bwd", _fake_bwd)
