"""Make BDD100K a COCO-format data set: images with masks, and many more with boxes alone.

    psis-d2 prepare-bdd100k

Reads DETECTRON2_DATASETS/bdd100k (images/, labels/ins_seg/, labels/det_20/) and writes
bdd100k/annotations/instances_{train,val,train_boxes}.json, which are the data sets
bdd100k_train and bdd100k_val (with masks) and bdd100k_train_boxes (those of bdd100k_train, and the
images of the detection labels with boxes alone).
"""

import argparse
import logging
import os

from psis_d2.data.datasets import bdd100k


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the data is and what becomes of it."""
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    parser.add_argument("--folder", default=os.path.join(root, "bdd100k"))
    parser.add_argument(
        "--masks",
        default="",
        choices=("", *bdd100k.MASKS),
        help="where masks come from; default: the first of these that is there",
    )
    parser.add_argument(
        "--no-boxes", action="store_true", help="leave out instances_train_boxes.json"
    )


def run(args: argparse.Namespace) -> None:
    """Convert, print what there is now."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    counts = bdd100k.prepare(args.folder, args.masks, boxes=not args.no_boxes)
    for name, count in counts.items():
        numbers = ", ".join(f"{number} {what}" for what, number in sorted(count.items()) if number)
        print(f"{bdd100k.json_path(args.folder, name)}: {numbers}")
