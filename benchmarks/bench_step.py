"""A training step and inference of whole models, beside Detectron2's Mask R-CNN in the same run.

    python benchmarks/bench_step.py --device cpu --threads 1 --save
    python benchmarks/bench_step.py --configs shapeprop_R50 --grow classes

A row says how fast a model is, how many times Mask R-CNN's time and floating-point operations it
takes and by how much the one exceeds the other ("excess": x time - x GFLOP, so in times of Mask
R-CNN's step), how many ops run, how often the host would wait for a GPU (benchmarks/stand_in.py),
the memory, and where time and operations go. Floating-point operations are those of convolutions
and matrix products, as PyTorch counts them. A model and Mask R-CNN run by turns, so that whatever
slows the machine slows both. On a CPU the smallest processor time of a step counts, which other
processes hardly touch; on CUDA the median by the clock.

On a CPU images are small, so an image has an eighth of the configs' numbers of proposals, sampled
regions and detections: at 192 pixels it has a seventeenth of the cells of one of 800. Mask R-CNN's
mask head has about as large a share of a step's operations as it has there, 30 %.

Also measured: "loader", making a sample of one image with as many objects, and "evaluation",
encoding the masks of one image. --save writes the places where the host waits, too.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import psis_d2.modeling  # noqa: F401  (before detectron2)
from psis_d2.data.mapper import PartialMaskMapper
from psis_d2.engine.resources import keep_freed_memory
from psis_d2.evaluation.predictions import ImagePredictions
from psis_d2.ops import without_kernels

import torch
from common import parse_common, print_environment, print_table, save
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from measure import environment, peak_memory
from models import PLAIN, inference, make_batch, make_config, settle, training_step
from parts import profile_step
from PIL import Image
from stand_in import StandInDevice
from torch.utils.flop_counter import FlopCounterMode

METHODS = ("maskrcnn_agnostic", "maskrcnn_agnostic_mlp", "maskx", "shapeprop", "teacher_student")
METHODS += ("opmask", "opmask_teacher_student", "contrastmask", "hourglass", "cpmask_faster")
METHODS += ("boxlosses", "points", "psis")  # the last with two stages
METHODS += ("retinamask", "shapeprop_retinamask", "shapemask", "cpmask")
METHODS += ("condinst", "boxinst", "boxinst_mixed", "boxinst_teacher_student")
SIZES = {"cpu": 192, "cuda": 800}  # shorter side of the images
GROWTH = {
    "images": (1, 2, 4),
    "objects": (1, 10, 100, 500),
    "classes": (80, 1203, 3000),
    "size": (1.0, 1.5, 2.0),  # times --size
}
VARIANTS = ["fp32", "amp", "amp channels_last", "compiled"]
SHARES = {"cpu": 1 / 8, "cuda": 1.0}  # of the regions that an image has
LEAST_ROUNDS = {"cpu": 2, "cuda": 5}
FLOP_PARTS = {
    "backbone": ["backbone"],
    "proposals": ["proposal_generator"],
    "box head": ["roi_heads.box_head", "roi_heads.box_predictor"],
}
PARTS = ("backbone", "proposals", "sampling", "pooling", "box head", "head", "targets")
PARTS += ("post-processing", "optimizer", "input", "other")


@dataclass(frozen=True)
class Point:
    """What is measured.

    Attributes:
        device: "cpu" or "cuda".
        size: shorter side of the images.
        images: a batch.
        objects: an image.
        classes: 0 for the config's.
        share: see :func:`models.make_config`.
        variant: "fp32", "amp" (bfloat16), "amp channels_last" or "compiled", the parts of the mask
            head by torch.compile.
    """

    device: str
    size: int
    images: int
    objects: int
    classes: int
    share: float = 1.0
    variant: str = "fp32"

    def columns(self) -> dict[str, str]:
        """Of a table."""
        fields = ("size", "images", "objects", "classes", "share", "variant")
        return {name: str(getattr(self, name)) for name in fields}


def mask_head_of(model: torch.nn.Module) -> torch.nn.Module:
    """Of a model with RoI heads, or of CondInst."""
    return model.mask_head if hasattr(model, "mask_head") else model.roi_heads.mask_head


class Subject:
    """A model at a point with its two steps."""

    def __init__(self, name: str, point: Point, scratch: Path):
        torch.manual_seed(0)
        self.name, self.point = name, point
        cfg = make_config(name, point.device, scratch, point.classes, point.share)
        self.cfg, self.model = cfg, build_model(cfg)
        settle(self.model)
        if "channels_last" in point.variant or point.device == "cpu":  # on a CPU as in training
            self.model = self.model.to(memory_format=torch.channels_last)
        if point.variant == "compiled":
            for part in mask_head_of(self.model).children():
                part.compile(dynamic=True)  # for any number of regions
        self.batch = make_batch(
            *(point.images, point.size, cfg.MODEL.ROI_HEADS.NUM_CLASSES, point.objects),
            plain=name == PLAIN,
            points=cfg.PSIS.get("POINTS", False),
        )
        amp = point.variant.startswith("amp")
        self.steps = {
            "train": training_step(cfg, self.model, self.batch, amp),
            "test": inference(self.model, self.batch, amp),
        }

    def waits(self, mode: str) -> dict[str, int]:
        """How often the host would wait for a GPU, by place; the optimizer left out."""
        copy = self._copy
        with StandInDevice() as device, without_kernels():
            device.place(copy.model)
            if mode == "train":
                forward_and_backward(copy.model, copy.batch)
            else:
                copy.steps[mode]()
        return device.places()

    @cached_property
    def _copy(self) -> "Subject":
        """The model on small images, to be put on the device that is not there."""
        small = replace(self.point, device="cpu", variant="fp32", size=64)
        return Subject(self.name, small, _scratch())

    def flops(self, mode: str) -> dict[str, float]:
        """Of a step, by part: "all", "backbone", "proposals", "box head", "head"."""
        with FlopCounterMode(display=False) as counter:
            self.steps[mode]()
        found = {"all": float(counter.get_total_flops())}
        by_module, name = counter.get_flop_counts(), type(self.model).__name__
        for part, modules in FLOP_PARTS.items():
            roots = tuple(f"{name}.{module}" for module in modules)
            of_part = {k for k in by_module if k.startswith(roots)}
            # A module's operations are its children's, too.
            largest = [k for k in of_part if k.rpartition(".")[0] not in of_part]
            found[part] = float(sum(sum(by_module[k].values()) for k in largest))
        return found | {"head": found["all"] - sum(found[part] for part in FLOP_PARTS)}


def forward_and_backward(model: torch.nn.Module, batch: list[dict]) -> None:
    """A training step without its optimizer."""
    model.train()
    torch.manual_seed(0)
    with EventStorage():
        sum(model(batch).values()).backward()


_folders: list[tempfile.TemporaryDirectory] = []


def _scratch() -> Path:
    _folders.append(tempfile.TemporaryDirectory())
    return Path(_folders[-1].name)


def seconds_of(step: Callable[[], object], device: str) -> float:
    """One call: processor seconds on a CPU, else by the clock."""
    if device == "cpu":
        before = time.process_time()
        step()
        return time.process_time() - before
    torch.cuda.synchronize()
    before = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - before


def by_turns(functions: list[Callable[[], object]], device: str, seconds: float) -> list[float]:
    """Seconds of each function, measured by turns for at least so long; all have run before."""
    times: list[list[float]] = [[] for _ in functions]
    while len(times[0]) < LEAST_ROUNDS[device] or sum(map(sum, times)) < seconds:
        for function, found in zip(functions, times, strict=True):
            found.append(seconds_of(function, device))
    return [min(x) if device == "cpu" else statistics.median(x) for x in times]


@dataclass(frozen=True)
class Wanted:
    """What to measure beside times and operations.

    Attributes:
        seconds: see :func:`by_turns`.
        waits: how often the host would wait.
        parts: time by part, ops and memory.
    """

    seconds: float
    waits: bool
    parts: bool


def measure_mode(
    subject: Subject, rival: Subject | None, mode: str, wanted: Wanted, flops: dict[str, float]
) -> dict[str, str]:
    """A row: one model in one mode."""
    device, images = subject.point.device, subject.point.images
    step = subject.steps[mode]
    functions = [step] if rival is None else [step, rival.steps[mode]]
    by_part = subject.flops(mode)
    own, *other = by_turns(functions, device, wanted.seconds)
    other = other[0] if other else own
    work = by_part["all"]
    flops.setdefault(mode, work)  # Mask R-CNN is the first
    row = {"model": subject.name, "mode": mode, **subject.point.columns()}
    row["images/s"] = f"{images / own:.3g}"
    row["Mask R-CNN's"] = f"{images / other:.3g}"
    row["x time"] = f"{own / other:.2f}"
    row["GFLOP"] = f"{work / 1e9:.1f}"
    row["x GFLOP"] = f"{work / flops[mode]:.2f}"
    row["excess"] = f"{own / other - work / flops[mode]:+.2f}"
    row |= {"ops": "", "waits": "", "MB": "", "ms": f"{1e3 * own:.1f}"}
    row |= {f"ms {part}": "" for part in PARTS}
    row |= {f"GFLOP {part}": f"{by_part[part] / 1e9:.1f}" for part in (*FLOP_PARTS, "head")}
    row |= {"ms of the head": "", "ms loader": "", "ms evaluation": ""}
    if wanted.parts:
        _add_parts(row, subject, mode, own)
    return row


def _add_parts(row: dict[str, str], subject: Subject, mode: str, own: float) -> None:
    """Time by part, ops and memory of a row whose step takes `own` seconds."""
    device, step = subject.point.device, subject.steps[mode]
    profile = profile_step(subject.model, step, device)
    peak = peak_memory(step, device) if device == "cuda" else profile.peak
    total = sum(profile.milliseconds.values())
    row["ops"], row["MB"] = str(profile.ops), f"{peak / 1e6:.0f}"
    shares = {part: t / total * 1e3 * own for part, t in profile.milliseconds.items()}
    for part in PARTS:
        within = sum(t for name, t in shares.items() if name == part or name.startswith(part + ":"))
        row[f"ms {part}"] = f"{within:.1f}"
    layers = {name: t for name, t in shares.items() if name.startswith("head")}
    row["ms of the head"] = "; ".join(
        f"{n.partition(': ')[2] or 'rest'} {t:.1f}" for n, t in layers.items()
    )


def loader_seconds(subject: Subject) -> float:
    """Processor seconds of making one sample with as many objects as the point says."""
    sample = subject.batch[0]
    boxes = sample["instances"].gt_boxes.tensor.tolist()
    path = _scratch() / "image.png"
    Image.fromarray(sample["image"].permute(1, 2, 0).numpy()).save(path)
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
        | {"segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}
        for box in boxes
        for x0, y0, x1, y1 in [box]
    ]
    record = {"file_name": str(path), "image_id": 0, "annotations": annotations}
    record |= {"height": sample["height"], "width": sample["width"]}
    short = min(sample["height"], sample["width"])
    resize = T.ResizeShortestEdge(short * 3 // 4, 4 * short)
    mapper = PartialMaskMapper(True, augmentations=[resize, T.RandomFlip()], image_format="BGR")
    mapper(record)
    return by_turns([lambda: mapper(record)], "cpu", 0.1)[0]


def evaluation_seconds(subject: Subject) -> float:
    """Processor seconds of encoding one image's detections."""
    found = subject.steps["test"]()[0]["instances"].to("cpu")
    return by_turns([lambda: ImagePredictions.from_instances(found, 0)], "cpu", 0.1)[0]


