"""Times the mapper of the training data, part by part, beside Detectron2's.

    python benchmarks/bench_loader.py
    PSIS_D2_TEST_DATASETS=FOLDER python benchmarks/bench_loader.py   # and photographs of COCO
    python benchmarks/bench_loader.py --beside CHECKOUT   # another commit's, by turns

Generated images have 1 to 500 objects whose outlines are polygons, half of them with a mask that
training may see (Detectron2's mapper has all masks: it cannot leave any out). Photographs are those
of the COCO subset in the folder with at least 30 objects, and as many others. Images are resized to
a shorter side of 800 pixels, and flipped.

Milliseconds an image are the least of several passes, on one thread and in that thread's own time,
so that other load adds little. "read" is reading and decoding
the file, "resize" the augmentations, "masks" the rasterizing and the checks of masks, "rest" boxes,
classes and tensors; "hand over" is what a sample costs on its way from a worker to the trainer, and
"mask MB" what its masks weigh there. "sample" is a hash of all that losses read of a sample: with
--beside, the two commits have to agree on it, whatever form their masks have.
"""

import argparse
import csv
import hashlib
import io
import multiprocessing.reduction
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psis_d2  # noqa: F401
import psis_d2.data.mapper as our_mapper
from psis_d2.data.coco import load_coco
from psis_d2.data.loader import SeededDataset
from psis_d2.data.supervision import clean_annotations
from psis_d2.modeling.mask_targets import crop_masks

import numpy as np
import torch
from common import parse_common, print_environment, print_table, save
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode
from measure import ROOT, environment
from PIL import Image

HEIGHT, WIDTH, SHORT_SIDE = 480, 640, 800
COUNTS = (1, 7, 30, 100, 500)
IMAGES = 2  # of each kind
PASSES = 2
TURNS = 3  # of --beside
TARGET = 28  # cells of the masks that losses read
PARTS = {
    "read": [(our_mapper, "read_image")],
    "resize": [(T.AugmentationList, "__call__")],
    "masks": [(our_mapper, "draw_masks"), (our_mapper, "_rasterize"), (torch.Tensor, "any")],
}


def make_image(rng: np.random.Generator, path: Path) -> None:
    """A JPEG of clouds, about as large as a photograph's."""
    small = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    noise = rng.integers(-12, 13, image.shape)
    Image.fromarray((image + noise).clip(0, 255).astype(np.uint8)).save(path, quality=90)


