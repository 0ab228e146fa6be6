"""Times message_passing (ShapeProp, eq. 4) against PyTorch, forward and forward + backward.

    python benchmarks/bench_message_passing.py --device cpu --threads 1

Rivals: "authors", the released code's form (F.unfold, which launches once per region on CUDA);
"unfold", the same with regions and channels folded into one image; "shifts", nine shifted views of
the padded map, the op's reference. benchmarks/common.py says how they are compared.
"""

from psis_d2.ops import message_passing, reference

import torch
import torch.nn.functional as F
from common import HALF_AND_SINGLE, Case, OpBenchmark, Variant, Work, main
from torch import Tensor


def authors(m0: Tensor, weights: Tensor, steps: int, norm: str) -> Tensor:
    """ShapeProp's form: unfold, multiply, sum."""
    n, c, h, w = m0.shape
    kernel = reference.normalize_weights(weights.reshape(n, -1, 9, h, w), norm).flatten(3)
    for _ in range(steps):
        windows = F.unfold(m0, 3, padding=1).view(n, c, 9, h * w)
        m0 = (windows * kernel).sum(2).view(n, c, h, w)
    return m0


def unfold(m0: Tensor, weights: Tensor, steps: int, norm: str) -> Tensor:
    """The same with one unfold for all regions: channels are independent."""
    n, c, h, w = m0.shape
    kernel = reference.normalize_weights(weights.reshape(n, -1, 9, h, w), norm).flatten(3)
    for _ in range(steps):
        windows = F.unfold(m0.view(1, n * c, h, w), 3, padding=1).view(n, c, 9, h * w)
        m0 = (windows * kernel).sum(2).view(n, c, h, w)
    return m0


class MessagePassingBenchmark(OpBenchmark):
    """Shapes are N, C, Wc, side of the map; as many steps as the side."""

    op = "message_passing"
    norm = "sigmoid_sum"
    shapes = {
        "cpu": [(64, 24, 24, 14), (64, 24, 1, 14), (100, 16, 16, 14), (32, 24, 24, 28)],
        "cuda": [
            (512, 24, 24, 14),
            (1024, 24, 24, 14),
            (128, 24, 24, 14),
            (100, 24, 24, 14),
            (800, 24, 24, 14),
            (512, 24, 1, 14),
            (512, 16, 16, 14),
            (128, 16, 16, 28),
            (512, 16, 16, 28),
            (256, 24, 24, 7),
            (64, 24, 24, 56),
        ],
    }

    def make_case(self, shape, generator):
        n, c, wc, side = shape
        m0, weights = (
            torch.randn(n, channels, side, side, generator=generator) for channels in (c, wc * 9)
        )
        return Case(f"{n},{c},{wc},{side}x{side}", [m0, weights], (side, self.norm))

    def exact(self, *arguments):
        return reference.message_passing(*arguments)

    def variants(self):
        return [
            Variant("authors", authors, "literal"),
            Variant("unfold", unfold, "tuned"),
            Variant("shifts", reference.message_passing, "tuned"),
            Variant("ours", message_passing, "ours", HALF_AND_SINGLE),
        ]

    def work(self, case, size):
        (m0, weights), steps = case.inputs, case.args[0]
        multiply_adds = 9 * m0.numel() * steps
        # Forward reads the weights and m0 and writes m; backward reads them again with the output's
        # gradient and writes two. It repeats the steps, transposes them, and sums for the weights.
        forward = weights.numel() + 2 * m0.numel()
        both = forward + 2 * weights.numel() + 3 * m0.numel()
        return (
            Work(moved=forward * size, fp32=2 * multiply_adds),
            Work(moved=both * size, fp32=4 * 2 * multiply_adds),
        )


if __name__ == "__main__":
    main(MessagePassingBenchmark(), __doc__)
