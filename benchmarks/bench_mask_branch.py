"""Parameters, floating-point operations and time of mask branches (ShapeMask, Tab. 6).

    python benchmarks/bench_mask_branch.py --device cpu --threads 1
    python benchmarks/bench_mask_branch.py --configs shapemask_specific_R101 --regions 100

The mask head of a config alone, from features of regions to masks: no backbone, no pooling. Numbers
are in millions; a FLOP is a multiplication with its addition, as in the paper, of one region;
biases, norms and activations are not counted. The time is that of all regions of an image together.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import psis_d2.modeling  # noqa: F401  (before detectron2)
from psis_d2.modeling.context import RegionContext

import torch
from common import parse_common, print_environment, print_table, save
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import build_mask_head
from detectron2.structures import Boxes, Instances
from measure import environment, measure
from models import make_config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# The paper's rows, from wide to narrow.
CONFIGS = ("maskrcnn_oracle_R101", "shapemask_specific_R101")
CONFIGS += tuple(f"shapemask_light{channels}_R101" for channels in (64, 32, 16))
FPN_CHANNELS = 256


def build(name: str, device: str, scratch: Path) -> tuple[nn.Module, int]:
    """A config's mask head and the cells a side of its features."""
    torch.manual_seed(0)
    cfg = make_config(name, device, scratch)
    cells = cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
    head = build_mask_head(cfg, ShapeSpec(channels=FPN_CHANNELS, height=cells, width=cells))
    if head.needs.box_predictor or head.needs.box_features:
        raise SystemExit(f"error: {name} reads more than the features of regions.")
    return head.eval().to(device), cells


def make_context(head: nn.Module, regions: int, cells: int, device: str) -> RegionContext:
    """Test-time regions of one image with random features."""
    features = torch.rand(regions, FPN_CHANNELS, cells, cells, device=device)
    corners = torch.rand(regions, 2, device=device) * 300
    boxes = Boxes(torch.cat([corners, corners + 200], dim=1))
    classes = torch.zeros(regions, dtype=torch.int64, device=device)
    instances = Instances((800, 800), pred_boxes=boxes, pred_classes=classes)
    frames = [head.frames(boxes, (800, 800))] if head.needs.wide_frames else None
    return RegionContext(
        [instances], features, pool=lambda _: features, box_predictor=None, wide_frames=frames
    )


@torch.no_grad()
def predict(head: nn.Module, context: RegionContext) -> torch.Tensor:
    """Mask logits."""
    return head.predict(context)


def count_parameters(head: nn.Module) -> int:
    """Of all layers; shape priors are no parameters."""
    return sum(p.numel() for p in head.parameters())


def count_flops(head: nn.Module, cells: int, device: str) -> int:
    """Multiplications with an addition for one region."""
    with FlopCounterMode(display=False) as counter:
        predict(head, make_context(head, 1, cells, device))
    return counter.get_total_flops() // 2


def measure_config(
    name: str, regions: int, device: str, seconds: float, scratch: Path
) -> dict[str, str]:
    """The row of a config."""
    head, cells = build(name, device, scratch)
    call = partial(predict, head, make_context(head, regions, cells, device))
    return {
        "config": name,
        "params (M)": f"{count_parameters(head) / 1e6:.2f}",
        "FLOPs (M)": f"{count_flops(head, cells, device) / 1e6:.0f}",
        "regions": str(regions),
        "time (ms)": f"{measure(call, device, seconds).best / 1e3:.1f}",
    }


def main() -> None:
    """Parses the arguments, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", default=CONFIGS, metavar="NAME")
    parser.add_argument("--regions", type=int, help="default: 8 on the CPU, 100 on CUDA")
    args = parse_common(parser)
    facts = environment(args.device)
    print_environment(facts)
    regions = args.regions or (8 if args.device == "cpu" else 100)
    with tempfile.TemporaryDirectory() as scratch:
        rows = [
            measure_config(name, regions, args.device, args.seconds, Path(scratch))
            for name in args.configs
        ]
    print_table(rows)
    if args.save:
        save("mask_branch", rows, facts, args.save)


if __name__ == "__main__":
    main()
