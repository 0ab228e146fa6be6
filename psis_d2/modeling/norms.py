"""Normalization layers for any number of channels."""

import math

import torch
from detectron2.layers import NaiveSyncBatchNorm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Cells of a map for which PyTorch's kernels for channels_last go channel by channel of a group, a
# few floats at a time: forward up to the first number, backward up to about the last. Below 64
# cells there is nothing to win.
_CELLS, _SLOW_FORWARD = (64, 4096), 1024


class MapGroupNorm(nn.GroupNorm):
    """Group norm, up to rounding PyTorch's, that is fast for many small maps on a CPU.

    Maps in channels_last are what convolutions on a CPU give. For those of regions PyTorch's
    group norm, its backward above all, takes ten times as long as the arithmetic; here
    sums go over whole rows of channels. Everything else goes to PyTorch: other devices, number
    formats, layouts and sizes, and graphs that are traced.
    """

    def forward(self, x: Tensor) -> Tensor:
        """float [R, C, H, W] to the same shape."""
        if not self._sums_rows(x):
            return super().forward(x)
        arguments = (x, self.weight, self.bias, self.num_groups, self.eps)
        return _RowGroupNorm.apply(*arguments)

    def _sums_rows(self, x: Tensor) -> bool:
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return False
        if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or x.dim() != 4:
            return False
        return (
            self.affine
            and x.dtype == self.weight.dtype == torch.float32
            and len(x) > 0
            and _CELLS[0] <= x.shape[2] * x.shape[3] <= _CELLS[1]
            and x.is_contiguous(memory_format=torch.channels_last)
        )


def _rows(x: Tensor) -> Tensor:
    """A map [R, C, H, W] in channels_last as [R, H W, C], without a copy."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


class _RowGroupNorm(torch.autograd.Function):
    """y = (x - mean) rstd weight + bias, with mean and rstd of a region's group of channels."""

    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps):
        regions, channels, height, width = x.shape
        cells = height * width
        if cells >= _SLOW_FORWARD:
            sizes = (regions, channels, cells, groups)
            y, mean, rstd = torch.native_group_norm(x, weight, bias, *sizes, eps)
        else:
            rows, number = _rows(x), channels // groups * cells
            mean = rows.sum(1).view(regions, groups, -1).sum(2) / number
            square = rows.square().sum(1).view(regions, groups, -1).sum(2) / number
            rstd = (square - mean.square()).clamp_(min=0).add_(eps).rsqrt_()
            scale = rstd[:, :, None] * weight.view(groups, -1)
            shift = bias.view(groups, -1) - mean[:, :, None] * scale
            y = torch.empty_like(x)
            scale, shift = (t.view(regions, 1, channels) for t in (scale, shift))
            torch.addcmul(shift, rows, scale, out=_rows(y))
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, mean, rstd = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        (regions, groups), channels = mean.shape, len(weight)
        rows, slopes = _rows(x), _rows(dy)
        number = channels // groups * rows.shape[1]
        by_group = (regions, groups, channels // groups)
        total = slopes.sum(1).view(by_group)  # of dy, of a channel
        product = (slopes * rows).sum(1).view(by_group)  # of dy x
        weights = weight.view(groups, -1)
        # dx = dy scale + x of_x + rest, the last two from the gradients of mean and rstd.
        scale = rstd[:, :, None] * weights
        of_x = (total * weights).sum(2) * mean - (product * weights).sum(2)
        of_x = of_x * rstd.pow(3) / number
        rest = -of_x * mean - (total * weights).sum(2) * rstd / number
        of_x, rest = (t[:, :, None].expand(by_group).reshape(regions, 1, -1) for t in (of_x, rest))
        dx = torch.empty_like(x)
        torch.addcmul(rest, rows, of_x, out=_rows(dx))
        _rows(dx).addcmul_(slopes, scale.view(regions, 1, channels))
        of_weight = ((product - total * mean[:, :, None]) * rstd[:, :, None]).sum(0)
        return dx, of_weight.flatten(), total.sum(0).flatten(), None, None


def tower_norm(name: str):
    """The norm of a tower of convolutions: a name, or for "GN" a function of the channels.

    Detectron2's own "GN" has 32 groups, which PyTorch refuses for 16 channels, and its
    ``RetinaNetHead`` tries on one. Here there are 32 groups, or the largest common divisor of 32
    and the channels.
    """
    if name != "GN":
        return name
    return lambda channels: MapGroupNorm(math.gcd(32, channels), channels)


def region_norm(name: str):
    """The norm of layers that see regions: :func:`tower_norm`, and a "SyncBN" for any number.

    How many regions a process has is chance, and it may be none. PyTorch's synchronized batch norm
    refuses an empty batch; this one weighs the statistics of a process by its number of regions, as
    OPMask's released code does. A process without regions has to call it all the same, see
    :meth:`psis_d2.modeling.mask_heads.base.RegionMaskHead.take_part`.
    """
    if "SyncBN" in name:
        return lambda channels: NaiveSyncBatchNorm(channels, stats_mode="N")
    return tower_norm(name)
