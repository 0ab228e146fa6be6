"""Plain PyTorch twins of the compiled ops, in the fastest form that eager PyTorch has.

They run where no kernel is built, and tests and benchmarks compare the kernels with them. Arguments
are those of the kernels; they are not checked here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = 9  # 3x3 neighbourhood, row-major
SUM_EPS = 1e-5  # of "sigmoid_sum", as ShapeProp's authors released it


def normalise_weights(weights: Tensor, norm: str) -> Tensor:
    """Propagation weights of the nine taps from what the network predicts.

    Args:
        weights: float [..., 9, H, W].
        norm: "softmax", "sigmoid_sum" or "none", see :func:`psis_d2.ops.message_passing`.

    Returns:
        float [..., 9, H, W].
    """
    if norm == "softmax":
        return weights.softmax(dim=-3)
    if norm == "sigmoid_sum":
        weights = weights.sigmoid()
        return weights / (weights.sum(dim=-3, keepdim=True) + SUM_EPS)
    return weights


def message_passing(m0: Tensor, weights: Tensor, steps: int, norm: str) -> Tensor:
    """Twin of :func:`psis_d2.ops.message_passing`.

    Nine shifted views of the padded map instead of F.unfold, which would write nine copies of it.
    """
    n, _, h, w = m0.shape
    dtype = m0.dtype
    state_dtype = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    kernel = normalise_weights(
        weights.to(state_dtype).reshape(n, weights.shape[1] // TAPS, TAPS, h, w), norm
    ).unbind(dim=2)
    state = m0.to(state_dtype)
    for _ in range(steps):
        padded = F.pad(state, (1, 1, 1, 1))
        state = padded[:, :, :h, :w] * kernel[0]
        for tap in range(1, TAPS):
            y, x = divmod(tap, 3)
            state = torch.addcmul(state, padded[:, :, y : y + h, x : x + w], kernel[tap])
    # A result that is not the input itself, whatever the number of steps.
    return state.to(dtype) if steps else m0.clone()
