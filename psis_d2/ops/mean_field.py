"""Mean-field inference of a fully connected CRF with two labels, for the masks of regions.

Plain PyTorch on every device, and exact: every pixel meets every other one, where the authors' code
filters on a lattice that approximates the kernels.

Shape legend: R regions, H x W map, L = H * W pixels, D channels of the guide.
"""

from psis_d2.ops._arguments import DTYPES, check_dtype, check_same_device, dtype_name
from psis_d2.ops.reference import state_dtype

import torch
from torch import Tensor

_MIN_PROBABILITY = 1e-5  # as pydensecrf clips; a pixel that is certain could never change


@torch.no_grad()
def mean_field(
    probabilities: Tensor,
    guide: Tensor,
    *,
    steps: int = 5,
    gaussian_weight: float = 3.0,
    gaussian_sigma: float = 3.0,
    bilateral_weight: float = 10.0,
    bilateral_sigma: float = 80.0,
    color_sigma: float = 13.0,
    max_elements: int = 2**23,
) -> Tensor:
    """Sharpens soft masks by the pixels below them (Krähenbühl and Koltun, NIPS 2011).

    The mean-field update of Potts labels, written for the logit x of the foreground, with
    q = sigmoid(x), starting at the logit u of `probabilities`::

        x <- u + gaussian_weight * G (2 q - 1) + bilateral_weight * B (2 q - 1)

    where G and B are the kernels of the paper's Eq. 3 for all pairs of pixels i and j, p being
    their positions and c their colors::

        G_ij = exp(-|p_i - p_j|^2 / (2 gaussian_sigma^2))
        B_ij = exp(-|p_i - p_j|^2 / (2 bilateral_sigma^2) - |c_i - c_j|^2 / (2 color_sigma^2))

    each normalized symmetrically, K_ij / sqrt(sum_k K_ik * sum_k K_jk), as pydensecrf does. Like
    its sums, these include i = j, which the paper leaves out. The default weights, widths and
    number of steps are those of pydensecrf's examples; it has none of its own.

    Args:
        probabilities: float [R, 1, H, W] in [0, 1], of the foreground.
        guide: float [R, D, H, W], in units of `color_sigma` (colors: 0 to 255).
        steps: number of updates, >= 0.
        gaussian_weight, bilateral_weight: of the two kernels; 0 leaves one out.
        gaussian_sigma, bilateral_sigma: widths in pixels of the map.
        color_sigma: width in units of the guide.
        max_elements: numbers in the largest intermediate result, of which there are two. Regions
            are taken in groups of that size; a region with more pairs of pixels is taken in blocks
            of rows, whose kernels are then computed anew in every step.

    Returns:
        float [R, 1, H, W] in [0, 1], of the dtype of `probabilities`, without a gradient.

    Deterministic. float16 and bfloat16 are computed in float32.

    Raises:
        ValueError: shapes, devices or settings do not fit.
        TypeError: the dtypes are not floating point.
    """
    _check(probabilities, guide, steps, gaussian_sigma, bilateral_sigma, color_sigma)
    n, _, height, width = probabilities.shape
    pixels = height * width
    if n == 0 or pixels == 0:
        return probabilities.clone()
    dtype = state_dtype(probabilities)
    unary = probabilities.to(dtype).flatten(1)
    unary = unary.clamp(_MIN_PROBABILITY, 1 - _MIN_PROBABILITY).logit()
    colors = guide.to(dtype).flatten(2) / color_sigma
    position = _positions(height, width, unary)

    results = []
    group = max(1, max_elements // pixels**2)
    # A matrix product would be lowered.
    with torch.autocast(probabilities.device.type, enabled=False):
        gaussian = _Filter(position / gaussian_sigma, None, max_elements)
        for u, c in zip(unary.split(group), colors.split(group), strict=True):
            bilateral = _Filter(position / bilateral_sigma, c, max_elements)
            x = u
            for _ in range(steps):
                sign = 2 * x.sigmoid() - 1
                x = u + gaussian_weight * gaussian(sign) + bilateral_weight * bilateral(sign)
            results.append(x.sigmoid())
    return torch.cat(results).view_as(probabilities).to(probabilities.dtype)


class _Filter:
    """A symmetrically normalized Gaussian kernel over all pairs of pixels.

    Args:
        position: float [2, L], in standard deviations.
        colors: float [r, D, L], in standard deviations; None for one kernel of positions alone.
        max_elements: larger kernels are not stored.
    """

    def __init__(self, position: Tensor, colors: Tensor | None, max_elements: int):
        pixels = position.shape[1]
        self.position, self.colors = position, colors
        regions = 1 if colors is None else len(colors)
        self.rows = max(1, min(pixels, max_elements // (regions * pixels)))
        self.kernel = self._block(0) if self.rows == pixels else None
        self.scale = 1.0
        self.scale = self(torch.ones_like(position[:1]).expand(regions, -1)).rsqrt()

    def __call__(self, x: Tensor) -> Tensor:
        """float [r, L] to the same shape."""
        scaled = (x * self.scale)[:, None]
        if self.kernel is not None:
            filtered = scaled @ self.kernel.mT
        else:
            starts = range(0, self.position.shape[1], self.rows)
            filtered = torch.cat([scaled @ self._block(start).mT for start in starts], dim=2)
        return filtered[:, 0] * self.scale

    def _block(self, start: int) -> Tensor:
        """Some rows of the kernel before normalization, float [rows, L] or [r, rows, L]."""
        rows = slice(start, start + self.rows)
        exponent = _half_squares(self.position, rows)
        if self.colors is not None:
            exponent = exponent.repeat(len(self.colors), 1, 1)
            for channel in self.colors.unbind(1):
                difference = channel[:, rows, None] - channel[:, None, :]
                exponent.addcmul_(difference, difference, value=-0.5)
        return exponent.exp_()


def _half_squares(position: Tensor, rows: slice) -> Tensor:
    """-|p_i - p_j|^2 / 2 for some rows i, float [rows, L]."""
    differences = position[:, rows, None] - position[:, None, :]
    return differences.square().sum(dim=0) * -0.5


def _positions(height: int, width: int, like: Tensor) -> Tensor:
    """float [2, L], row and column of every pixel."""
    axes = (torch.arange(n, dtype=like.dtype, device=like.device) for n in (height, width))
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)


def _check(probabilities: Tensor, guide: Tensor, steps: int, *sigmas: float) -> None:
    """Raises one sentence about the first argument that does not fit."""
    op = "mean_field"
    if probabilities.dim() != 4 or probabilities.shape[1] != 1:
        shape = list(probabilities.shape)
        raise ValueError(f"{op}: probabilities must be [R, 1, H, W], not {shape}.")
    n, _, *size = probabilities.shape
    if guide.dim() != 4 or [guide.shape[0], *guide.shape[2:]] != [n, *size]:
        raise ValueError(
            f"{op}: guide {list(guide.shape)} does not fit probabilities "
            f"{list(probabilities.shape)}: it must be [R, D, H, W]."
        )
    check_same_device(op, "probabilities", probabilities, "guide", guide)
    check_dtype(op, probabilities)
    if guide.dtype not in DTYPES:
        raise TypeError(f"{op}: the guide must be floating point, not {dtype_name(guide)}.")
    if steps < 0:
        raise ValueError(f"{op}: steps must be at least 0, not {steps}.")
    if min(sigmas) <= 0:
        raise ValueError(f"{op}: widths must be positive, not {min(sigmas)}.")
