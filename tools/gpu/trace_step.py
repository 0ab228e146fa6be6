"""A profiler's trace of one training step of a model, and a table of what took longest.

    python tools/gpu/trace_step.py shapeprop_R50 --device cuda --size 800 --folder output/traces

A config's name in configs/; weights and images are random, as in benchmarks/bench_step.py.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import psis_d2.modeling  # noqa: E402, F401  (before detectron2)

import torch  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from models import make_batch, make_config, settle, training_step  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402


def main() -> None:
    """Traces the third step: the first two choose algorithms and allocate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", type=int, default=800, help="shorter side of the images")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=ROOT / "output" / "traces")
    args = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        share = 1.0 if args.device == "cuda" else 1 / 8  # of the regions, in a rehearsal
        cfg = make_config(args.config, args.device, Path(scratch), share=share)
        model = build_model(cfg)
    settle(model)
    step = training_step(
        cfg, model, make_batch(args.images, args.size, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    )
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if args.device == "cuda" else []
    step()
    step()
    with profile(activities=activities) as profiler:
        step()
        if args.device == "cuda":
            torch.cuda.synchronize()
    args.folder.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(args.folder / f"{args.config}.json.gz"))
    by = "self_cuda_time_total" if args.device == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=60))


if __name__ == "__main__":
    main()
