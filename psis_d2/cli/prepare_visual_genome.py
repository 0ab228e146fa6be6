"""Make Visual Genome a COCO-format data set with a map of COCO's categories.

    psis-d2 prepare-visual-genome

Reads DETECTRON2_DATASETS/visual_genome/{objects,image_data}.json, VG_100K/ and VG_100K_2/, and
DETECTRON2_DATASETS/coco/annotations/instances_val2017.json; writes
visual_genome/annotations/instances_{train,val}.json and coco_categories.json. Converting once
spares every process of every run the reading and cleaning of millions of objects.
"""

import argparse
import logging
import os

from psis_d2.data.datasets import visual_genome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the data is and what becomes of it."""
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    parser.add_argument("--folder", default=os.path.join(root, "visual_genome"))
    parser.add_argument(
        "--coco-val-json",
        default=os.path.join(root, "coco", "annotations", "instances_val2017.json"),
        metavar="FILE",
        help="its images are kept out of training",
    )
    parser.add_argument(
        "--classes",
        type=int,
        default=visual_genome.NUM_CLASSES,
        help=f"the most frequent ones; default: {visual_genome.NUM_CLASSES}",
    )
    parser.add_argument(
        "--several-synsets",
        default="skip",
        choices=visual_genome.SEVERAL_SYNSETS,
        help="what becomes of an object with several synsets; default: skip",
    )


def run(args: argparse.Namespace) -> None:
    """Convert, print what there is now."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    counts = visual_genome.prepare(
        args.folder, args.coco_val_json, args.classes, args.several_synsets
    )
    for split, count in counts.items():
        numbers = ", ".join(f"{number} {what}" for what, number in sorted(count.items()))
        print(f"{visual_genome.json_path(args.folder, split)}: {numbers}")
