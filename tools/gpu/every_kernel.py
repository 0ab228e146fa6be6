"""Runs every instantiation of every kernel once, small, and compares it with the reference.

    python tools/gpu/every_kernel.py --device cuda [--list]

Made for compute-sanitizer, which slows kernels down a hundred times. `--list` counts the kernels
that ran, by the profiler.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from psis_d2.ops import (  # noqa: E402
    affinity_attention,
    message_passing,
    reference,
    shape_prior_blend,
    with_kernels,
)

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# N, C, Wc, side, T. Tiles of 14 with weights of their own (two blocks, a warp without a map) and
# joined, tiles of 28, planes in shared memory, planes in global memory (also forward, in float64).
MAPS = [
    (1, 5, 5, 14, 3),
    (1, 3, 1, 14, 3),
    (1, 2, 2, 28, 2),
    (1, 2, 1, 28, 2),
    (1, 2, 2, 9, 3),
    (1, 2, 1, 64, 30),
]


def cases() -> Iterable[tuple[str, Callable, Callable, list[Tensor], tuple]]:
    """(name, op, reference, float64 inputs, arguments)."""
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    for n, c, wc, side, steps in MAPS:
        inputs = [random(n, c, side, side), random(n, 9 * wc, side, side)]
        name = f"message_passing {n},{c},{wc},{side},{steps}"
        arguments = (steps, "sigmoid_sum")
        yield name, message_passing, reference.message_passing, inputs, arguments
    for c, g, h, w in ((17, 65, 3, 11), (16, 8, 14, 14)):
        inputs = [random(2, c, h, w), random(2, c, h, w), random(2, g, h, w), random(2, h, w)]
        name = f"affinity_attention 2,{c},{g},{h}x{w}"
        yield name, affinity_attention, reference.affinity_attention, inputs, (0.2, 1e-5, True)
    boxes = torch.tensor([[10.0, 20.0, 50.0, 44.0]] * 3)
    frames = boxes + torch.tensor([-10.0, 5.0, 30.0, -7.0])
    for groups in (None, 2):
        priors = random(5, 9, 9) if groups is None else random(groups, 5, 9, 9)
        classes = None if groups is None else torch.tensor([0, 1, 0])
        arguments = (boxes, frames, (12, 7), classes)
        name = f"shape_prior_blend 3,{groups},5,9"
        yield (
            name,
            shape_prior_blend,
            reference.shape_prior_blend,
            [random(3, 5), priors],
            arguments,
        )


def run(fn: Callable, inputs: list[Tensor], arguments: tuple) -> list[Tensor]:
    """Outputs, then all gradients, for ones as the outputs' gradients."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    outputs = fn(*leaves, *arguments)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    grads = torch.autograd.grad(outputs, leaves, [torch.ones_like(t) for t in outputs])
    return [*(t.detach() for t in outputs), *grads]


def check(device: str) -> int:
    """Runs all cases in all dtypes; how many of them are wrong."""
    wrong = 0
    for name, op, expected, inputs, arguments in cases():
        for dtype in DTYPES:
            rounded = [t.to(dtype) for t in inputs]
            exact = run(expected, [t.double() for t in rounded], arguments)
            moved = tuple(a.to(device) if isinstance(a, Tensor) else a for a in arguments)
            found = run(op, [t.to(device) for t in rounded], moved)
            error = max(
                ((a.cpu().double() - b).norm() / b.norm().clamp(min=1.0)).item()
                for a, b in zip(found, exact, strict=True)
            )
            good = error <= LIMITS[dtype]
            wrong += not good
            print(f"{name:34} {str(dtype):15} {error:.1e} {'ok' if good else 'WRONG'}", flush=True)
    return wrong


def main() -> None:
    """Fails if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--list", action="store_true", help="count the CUDA kernels that ran")
    args = parser.parse_args()
    with with_kernels():
        if args.list and args.device == "cuda":
            activities = [torch.profiler.ProfilerActivity.CUDA]
            with torch.profiler.profile(activities=activities) as profiler:
                wrong = check(args.device)
            names = sorted({e.key for e in profiler.key_averages() if "psis_d2::" in e.key})
            print("\n".join(names), f"{len(names)} kernels ran", sep="\n")
        else:
            wrong = check(args.device)
    if wrong:
        raise SystemExit(f"error: {wrong} results are wrong.")


if __name__ == "__main__":
    main()