def make_record(rng: np.random.Generator, path: Path, objects: int) -> dict:
    """A dataset dict whose objects all have a mask; they are smaller where there are more."""
    annotations = []
    for number in range(objects):
        radius = np.exp(rng.uniform(np.log(8), np.log(160))) / (1 + objects / 100)
        angles = np.linspace(0, 2 * np.pi, 25, endpoint=False)
        reach = radius * rng.uniform(0.6, 1.1, 25)
        center = rng.uniform(0.1, 0.9, 2) * [WIDTH, HEIGHT]
        points = center + np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=1)
        points = points.clip(0, [WIDTH, HEIGHT])
        annotation = {"id": number, "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0}
        annotation["bbox"] = [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]
        annotation["category_id"] = int(rng.integers(80))
        annotation["segmentation"] = [points.round(2).ravel().tolist()]
        annotations.append(annotation)
    size = {"height": HEIGHT, "width": WIDTH, "image_id": objects}
    return {"file_name": str(path), "annotations": annotations} | size


def hide_half(records: list[dict]) -> list[dict]:
    """Every other object without a mask."""
    return [
        {
            **record,
            "annotations": [
                {k: v for k, v in a.items() if k != "segmentation" or number % 2 == 0}
                for number, a in enumerate(record["annotations"])
            ],
        }
        for record in records
    ]


def photographs(root: Path) -> dict[str, list[dict]]:
    """Images of the COCO subset: those of many objects, and some of few."""
    json_file = root / "coco" / "annotations" / "instances_train2017.json"
    dicts = load_coco(str(json_file), str(root / "coco" / "train2017"), "loader_photographs")
    counts = {id(x): sum(not a["iscrowd"] for a in x["annotations"]) for x in dicts}
    many = [x for x in dicts if counts[id(x)] >= 30][:IMAGES]
    few = [x for x in dicts if 3 <= counts[id(x)] <= 10][:IMAGES]
    return {"photographs, 30 or more": many, "photographs, 3 to 10": few}


@contextmanager
def timed_parts(times: dict[str, float]) -> Iterator[None]:
    """Adds what the functions of PARTS take to `times`, in seconds."""
    originals = []

    def wrap(name: str, function: Callable) -> Callable:
        def timed(*args, **kwargs):
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                times[name] += time.thread_time() - start

        return timed

    for name, places in PARTS.items():
        for owner, attribute in places:
            if hasattr(owner, attribute):
                originals.append((owner, attribute, getattr(owner, attribute)))
                setattr(owner, attribute, wrap(name, getattr(owner, attribute)))
    try:
        yield
    finally:
        for owner, attribute, function in originals:
            setattr(owner, attribute, function)


def hand_over(sample: dict) -> float:
    """Seconds from a worker's queue into the trainer's process, shared memory included."""
    start = time.thread_time()
    buffer = io.BytesIO()
    multiprocessing.reduction.ForkingPickler(buffer, pickle.HIGHEST_PROTOCOL).dump([sample])
    pickle.loads(buffer.getvalue())
    return time.thread_time() - start


def mask_bytes(sample: dict) -> int:
    """What masks weigh on their way."""
    masks = sample["instances"].gt_masks
    if hasattr(masks, "polygons"):
        return sum(p.nbytes for polygons in masks.polygons for p in polygons)
    if hasattr(masks, "bits"):
        return masks.bits.numel()
    return masks.tensor.numel()


def sample_hash(samples: list[dict]) -> str:
    """Of images, boxes, classes and the targets that are cut out of masks, in any form of these."""
    found = hashlib.sha256()
    for sample in samples:
        instances = sample["instances"]
        boxes = instances.gt_boxes.tensor
        # Regions beside the objects, as proposals are.
        regions = Boxes(boxes + torch.tensor([-3.3, 2.1, 4.7, 5.9]))
        masks = instances.gt_masks
        masks = masks if hasattr(masks, "bits") else masks.tensor
        targets = crop_masks(masks, torch.arange(len(boxes)), regions, TARGET)
        for part in (sample["image"], boxes, instances.gt_classes, targets):
            found.update(part.contiguous().numpy().tobytes())
        found.update(instances.gt_has_mask.numpy().tobytes())
    return found.hexdigest()[:12]


def measure_mapper(mapper: Callable[[dict], dict], records: list[dict]) -> dict[str, float]:
    """Milliseconds an image by part, the least of all passes for each image and part."""
    dataset = SeededDataset(records, mapper, seed=0)
    least: dict[str, float] = defaultdict(float)
    for index in range(len(records)):
        best: dict[str, float] = {}
        for _ in range(PASSES + 1):
            times: dict[str, float] = defaultdict(float)
            with timed_parts(times):
                start = time.thread_time()
                sample = dataset[index]
                total = time.thread_time() - start
            found = {name: times[name] for name in PARTS} | {"total": total}
            found["hand over"] = hand_over(sample)
            best = {name: min(value, best.get(name, value)) for name, value in found.items()}
        best["rest"] = best["total"] - sum(best[name] for name in PARTS)
        for name, value in best.items():
            least[name] += 1e3 * value / len(records)
        least["mask MB"] += mask_bytes(sample) / 1e6 / len(records)
    return least


def mappers() -> dict[str, Callable[[dict], dict]]:
    """Ours and Detectron2's, with the same augmentations."""
    augmentations = [T.ResizeShortestEdge(SHORT_SIDE, 1333), T.RandomFlip()]
    theirs = {"is_train": True, "augmentations": augmentations, "image_format": "BGR"}
    theirs |= {"use_instance_mask": True}
    ours = our_mapper.PartialMaskMapper(True, augmentations=augmentations, image_format="BGR")
    return {
        "ours, half of the masks": ours,
        "ours, all masks": ours,
        "Detectron2, polygons": DatasetMapper(**theirs, instance_mask_format="polygon"),
        "Detectron2, bit masks": DatasetMapper(**theirs, instance_mask_format="bitmask"),
    }


def loader_rows(counts: tuple[int, ...] = COUNTS) -> list[dict[str, str]]:
    """The table of the loader: a row for each kind of image and mapper."""
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        kinds = {}
        for objects in counts:
            paths = [Path(folder) / f"{objects}-{k}.jpg" for k in range(IMAGES)]
            for path in paths:
                make_image(rng, path)
            kinds[f"generated, {objects}"] = [make_record(rng, path, objects) for path in paths]
        root = os.environ.get("PSIS_D2_TEST_DATASETS")
        if root and (Path(root) / "coco").is_dir():
            kinds |= photographs(Path(root))
        for kind, records in kinds.items():
            clean_annotations(records)
            for name, mapper in mappers().items():
                given = hide_half(records) if "half" in name else records
                found = measure_mapper(mapper, given)
                row = {"images": kind, "mapper": name}
                columns = ("total", *PARTS, "rest", "hand over")
                row |= {f"{column} ms": f"{found[column]:.1f}" for column in columns}
                row["mask MB"] = f"{found['mask MB']:.2f}"
                if "Detectron2" in name:  # its parts have other names
                    row |= {f"{column} ms": "" for column in (*PARTS, "rest")}
                dataset = SeededDataset(given, mapper, seed=0)
                samples = [] if "Detectron2" in name else [dataset[i] for i in range(len(given))]
                row["sample"] = sample_hash(samples) if samples else ""
                rows.append(row)
                print(f"  {row}", flush=True)
    return rows


def by_turns(other: Path, own_label: str, arguments: list[str]) -> list[dict[str, str]]:
    """The tables of two checkouts, each the least of several runs by turns.

    Args:
        other: a checkout of another commit, its extension built.
        own_label: a word for this checkout.
        arguments: of this program, for both.

    Raises:
        SystemExit: the two make different samples.
    """
    versions = {"before": other.resolve(), own_label: ROOT}
    least: dict[tuple[str, ...], dict[str, str]] = {}
    for _ in range(TURNS):
        for label, tree in versions.items():
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, *arguments, "--label", label, "--save", folder]
                path = os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")])
                subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=True)
                (table,) = Path(folder).glob("*.csv")
                with open(table, newline="", encoding="utf-8") as file:
                    rows = list(csv.DictReader(file))
            git = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
            commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
            for row in rows:
                row["commit"] = commit
                best = least.setdefault((label, row["images"], row["mapper"]), row)
                for column in (c for c in row if c.endswith(" ms") and row[c]):
                    best[column] = min(best[column], row[column], key=float)
    for (_, images, mapper), row in least.items():
        before = least["before", images, mapper]
        if row["sample"] != before["sample"]:
            raise SystemExit(f"error: {images}, {mapper}: the two commits make different samples.")
        row["x rate"] = f"{float(before['total ms']) / float(row['total ms']):.2f}"
    return list(least.values())


def main() -> None:
    """Parses the arguments, measures, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--label", default="", help="a word for the table, such as before")
    parser.add_argument(
        "--beside", type=Path, metavar="CHECKOUT", help="of another commit, to measure by turns"
    )
    args = parse_common(parser)
    if args.device == "cuda":
        print("The mapper runs on the CPU alone: nothing to measure here.")
        return
    facts = environment("cpu")
    print_environment(facts)
    if args.beside:
        shapes = [] if args.shapes is None else ["--shapes", str(args.shapes)]
        rows = by_turns(args.beside, args.label or "now", shapes)
        rows = [{k: v for k, v in row.items() if k == "commit" or k not in facts} for row in rows]
    else:
        rows = loader_rows(COUNTS[: args.shapes])
        rows = [{"version": args.label} | row for row in rows]
    print_table(rows)
    if args.save:
        save("loader", rows, facts, args.save)


if __name__ == "__main__":
    main()
