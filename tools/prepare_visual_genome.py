#!/usr/bin/env python3
"""Make Visual Genome's objects.json a COCO-format data set: vg_train, vg_val and a category map.

    python tools/prepare_visual_genome.py

Reads DETECTRON2_DATASETS/visual_genome/{objects,image_data}.json, VG_100K/ and VG_100K_2/, and
DETECTRON2_DATASETS/coco/annotations/instances_val2017.json; writes
visual_genome/annotations/instances_{train,val}.json and coco_categories.json. Converting once
spares every process of every run the reading and cleaning of millions of objects.
"""

import argparse
import logging
import os

from psis_d2.data.datasets import visual_genome
from psis_d2.errors import exit_on_user_error


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command line."""
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--folder", default=os.path.join(root, "visual_genome"))
    parser.add_argument(
        "--coco-val-json",
        default=os.path.join(root, "coco", "annotations", "instances_val2017.json"),
        metavar="FILE",
        help="its images are kept out of training",
    )
    parser.add_argument("--classes", type=int, default=visual_genome.NUM_CLASSES)
    parser.add_argument(
        "--several-synsets",
        default="skip",
        choices=visual_genome.SEVERAL_SYNSETS,
        help="what becomes of an object with several synsets",
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with exit_on_user_error():
        counts = visual_genome.prepare(
            args.folder, args.coco_val_json, args.classes, args.several_synsets
        )
    for split, count in counts.items():
        numbers = ", ".join(f"{number} {what}" for what, number in sorted(count.items()))
        print(f"{visual_genome.json_path(args.folder, split)}: {numbers}")


if __name__ == "__main__":
    main()
