"""Runs the largest case of each op's benchmark once, forward and backward, for a profiler.

ncu -k regex:psis_d2 python tools/gpu/profile_kernels.py --device cuda
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from psis_d2 import ops  # noqa: E402

import torch  # noqa: E402
from bench_affinity_attention import AffinityAttentionBenchmark  # noqa: E402
from bench_message_passing import MessagePassingBenchmark  # noqa: E402
from bench_shape_prior_blend import ShapePriorBlendBenchmark  # noqa: E402
from common import prepare  # noqa: E402

BENCHMARKS = (MessagePassingBenchmark, AffinityAttentionBenchmark, ShapePriorBlendBenchmark)


def main() -> None:
    """One call of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    device = parser.parse_args().device
    with ops.with_kernels():
        for kind in BENCHMARKS:
            bench = kind()
            case = bench.make_case(bench.shapes[device][0], torch.Generator().manual_seed(0))
            # prepare runs the op once already, for the shape of its output.
            prepare(getattr(ops, bench.op), case, device, torch.float32).both()
            print(f"{bench.op} {case.name}", flush=True)


if __name__ == "__main__":
    main()
