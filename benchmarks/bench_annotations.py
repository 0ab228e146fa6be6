"""Times the reading of a large COCO-format json, and the memory that it takes.

    python benchmarks/bench_annotations.py                       # 1.2 million annotations
    python benchmarks/bench_annotations.py --annotations 36000   # as COCO's validation set
    python benchmarks/bench_annotations.py --json FILE --images FOLDER

The json is generated: 7 objects an image, outlines of 25 corners on average (COCO's bytes an
object), a fifth without a mask, one in a hundred a crowd region. Every step is a process of its own
whose peak memory counts: what the libraries take that are imported, what the json parser alone
takes, the first and the second reading of the data set, and what a data loader keeps of it.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

import psis_d2  # noqa: F401
from psis_d2.data.catalog import get_dataset_dicts
from psis_d2.data.coco import register_coco_json
from psis_d2.data.loader import SeededDataset

import numpy as np
from common import parse_common, print_environment, print_table, save
from measure import environment
from pycocotools import mask as mask_util

HEIGHT, WIDTH = 480, 640
OBJECTS = 7  # an image
POOL = 4096  # different outlines
CLASSES = 80
NAME = "generated"


def make_pool(rng: np.random.Generator) -> list[tuple[str, str]]:
    """Texts of objects: `bbox` with what follows it, `segmentation` or nothing."""
    pool = []
    for number in range(POOL):
        corners = int(rng.integers(8, 43))
        radius = np.exp(rng.uniform(np.log(6), np.log(150)))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        reach = radius * rng.uniform(0.5, 1.0, corners)
        points = np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=1)
        points += rng.uniform(0.2, 0.8, 2) * [WIDTH, HEIGHT]
        points = points.clip(0, [WIDTH, HEIGHT]).round(2)
        (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
        box = json.dumps([round(v, 2) for v in (x0, y0, x1 - x0 + 1, y1 - y0 + 1)])
        area = round(float((x1 - x0) * (y1 - y0) * 0.6) + 1, 4)
        mask = json.dumps([points.ravel().tolist()])
        if number % 100 == 0:  # a crowd region: uncompressed run lengths
            rle = mask_util.frPyObjects([points.ravel().tolist()], HEIGHT, WIDTH)
            flat = mask_util.decode(rle)[..., 0].flatten(order="F")
            edges = np.flatnonzero(np.diff(flat)) + 1
            counts = np.diff([0, *edges, flat.size]).tolist()
            mask = json.dumps({"counts": counts, "size": [HEIGHT, WIDTH]})
        crowd = int(number % 100 == 0)
        text = "" if number % 5 == 1 else f'"segmentation": {mask}, '
        pool.append((f'"bbox": {box}, "area": {area}, "iscrowd": {crowd}', text))
    return pool


def write_annotations(path: Path, annotations: int, seed: int = 0) -> None:
    """Write a COCO-format json of so many annotations, the same for the same numbers."""
    rng = np.random.default_rng(seed)
    pool = make_pool(rng)
    images = -(-annotations // OBJECTS)
    chosen = rng.integers(POOL, size=annotations).tolist()
    classes = rng.integers(1, CLASSES + 1, size=annotations).tolist()
    with open(path, "w") as file:
        categories = [{"id": k, "name": f"class {k}"} for k in range(1, CLASSES + 1)]
        file.write(f'{{"categories": {json.dumps(categories)}, "images": [')
        for k in range(images):
            size = f'"height": {HEIGHT}, "width": {WIDTH}'
            file.write(f'{", " * (k > 0)}{{"id": {k}, "file_name": "{k:012}.jpg", {size}}}')
        file.write('], "annotations": [')
        for k, (place, category) in enumerate(zip(chosen, classes, strict=True)):
            box, mask = pool[place]
            ids = f'"id": {k + 1}, "image_id": {k // OBJECTS}, "category_id": {category}'
            file.write(f"{', ' * (k > 0)}{{{mask}{ids}, {box}}}")
        file.write("]}")


def peak_gigabytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def imports(path: Path, images: Path) -> None:
    """Nothing but the imports."""


def parse(path: Path, images: Path) -> None:
    """The json module alone."""
    with open(path, encoding="utf-8-sig") as file:
        json.load(file)


def read(path: Path, images: Path) -> list[dict]:
    """The data set, checked and cleaned."""
    register_coco_json(NAME, str(path), str(images))
    return get_dataset_dicts(NAME)


def read_twice(path: Path, images: Path) -> None:
    """The data set for the check of a run, and for its loader."""
    for _ in range(2):
        read(path, images)


def load(path: Path, images: Path) -> None:
    """The data set in a loader's form, which its workers share."""
    SeededDataset(read(path, images), dict, seed=0)


def step(function, path: Path, images: Path, results: multiprocessing.Queue) -> None:
    """One row. To be a process's only work."""
    wall, cpu = time.perf_counter(), time.process_time()
    function(path, images)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    row = {"what": function.__name__.replace("_", " "), "wall s": f"{wall:.1f}"}
    results.put(row | {"cpu s": f"{cpu:.1f}", "peak GB": f"{peak_gigabytes():.2f}"})


def in_own_process(function, path: Path, images: Path) -> dict[str, str]:
    """The row of :func:`step`."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=step, args=(function, path, images, results))
    process.start()
    row = results.get()
    process.join()
    return row


def main() -> None:
    """Parses the arguments, generates, measures, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", type=int, default=1_200_000)
    parser.add_argument("--json", type=Path, help="measure this file instead")
    parser.add_argument("--images", type=Path, help="its folder of images")
    parser.add_argument("--label", default="", help="a word for the table, such as before")
    args = parse_common(parser)
    if args.device == "cuda":
        print("Annotations are read on the CPU: nothing to measure here.")
        return
    if args.shapes:  # a quick run of `make bench`
        args.annotations = min(args.annotations, 20_000)
    facts = environment("cpu")
    print_environment(facts)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path, images = args.json or Path(folder) / "annotations.json", args.images or Path(folder)
        if args.json is None or not path.exists():
            write_annotations(path, args.annotations)
        size = {"annotations": str(args.annotations), "MB": f"{os.path.getsize(path) / 1e6:.0f}"}
        for function in (imports, parse, read, read_twice, load):
            row = {"version": args.label, "what": ""} | in_own_process(function, path, images)
            rows.append(row | size)
            print(f"  {row}", flush=True)
    print_table(rows)
    if args.save:
        save("annotations", rows, facts)


if __name__ == "__main__":
    main()