def bench(
    names: list[str], point: Point, modes: list[str], wanted: Wanted
) -> Iterator[tuple[dict[str, str], list[dict[str, str]]]]:
    """A row of each model and mode at a point, and rows of the places where it waits."""
    rival = Subject(PLAIN, point, _scratch())
    flops: dict[str, float] = {}
    for name in [PLAIN, *names]:
        subject = rival if name == PLAIN else Subject(name, point, _scratch())
        for mode in modes:
            row = measure_mode(subject, None if subject is rival else rival, mode, wanted, flops)
            places = []
            if wanted.waits:
                waits = subject.waits(mode)
                row["waits"] = str(sum(waits.values()))
                places = [
                    {"model": name, "mode": mode, "waits": str(n), "place": place}
                    for place, n in waits.items()
                ]
            if not wanted.parts:
                pass
            elif mode == "train":
                row["ms loader"] = f"{1e3 * loader_seconds(subject):.1f}"
            else:
                row["ms evaluation"] = f"{1e3 * evaluation_seconds(subject):.1f}"
            shown = ("x time", "x GFLOP", "excess", "waits", "MB", "images/s")
            print(f"{name} {mode}: " + ", ".join(f"{k} {row[k]}" for k in shown), flush=True)
            yield row, [place | point.columns() for place in places]


