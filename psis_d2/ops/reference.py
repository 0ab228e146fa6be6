"""Plain PyTorch references of the compiled ops, in the form that PyTorch runs fastest.

They run where no kernel does, and tests and benchmarks compare the kernels with them; the tests
compare both with the equations, written out. Arguments are those of the kernels; they are not
checked here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = 9  # 3x3 neighborhood, row-major
SUM_EPS = 1e-5  # of "sigmoid_sum", as ShapeProp's authors released it


def state_dtype(tensor: Tensor) -> torch.dtype:
    """What ops compute in: float32 for half types, else the tensor's own."""
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype


def normalize_weights(weights: Tensor, norm: str) -> Tensor:
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
    """Reference of :func:`psis_d2.ops.message_passing`.

    Nine shifted views of the padded map instead of F.unfold, which would write nine copies of it.
    """
    n, _, h, w = m0.shape
    dtype = m0.dtype
    accumulator = state_dtype(m0)
    kernel = normalize_weights(
        weights.to(accumulator).reshape(n, weights.shape[1] // TAPS, TAPS, h, w), norm
    ).unbind(dim=2)
    state = m0.to(accumulator)
    for _ in range(steps):
        padded = F.pad(state, (1, 1, 1, 1))
        state = padded[:, :, :h, :w] * kernel[0]
        for tap in range(1, TAPS):
            y, x = divmod(tap, 3)
            state = torch.addcmul(state, padded[:, :, y : y + h, x : x + w], kernel[tap])
    # A result that is not the input itself, whatever the number of steps.
    return state.to(dtype) if steps else m0.clone()


def shape_prior_blend(
    logits: Tensor,
    priors: Tensor,
    boxes: Tensor,
    frames: Tensor,
    size: tuple[int, int],
    classes: Tensor | None = None,
    sample_offset: float = 0.5,
) -> Tensor:
    """Reference of :func:`psis_d2.ops.shape_prior_blend`.

    Two batched matrix products with the hat functions of both axes instead of F.grid_sample, whose
    backward pass on the CPU is the slower one.
    """
    dtype = state_dtype(logits)
    side = priors.shape[-1]
    # Matrix products would be lowered.
    with torch.autocast(logits.device.type, enabled=False):
        weights = logits.to(dtype).softmax(dim=1)
        priors = priors.to(dtype).flatten(-2)
        if classes is None:
            blended = weights @ priors
        else:
            blended = torch.bmm(weights.unsqueeze(1), priors[classes])
        blended = blended.view(-1, side, side)
        boxes, frames = boxes.detach().to(dtype), frames.detach().to(dtype)
        rows, columns = (
            _hats(boxes[:, axis::2], frames[:, axis::2], cells, side, sample_offset)
            for axis, cells in zip((1, 0), size, strict=True)
        )
        return (rows @ blended @ columns.transpose(1, 2)).to(logits.dtype)


def _hats(box: Tensor, frame: Tensor, cells: int, side: int, offset: float) -> Tensor:
    """Bilinear weights [N, cells, side] of one axis; box and frame: float [N, 2], begin and end."""
    extent = box[:, 1:] - box[:, :1]
    cell = torch.arange(cells, dtype=box.dtype, device=box.device)
    unit = (frame[:, 1:] - frame[:, :1]) / cells
    position = (frame[:, :1] - box[:, :1] + (cell + offset) * unit) * (side / extent) - offset
    position = torch.where(extent > 0, position, -1.0)  # nothing of a box without extent
    prior_cell = torch.arange(side, dtype=box.dtype, device=box.device)
    return (1 - (position[..., None] - prior_cell).abs()).relu()


def affinity_attention(
    theta: Tensor,
    phi: Tensor,
    value: Tensor,
    foreground: Tensor,
    scale: float = 1.0,
    eps: float = 1e-5,
    unbiased: bool = False,
) -> tuple[Tensor, Tensor]:
    """Reference of :func:`psis_d2.ops.affinity_attention`; `foreground` has the dtype of `theta`.

    PyTorch's scaled_dot_product_attention with the foreground as one more channel of the value:
    that channel of the result is the foreground's sum, and autograd needs nothing else.
    """
    n, channels, height, width = theta.shape
    # A tracer's sizes are tensors; an exported graph needs these two as constants.
    channels, value_channels = int(channels), int(value.shape[1])
    # Autocast would lower the products.
    with torch.autocast(theta.device.type, enabled=False):
        factor = channels / (channels - 1) if unbiased else 1.0
        # (x - mean) / sqrt(factor * var + eps), twice, is layer_norm with the factor outside.
        queries, keys = (
            F.layer_norm(x.flatten(2).transpose(1, 2), (channels,), eps=eps / factor)
            for x in (theta, phi)
        )
        columns = torch.cat([value, foreground.unsqueeze(1)], dim=1).flatten(2).transpose(1, 2)
        size, value_size = _head_sizes(theta, channels, value_channels + 1)
        attended = F.scaled_dot_product_attention(
            *(F.pad(x, (0, size - channels)).unsqueeze(1) for x in (queries, keys)),
            F.pad(columns, (0, value_size - value_channels - 1)).unsqueeze(1),
            scale=scale / factor,
        ).squeeze(1)
    attended, sums = attended[..., :value_channels], attended[..., value_channels]
    return attended.transpose(1, 2).reshape(n, value_channels, height, width), sums


def _head_sizes(tensor: Tensor, size: int, value_size: int) -> tuple[int, int]:
    """Channels to pad to, of keys and of the value, for a backend that does not store L x L scores.

    Flash attention, the CPU's too, wants both equal, on CUDA a half type and at most 256; the
    memory-efficient backend takes what is left, both in eights.
    """
    size, value_size = (-(-s // 8) * 8 for s in (size, value_size))
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    if tensor.device.type == "cuda" and not (half and max(size, value_size) <= 256):
        return size, value_size
    return max(size, value_size), max(size, value_size)
