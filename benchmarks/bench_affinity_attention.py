"""Times affinity_attention (CPMask, eq. 4 to 6) against PyTorch.

    python benchmarks/bench_affinity_attention.py --device cpu --threads 1

Rivals: "literal", the equations one by one; "products", layer_norm and batched products, still with
the whole matrix of affinities; "sdpa", PyTorch's scaled_dot_product_attention with the foreground
as one more channel of the value, the op's reference, in the backend that PyTorch picks and in each
of its backends. benchmarks/common.py says how they are compared.

Inputs are smooth fields: of random ones every pixel resembles itself only, whatever the errors.
"""

from collections.abc import Callable

from psis_d2.ops import affinity_attention, reference

import torch
import torch.nn.functional as F
from common import HALF_AND_SINGLE, Case, OpBenchmark, Unsupported, Variant, Work, main
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

EPS = 1e-5


def literal(theta: Tensor, phi: Tensor, value: Tensor, foreground: Tensor, scale: float):
    """The equations."""

    def normalize(x: Tensor) -> Tensor:
        x = x.flatten(2)
        return (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + EPS).sqrt()

    scores = normalize(theta).transpose(1, 2) @ normalize(phi)
    affinities = (scores * scale).softmax(2)
    attended = (affinities @ value.flatten(2).transpose(1, 2)).transpose(1, 2)
    sums = (affinities * foreground.flatten(1)[:, None]).sum(2)
    return attended.reshape(value.shape), sums


def products(theta: Tensor, phi: Tensor, value: Tensor, foreground: Tensor, scale: float):
    """One product for both results."""
    queries, keys = (
        F.layer_norm(x.flatten(2).transpose(1, 2), x.shape[1:2], eps=EPS) for x in (theta, phi)
    )
    affinities = (torch.bmm(queries * scale, keys.transpose(1, 2))).softmax(2)
    columns = torch.cat([value, foreground[:, None]], dim=1).flatten(2)
    attended = torch.bmm(columns, affinities.transpose(1, 2))
    return attended[:, :-1].reshape(value.shape), attended[:, -1]


def in_backend(backend: SDPBackend) -> Callable:
    """The reference in one of PyTorch's backends."""

    def run(*arguments):
        try:
            with sdpa_kernel(backend):
                return reference.affinity_attention(*arguments)
        except RuntimeError as error:
            raise Unsupported(str(error).splitlines()[0]) from None

    return run


class AffinityAttentionBenchmark(OpBenchmark):
    """Shapes are N, C, G, side of the map; the scale is C ** -0.5."""

    op = "affinity_attention"
    limits = {torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 2e-2}
    shapes = {
        "cpu": [(16, 64, 64, 14), (16, 256, 256, 14), (16, 256, 128, 14), (8, 64, 64, 28)],
        "cuda": [
            (128, 256, 256, 14),
            (128, 256, 128, 14),
            (128, 128, 128, 14),
            (128, 64, 64, 14),
            (32, 256, 256, 14),
            (256, 256, 256, 14),
            (128, 256, 256, 7),
            (128, 64, 64, 28),
            (128, 256, 256, 28),
        ],
    }

    def make_case(self, shape, generator):
        n, c, g, side = shape

        def field(channels: int) -> Tensor:
            a, b, phase = torch.rand(3, n, channels, 1, 1, generator=generator)
            y, x = torch.arange(side).view(side, 1), torch.arange(side)
            return torch.sin((a - 0.5) * x + (b - 0.5) * y + 6 * phase)

        phi = field(c)
        inputs = [(phi + field(c)) / 2, phi, field(g), (field(1)[:, 0] > 0).float()]
        return Case(f"{n},{c},{g},{side}x{side}", inputs, (c**-0.5,))

    def exact(self, *arguments):
        return literal(*arguments)

    def variants(self):
        backends = {
            "flash": SDPBackend.FLASH_ATTENTION,
            "cudnn": SDPBackend.CUDNN_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION,
        }
        return [
            Variant("literal", literal, "literal"),
            Variant("products", products, "tuned", HALF_AND_SINGLE),
            Variant("sdpa", reference.affinity_attention, "tuned", HALF_AND_SINGLE),
            *(
                Variant(f"sdpa {name}", in_backend(b), "other", HALF_AND_SINGLE, devices=("cuda",))
                for name, b in backends.items()
            ),
            Variant("ours", affinity_attention, "ours", HALF_AND_SINGLE),
        ]

    def work(self, case, size):
        theta, _, value, foreground = case.inputs
        n, c = theta.shape[:2]
        pixels, g = foreground[0].numel(), value.shape[1]
        # A pass over all pairs of pixels costs this for each channel.
        pairs = 2 * n * pixels**2
        moved = 2 * theta.numel() + 2 * value.numel() + 2 * foreground.numel()
        # Backward reads inputs and the outputs' gradients, writes the inputs' gradients; scores
        # again, the gradient of the affinities, then of theta, phi and the value.
        both = moved + 4 * theta.numel() + 3 * value.numel() + 3 * foreground.numel()
        return (
            Work(moved=moved * size, matmul=pairs * (c + g + 1)),
            Work(moved=both * size, matmul=pairs * (4 * c + 3 * g + 3)),
        )


if __name__ == "__main__":
    main(AffinityAttentionBenchmark(), __doc__)
