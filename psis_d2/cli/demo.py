"""Train on synthetic data for minutes and draw the masks that come of it.

    psis-d2 demo
    psis-d2 demo --iterations 50     # a glance

A light model on PartialShapes: twenty kinds of objects, all with boxes, ten with masks in training.
The picture shows the masks that the trained model draws; the ten kinds whose masks it never saw are
marked.
"""

import argparse

from psis_d2.engine.demo import ITERATIONS, demo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long, and where to."""
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="of the training")
    parser.add_argument("--output", default="output/demo", metavar="FOLDER")
    parser.add_argument("--images", type=int, default=8, help="images in the picture")


def run(args: argparse.Namespace) -> None:
    """Data, training, evaluation, picture."""
    demo(args.iterations, args.output, args.images)
