"""Write a small data set to try things on: drawn pictures, masks for half of the kinds.

    psis-d2 make-shapes --output shapes
    psis-d2 check --train-json shapes/train.json --train-images shapes/train

Twenty kinds of textured shapes (PartialShapes), made from a seed in seconds: pictures in train/ and
val/, train.json with boxes for all objects and masks for ten kinds, val.json with all masks.
"""

import argparse

from psis_d2.data.datasets.shapes_example import write_example


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to, and how much."""
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where to write")
    parser.add_argument("--train", type=int, default=200, metavar="N", help="training pictures")
    parser.add_argument("--val", type=int, default=40, metavar="N", help="validation pictures")
    parser.add_argument("--seed", type=int, default=0, help="of their content")


def run(args: argparse.Namespace) -> None:
    """Draw, write, say what there is."""
    counts = write_example(args.output, args.train, args.val, args.seed)
    print(
        f"{args.output}/train.json: {counts['train']} objects in {args.train} pictures, "
        f"{counts['masks']} of them with masks"
    )
    print(f"{args.output}/val.json: {counts['val']} objects in {args.val} pictures, all with masks")
