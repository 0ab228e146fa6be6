"""Times whole models: Detectron2's Mask R-CNN and every method, with kernels and without.

    python benchmarks/bench_models.py --device cpu --threads 1 --size 160

Random weights, random images with rectangles as objects. Training is a step of SGD; inference takes
the 100 best boxes, whatever their score. "ops" is the share of time that psis_d2's compiled ops
take; models that use none are measured once. A method is every configs/<method>_R50.yaml.
"""

import argparse
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import psis_d2.modeling  # noqa: F401  (registers heads)
from psis_d2.config import add_psis_config
from psis_d2.data.shape_priors import (
    SIDE,
    ShapePriors,
    num_priors,
    save_shape_priors,
)
from psis_d2.ops import without_kernels

import numpy as np
import torch
from common import parse_common, print_environment, print_table, save
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from measure import ROOT, environment, measure, peak_memory, trace

CONFIGS = ROOT / "configs"
PLAIN = "Mask R-CNN"  # Detectron2's own heads
DETECTRON2_HEADS = ["MODEL.ROI_HEADS.NAME", "StandardROIHeads"]
DETECTRON2_HEADS += ["MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"]
SIZES = {"cpu": 160, "cuda": 800}  # shorter side of the images
OBJECTS = 8  # an image


def make_config(name: str, device: str, scratch: Path) -> CfgNode:
    """A method's config for `device`; PLAIN is the base config with Detectron2's heads.

    What a config needs in files is made in the folder `scratch`.
    """
    cfg = get_cfg()
    add_psis_config(cfg)
    base = "Base-RCNN-FPN" if name == PLAIN else name
    cfg.merge_from_file(str(CONFIGS / f"{base}.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", device, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0])
    cfg.merge_from_list(DETECTRON2_HEADS if name == PLAIN else [])
    if cfg.MODEL.ROI_MASK_HEAD.NAME == "ShapeMaskHead":
        cfg.PSIS.SHAPEMASK.PRIORS = write_random_priors(cfg, scratch)
    return cfg


def write_random_priors(cfg: CfgNode, folder: Path) -> str:
    """A file of as many shape priors as a config wants: training would make them from masks."""
    agnostic = cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK
    shape = () if agnostic else (cfg.MODEL.ROI_HEADS.NUM_CLASSES,)
    priors = np.random.default_rng(0).random((*shape, num_priors(cfg), SIDE, SIDE), np.float32)
    path = str(folder / "priors.npz")
    save_shape_priors(path, ShapePriors(priors, {"format": "psis_d2 shape priors 1"}))
    return path


def make_batch(images: int, size: int, classes: int) -> list[dict]:
    """Images of size x 5/3 size; half of the objects have a mask that training may see."""
    generator = torch.Generator().manual_seed(0)
    height, width = size, size * 5 // 3
    scale = torch.tensor([width, height, width, height])
    batch = []
    for index in range(images):
        corners = 0.6 * torch.rand(OBJECTS, 2, generator=generator)
        sides = 0.1 + 0.3 * torch.rand(OBJECTS, 2, generator=generator)
        boxes = (torch.cat([corners, corners + sides], dim=1) * scale).round()
        masks = torch.zeros(OBJECTS, height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.randint(classes, (OBJECTS,), generator=generator)
        instances.gt_has_mask = torch.arange(OBJECTS) % 2 == 0
        instances.gt_masks = BitMasks(masks & instances.gt_has_mask[:, None, None])
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        batch.append(
            {"image": image, "height": height, "width": width, "image_id": index}
            | {"instances": instances}
        )
    return batch


def training_step(model: torch.nn.Module, batch: list[dict]) -> Callable[[], None]:
    """Forward, backward, and a step that hardly moves: random weights would diverge."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-8, momentum=0.9)

    def step():
        model.train()
        torch.manual_seed(0)  # the same proposals are sampled
        with EventStorage():
            losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return step


def inference(model: torch.nn.Module, batch: list[dict]) -> Callable[[], None]:
    """A forward of the same images."""

    def step():
        model.eval()
        with torch.no_grad():
            model(batch)

    return step


def share_of_ops(events: list[dict], device: str) -> float:
    """Part of the time of a trace that psis_d2's ops take: of kernels on CUDA, else of the CPU."""
    if device == "cuda":
        kernels = [e for e in events if e.get("cat") == "kernel"]
        ours = sum(e["dur"] for e in kernels if "psis_d2::" in e["name"])
        return ours / max(1e-9, sum(e["dur"] for e in kernels))
    spans = [e for e in events if e.get("cat") == "cpu_op"]
    start = min(e["ts"] for e in spans)
    total = max(e["ts"] + e["dur"] for e in spans) - start
    ours, end = 0.0, start
    for event in sorted(spans, key=lambda e: e["ts"]):
        # An op may be in the trace several times, once for each layer of the dispatcher.
        if event["name"].startswith("psis_d2::") and event["ts"] >= end:
            ours += event["dur"]
            end = event["ts"] + event["dur"]
    return ours / max(1e-9, total)


def bench(name: str, device: str, size: int, images: int, seconds: float) -> list[dict[str, str]]:
    """One row with kernels; if the model uses any, one without."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        cfg = make_config(name, device, Path(scratch))
        model = build_model(cfg)
    batch = make_batch(images, size, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    rows, uses_ops = [], False
    for kernels in (True, False):
        if not kernels and not uses_ops:
            rows[0]["kernels"] = "none used"
            break
        row = {"model": name, "kernels": "on" if kernels else "off"}
        with nullcontext() if kernels else without_kernels():
            for mode, make in (("train", training_step), ("test", inference)):
                step = make(model, batch)
                step()
                share = share_of_ops(trace(step, device), device)
                uses_ops |= share > 0
                time = measure(step, device, seconds)
                row[f"{mode} images/s"] = f"{images / time.best * 1e6:.3g}"
                row[f"{mode} MB"] = f"{peak_memory(step, device) / 1e6:.0f}"
                row[f"{mode} ops"] = f"{share:.1%}" if kernels else ""
        rows.append(row)
        print("  " + ", ".join(f"{k} {v}" for k, v in row.items() if k != "model"), flush=True)
    return rows


def main() -> None:
    """Parses the arguments, measures every model, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, help="shorter side of the images")
    parser.add_argument("--images", type=int, default=2, help="a batch")
    parser.add_argument("--configs", nargs="+", help="names in configs/ without .yaml")
    args = parse_common(parser)
    size = args.size or SIZES[args.device]
    facts = environment(args.device)
    print_environment(facts)
    found = sorted(path.stem for path in CONFIGS.glob("*_R50.yaml"))
    names = [PLAIN, *(args.configs or found)]
    rows = []
    for name in names[: args.shapes]:
        print(f"{name} ...", flush=True)
        rows += bench(name, args.device, size, args.images, args.seconds)
    print_table(rows)
    if args.save:
        save("models", [row | {"size": str(size)} for row in rows], facts, args.save)


if __name__ == "__main__":
    main()
