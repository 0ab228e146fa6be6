#!/usr/bin/env python3
"""What to expect of so many photographs: a config trained on subsets of a data set.

    python benchmarks/photographs.py --config configs/light/hourglass.yaml \\
        --train-json train.json --train-images images/ --val-json val.json --val-images images/ \\
        --seen random-10-0 --sizes 20 200 1164 --iterations 150 300 600 --output rows.csv

Each size is a draw of ``PSIS.TRAIN_IMAGE_FRACTION``: with one seed a smaller subset is part of a
larger one. Masks are measured in the annotated boxes of the validation data. The first row is a
filled box, which needs no training; another, if asked for, GrabCut. A row is written when it is
measured, a call with the same output measures only what is missing. Options of the config follow at
the end, as for train_net.py.
"""

import argparse
import csv
import datetime
import json
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path

from psis_d2.data.catalog import get_class_names, get_dataset_dicts
from psis_d2.data.coco import register_coco_json
from psis_d2.data.splits import resolve_seen_classes
from psis_d2.data.supervision import masked_classes
from psis_d2.evaluation.given_boxes import box_fill_results

import torch
from measure import ROOT, environment

METRICS = {"iou": "IoU", "ap": "AP", "iou75": "AP75"}  # the last: share of masks of IoU >= 0.75
GROUPS = ("seen", "unseen", "all")
MEASURES = [f"{name}_{group}" for name in METRICS for group in GROUPS]
FIELDS = ["config", "seen", "asked", "photographs", "iterations", "seed", *MEASURES]
FIELDS += ["minutes", "cpu_minutes"]
FIELDS += ["device", "threads", "commit", "date", "options"]
KEY = ("config", "seen", "asked", "iterations", "seed")
BOX, GRABCUT = "filled box", "grabcut"


def measures(results: dict) -> dict:
    """Columns of an evaluation in given boxes; groups without objects stay empty."""
    found = {
        f"{name}_{group}": results[f"gtbox_{group}"][metric]
        for name, metric in METRICS.items()
        for group in GROUPS
    }
    return {key: f"{value:.1f}" for key, value in found.items() if value == value}


def usable_images(json_file: str) -> int:
    """Images with an object, of which subsets are drawn."""
    data = json.loads(Path(json_file).read_text())
    return len({a["image_id"] for a in data["annotations"] if not a.get("iscrowd", 0)})


def run(args, folder: Path, seed: int, flags: list[str], options: dict) -> dict:
    """Train and evaluate, or evaluate alone, as a process of its own."""
    command = [sys.executable, "train_net.py", "--config-file", args.config, *flags]
    for name in ("train_json", "train_images", "val_json", "val_images"):
        command += [f"--{name.replace('_', '-')}", str(Path(getattr(args, name)).resolve())]
    options = {
        "OUTPUT_DIR": folder,
        "TEST.BOXES": "gt",
        "TEST.EXPECTED_RESULTS": "[]",
        "SEED": seed,
        "PSIS.SEEN_CLASSES": args.seen,
        **options,
    }
    command += [str(word) for pair in options.items() for word in pair] + args.options
    folder.mkdir(parents=True, exist_ok=True)
    start, before = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(folder / "stdout.txt", "w") as log:
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return measures(json.loads((folder / "results.json").read_text())) | {
        "minutes": f"{(time.time() - start) / 60:.1f}",
        "cpu_minutes": f"{cpu / 60:.1f}",
    }


def train(args, size: int, iterations: int | None, seed: int, folder: Path) -> dict:
    """Train and evaluate one row."""
    total = usable_images(args.train_json)
    options = {
        "PSIS.TRAIN_IMAGE_SEED": seed,
        "PSIS.TRAIN_IMAGE_FRACTION": 1.0 if size >= total else size / total,
    }
    if iterations:
        options["SOLVER.MAX_ITER"] = iterations
    return run(args, folder, seed, [], options) | {"photographs": min(size, total)}


def filled_box(args) -> dict:
    """The row of a filled box."""
    for split in ("train", "val"):
        files = (getattr(args, f"{split}_json"), getattr(args, f"{split}_images"))
        register_coco_json(f"photographs_{split}", *files)
    seen = resolve_seen_classes(
        args.seen,
        get_class_names("photographs_train"),
        masked_classes=masked_classes(get_dataset_dicts("photographs_train")),
    )
    return measures(box_fill_results("photographs_val", seen_ids=seen))


def main() -> None:
    """Measure the rows that the output does not have."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    for split in ("train", "val"):
        parser.add_argument(f"--{split}-json", required=True)
        parser.add_argument(f"--{split}-images", required=True)
    parser.add_argument("--sizes", type=int, nargs="*", default=[20, 200, 2000])
    parser.add_argument(
        "--iterations", type=int, nargs="+", help="of each size; without it, the config's"
    )
    parser.add_argument("--seen", default="auto", help="PSIS.SEEN_CLASSES")
    parser.add_argument("--grabcut", action="store_true", help="measure GrabCut, too")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, required=True, help="the rows, CSV")
    parser.add_argument("--runs", type=Path, default=ROOT / "output" / "photographs")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="KEY VALUE ... of the config")
    args = parser.parse_args()
    if args.iterations and len(args.iterations) != len(args.sizes):
        parser.error("--iterations must have one number for each of --sizes")
    done = []
    if args.output.exists():
        with open(args.output, newline="") as file:
            done = list(csv.DictReader(file))
    facts = environment("cuda" if torch.cuda.is_available() else "cpu")
    name = Path(args.config).stem
    wanted = [(BOX, "", "", "")] + [(GRABCUT, "", "", "")] * args.grabcut
    lengths = args.iterations or [None] * len(args.sizes)
    runs = list(zip(args.sizes, lengths, strict=True))
    wanted += [(name, size, n or "", seed) for seed in args.seeds for size, n in runs]
    for config, size, iterations, seed in wanted:
        key = (config, args.seen, str(size), str(iterations), str(seed))
        if any(tuple(row[field] for field in KEY) == key for row in done):
            continue
        if config == BOX:
            row = filled_box(args)
        elif config == GRABCUT:
            options = {"TEST.MASKS": "grabcut", "MODEL.MASK_ON": "False"}
            row = run(args, args.runs / GRABCUT, 0, ["--eval-only"], options)
        else:
            folder = args.runs / f"{name}-{size}-{seed}"
            row = train(args, size, iterations or None, seed, folder)
        row |= dict(zip(KEY, key, strict=True)) | {"options": shlex.join(args.options)}
        row |= {key: facts.get(key, "") for key in ("device", "threads", "commit")}
        row["date"] = datetime.date.today().isoformat()
        done.append({field: str(row.get(field, "")) for field in FIELDS})
        with open(args.output, "w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(done)
        print({k: v for k, v in done[-1].items() if v}, flush=True)


if __name__ == "__main__":
    main()