def points_of(args: argparse.Namespace) -> list[Point]:
    """The points that the arguments ask for."""
    size = args.size or SIZES[args.device]
    share = args.share or SHARES[args.device]
    first = Point(args.device, size, args.images, args.objects, args.classes, share)
    if args.grow == "size":
        return [replace(first, size=int(size * times)) for times in GROWTH["size"]]
    if args.grow:
        return [replace(first, **{args.grow: value}) for value in GROWTH[args.grow]]
    variants = VARIANTS[:3] if args.device == "cuda" else VARIANTS[:1]
    return [replace(first, variant=name) for name in args.variants or variants]


def main() -> None:
    """Parses the arguments, measures, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, help="shorter side of the images")
    parser.add_argument("--images", type=int, default=1, help="a batch")
    parser.add_argument("--objects", type=int, default=8, help="an image")
    parser.add_argument("--classes", type=int, default=0, help="0: those of the configs")
    parser.add_argument("--share", type=float, help="of the configs' numbers of regions")
    parser.add_argument("--grow", choices=list(GROWTH), help="several values of one of these")
    parser.add_argument("--configs", nargs="+", help="names in configs/ without .yaml")
    parser.add_argument("--modes", nargs="+", choices=["train", "test"], default=["train", "test"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS)
    parser.add_argument("--no-waits", action="store_true", help="do not count where the host waits")
    parser.add_argument("--no-parts", action="store_true", help="do not split times by part")
    parser.add_argument("--label", default="", help="a word for the file's name")
    args = parse_common(parser)
    facts = environment(args.device) | {"date": time.strftime("%Y-%m-%d")}
    print_environment(facts)
    if args.device == "cpu":
        keep_freed_memory()  # as training and evaluation do
    names = args.configs or [f"{name}_R50" for name in METHODS]
    rows, places = [], []
    for number, point in enumerate(points_of(args)):
        waits = not args.no_waits and (number == 0 or bool(args.grow))
        wanted = Wanted(args.seconds, waits, not args.no_parts)
        for row, where in bench(names[: args.shapes], point, args.modes, wanted):
            rows.append(row)
            places += where
            if args.save:  # after each row: what is stopped halfway has left something
                label = "-".join(filter(None, ("step", args.grow and f"by-{args.grow}")))
                label += f"-{args.label}" if args.label else ""
                save(label, rows, facts, args.save)
                if places:
                    save(f"{label}-waits", places, facts, args.save)
    print_table(rows, [c for c in rows[0] if not c.startswith("ms of")])


if __name__ == "__main__":
    main()
