"""Times shape_prior_blend (ShapeMask, eq. 2 and the fitting into the box) against PyTorch.

    python benchmarks/bench_shape_prior_blend.py --device cpu --threads 1

Rivals: "gather", the released code's form (every box gets a copy of its priors, which are weighed
and summed) with F.grid_sample; "product", the same by matrix products; "hats", matrix products for
the placement too, the op's reference. The priors are fixed, as the method's are: gradients are
those of the logits. benchmarks/common.py says how they are compared.
"""

from psis_d2.ops import reference, shape_prior_blend

import torch
import torch.nn.functional as F
from common import Case, OpBenchmark, Variant, Work, main
from torch import Tensor

ENLARGED = 1.25  # frame over box, the released code's


def place(blended: Tensor, boxes: Tensor, frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, by F.grid_sample."""
    n, (h, w) = len(boxes), size
    coordinates = []
    for axis, cells in ((0, w), (1, h)):
        begin, extent = boxes[:, axis, None], (boxes[:, axis + 2] - boxes[:, axis])[:, None]
        unit = (frames[:, axis + 2] - frames[:, axis])[:, None] / cells
        centers = torch.arange(cells, device=boxes.device, dtype=boxes.dtype) + 0.5
        coordinates.append(2 * (frames[:, axis, None] - begin + centers * unit) / extent - 1)
    x, y = coordinates
    grid = torch.stack([x[:, None].expand(n, h, w), y[:, :, None].expand(n, h, w)], dim=-1)
    return F.grid_sample(blended[:, None], grid, align_corners=False)[:, 0]


def gather(logits, priors, boxes, frames, size, classes=None) -> Tensor:
    """A copy of its priors for every box."""
    own = priors.expand(len(logits), *priors.shape) if classes is None else priors[classes]
    blended = (logits.softmax(1)[:, :, None, None] * own).sum(1)
    return place(blended, boxes, frames, size)


def product(logits, priors, boxes, frames, size, classes=None) -> Tensor:
    """A matrix product instead of multiplication and sum."""
    weights, side = logits.softmax(1), priors.shape[-1]
    if classes is None:
        blended = weights @ priors.flatten(1)
    else:
        blended = torch.bmm(weights[:, None], priors[classes].flatten(2))
    return place(blended.view(-1, side, side), boxes, frames, size)


class ShapePriorBlendBenchmark(OpBenchmark):
    """Shapes are N, classes (0: all boxes share the priors), K, P; the grid is P x P too."""

    op = "shape_prior_blend"
    limits = {
        torch.float32: 5e-5
    }  # coordinates of hundreds of pixels are rounded to 1e-5 of a cell
    shapes = {
        "cpu": [(128, 0, 100, 32), (128, 80, 20, 32), (16, 0, 100, 32), (128, 0, 100, 14)],
        "cuda": [
            (128, 0, 100, 32),
            (128, 80, 20, 32),
            (16, 0, 100, 32),
            (16, 80, 20, 32),
            (1600, 0, 100, 32),
            (1600, 80, 20, 32),
            (128, 0, 100, 14),
            (128, 0, 100, 112),
        ],
    }

    def make_case(self, shape, generator):
        n, groups, k, side = shape

        def random(*sizes: int) -> Tensor:
            return torch.rand(sizes, generator=generator)

        priors = random(groups, k, side, side) if groups else random(k, side, side)
        classes = torch.randint(groups, (n,), generator=generator) if groups else None
        corner, extent = 500 * random(n, 2), 16 + 300 * random(n, 2)
        margin = extent * (ENLARGED - 1) / 2
        boxes = torch.cat([corner, corner + extent], dim=1)
        frames = torch.cat([corner - margin, corner + extent + margin], dim=1)
        name = f"{n},{groups or 'shared'},{k},{side}x{side}"
        logits = 4 * random(n, k) - 2
        return Case(name, [logits], (priors, boxes, frames, (side, side), classes))

    def exact(self, logits, priors, boxes, frames, size, classes):
        return product(logits, priors.double(), boxes.double(), frames.double(), size, classes)

    def variants(self):
        return [
            Variant("gather", gather, "literal"),
            Variant("product", product, "tuned"),
            Variant("hats", reference.shape_prior_blend, "tuned"),
            Variant("ours", shape_prior_blend, "ours"),
        ]

    def work(self, case, size):
        (logits,), (priors, _, _, (h, w), classes) = case.inputs, case.args
        n, k = logits.shape
        pixels = priors.shape[-1] ** 2
        groups = 1 if classes is None else classes.unique().numel()
        blend = 2 * n * k * pixels
        moved = logits.numel() + groups * k * pixels + n * h * w + 8 * n
        # Backward reads the output's gradient, logits and priors and writes the logits' gradient;
        # every prior meets the blend's gradient.
        both = 2 * moved + logits.numel()
        return Work(moved=moved * size, fp32=blend), Work(moved=both * size, fp32=2 * blend)


if __name__ == "__main__":
    main(ShapePriorBlendBenchmark(), __doc__)
