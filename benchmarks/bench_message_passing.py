"""Times message_passing against eager PyTorch, forward and forward + backward.

    python benchmarks/bench_message_passing.py --device cpu --threads 1

Variants: "authors", the released code's form (F.unfold, a launch per region on CUDA); "unfold", the
same with regions and channels folded into one image; "shifts", nine shifted views, the op's twin;
"ours", the compiled op. None is timed before its output and gradients agree with float64. A
speed-up is the time of the faster of "unfold" and "shifts" over the row's: on a noisy machine,
trust ratios only.
"""

import argparse
from functools import partial

from psis_d2.ops import message_passing, op_paths, reference

import torch
import torch.nn.functional as F
from common import (
    describe_environment,
    largest_error,
    milliseconds,
    print_table,
    run,
    write_csv,
)
from torch import Tensor

MAX_ERROR = 1e-5
TUNED = ("unfold", "shifts")
# N, C, Wc, size; as many steps as the size.
SHAPES = {
    "cpu": [(64, 24, 24, 14), (64, 24, 1, 14), (100, 16, 16, 14), (32, 24, 24, 28)],
    "cuda": [
        (128, 24, 24, 14),
        (512, 24, 24, 14),
        (1024, 24, 24, 14),
        (100, 24, 24, 14),
        (512, 24, 1, 14),
        (512, 16, 16, 28),
        (64, 24, 24, 56),
    ],
}


def authors(m0: Tensor, weights: Tensor, steps: int, norm: str) -> Tensor:
    """ShapeProp's form: unfold, multiply, sum."""
    n, c, h, w = m0.shape
    kernel = reference.normalise_weights(weights.reshape(n, -1, 9, h, w), norm).flatten(3)
    for _ in range(steps):
        windows = F.unfold(m0, 3, padding=1).view(n, c, 9, h * w)
        m0 = (windows * kernel).sum(2).view(n, c, h, w)
    return m0


def unfold(m0: Tensor, weights: Tensor, steps: int, norm: str) -> Tensor:
    """The same with one unfold for all regions: channels are independent."""
    n, c, h, w = m0.shape
    kernel = reference.normalise_weights(weights.reshape(n, -1, 9, h, w), norm).flatten(3)
    for _ in range(steps):
        windows = F.unfold(m0.view(1, n * c, h, w), 3, padding=1).view(n, c, 9, h * w)
        m0 = (windows * kernel).sum(2).view(n, c, h, w)
    return m0


VARIANTS = {
    "authors": authors,
    "unfold": unfold,
    "shifts": reference.message_passing,
    "ours": message_passing,
}


def bench(shape: tuple[int, ...], norm: str, device: str, seconds: float) -> list[dict[str, str]]:
    """One row per variant."""
    n, c, wc, size = shape
    generator = torch.Generator().manual_seed(0)
    m0, weights, grad = (
        torch.randn(n, channels, size, size, generator=generator).to(device)
        for channels in (c, wc * 9, c)
    )
    arguments = {"steps": size, "norm": norm}
    doubles = [t.double() for t in (m0, weights, grad)]
    exact = run(partial(reference.message_passing, **arguments), doubles[:2], doubles[2])
    errors, times = {}, {}
    for name, function in VARIANTS.items():
        call = partial(function, **arguments)
        errors[name] = largest_error(run(call, (m0, weights), grad), exact)
        if errors[name] > MAX_ERROR:
            raise SystemExit(f"error: {name} is wrong by {errors[name]:.1e} at {shape}, {norm}.")
        with torch.no_grad():
            forward = milliseconds(partial(call, m0, weights), device, seconds)
        both = milliseconds(partial(run, call, (m0, weights), grad), device, seconds)
        times[name] = (forward, both)
    base = [min(times[name][i] for name in TUNED) for i in range(2)]
    return [
        {
            "N,C,Wc,HxW": f"{n},{c},{wc},{size}x{size}",
            "norm": norm,
            "variant": name,
            "rel.err": f"{errors[name]:.1e}",
            "fwd ms": f"{forward:.3f}",
            "fwd+bwd ms": f"{both:.3f}",
            "fwd speed-up": f"{base[0] / forward:.1f}",
            "fwd+bwd speed-up": f"{base[1] / both:.1f}",
        }
        for name, (forward, both) in times.items()
    ]


def main() -> None:
    """Parses the arguments, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU (default: its own)")
    parser.add_argument("--norms", nargs="+", default=["sigmoid_sum"])
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement")
    parser.add_argument("--shapes", type=int, help="measure only the first so many shapes")
    parser.add_argument("--csv", help="also write the table there")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: --device cuda, but PyTorch sees no CUDA device.")
    if args.threads:
        torch.set_num_threads(args.threads)
    print(describe_environment(args.device))
    print(f"message_passing on {args.device}: {op_paths()['message_passing'][args.device]}")
    rows = []
    for shape in SHAPES[args.device][: args.shapes]:
        for norm in args.norms:
            rows += bench(shape, norm, args.device, args.seconds)
    print_table(rows)
    if args.csv:
        write_csv(args.csv, rows)


if __name__ == "__main__":
    main()
