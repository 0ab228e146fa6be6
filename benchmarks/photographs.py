#!/usr/bin/env python3
"""What to expect of so many photographs: a config trained on subsets of a data set.

    python benchmarks/photographs.py --config configs/light/agnostic.yaml \\
        --train-json train.json --train-images images/ --val-json val.json --val-images images/ \\
        --sizes 20 200 1164 --output rows.csv

Each size is a draw of ``PSIS.TRAIN_IMAGE_FRACTION``: with one seed a smaller subset is part of a
larger one. Masks are measured in the annotated boxes of the validation data. The first row is a
filled box, which needs no training. A row is written when it is measured, a call with the same
output measures only what is missing. Options of the config follow at the end, as for train_net.py.
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

from psis_d2.data.coco import register_coco_json
from psis_d2.evaluation.given_boxes import box_fill_results

import torch
from measure import ROOT, environment

METRICS = {"iou": "IoU", "ap": "AP", "iou75": "AP75"}  # the last: share of masks of IoU >= 0.75
GROUPS = ("seen", "unseen", "all")
MEASURES = [f"{name}_{group}" for name in METRICS for group in GROUPS]
FIELDS = ["config", "asked", "photographs", "seed", *MEASURES, "minutes", "cpu_minutes"]
FIELDS += ["device", "threads", "commit", "date", "options"]
BOX = "filled box"


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


def train(args, size: int, seed: int, folder: Path) -> dict:
    """Train and evaluate one row."""
    total = usable_images(args.train_json)
    command = [sys.executable, "train_net.py", "--config-file", args.config]
    for name in ("train_json", "train_images", "val_json", "val_images"):
        command += [f"--{name.replace('_', '-')}", str(Path(getattr(args, name)).resolve())]
    options = {
        "OUTPUT_DIR": folder,
        "TEST.BOXES": "gt",
        "TEST.EXPECTED_RESULTS": "[]",
        "SEED": seed,
        "PSIS.TRAIN_IMAGE_SEED": seed,
        "PSIS.TRAIN_IMAGE_FRACTION": 1.0 if size >= total else size / total,
    }
    command += [str(word) for pair in options.items() for word in pair] + args.options
    folder.mkdir(parents=True, exist_ok=True)
    start, before = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(folder / "stdout.txt", "w") as log:
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    results = json.loads((folder / "results.json").read_text())
    return measures(results) | {
        "photographs": min(size, total),
        "minutes": f"{(time.time() - start) / 60:.1f}",
        "cpu_minutes": f"{cpu / 60:.1f}",
    }


def main() -> None:
    """Measure the rows that the output does not have."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    for split in ("train", "val"):
        parser.add_argument(f"--{split}-json", required=True)
        parser.add_argument(f"--{split}-images", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 200, 2000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, required=True, help="the rows, CSV")
    parser.add_argument("--runs", type=Path, default=ROOT / "output" / "photographs")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="KEY VALUE ... of the config")
    args = parser.parse_args()
    done = []
    if args.output.exists():
        with open(args.output, newline="") as file:
            done = list(csv.DictReader(file))
    facts = environment("cuda" if torch.cuda.is_available() else "cpu")
    name = Path(args.config).stem
    wanted = [(BOX, "", "")] + [(name, n, seed) for seed in args.seeds for n in args.sizes]
    for config, size, seed in wanted:
        key = (config, str(size), str(seed))
        if any((row["config"], row["asked"], row["seed"]) == key for row in done):
            continue
        if config == BOX:
            register_coco_json("photographs", args.val_json, args.val_images)
            row = measures(box_fill_results("photographs", seen_ids=()))
        else:
            row = train(args, size, seed, args.runs / f"{name}-{size}-{seed}")
        row |= {"config": config, "asked": size, "seed": seed, "options": shlex.join(args.options)}
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
