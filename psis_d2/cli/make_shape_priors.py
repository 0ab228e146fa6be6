"""Cluster the masks that training may see into ShapeMask's shape priors.

    psis-d2 make-shape-priors --config-file shapemask_R50 --output priors.npz --picture priors.png

Training makes its priors by itself; with this they are made once, looked at, and shared by runs:
PSIS.SHAPEMASK.PRIORS priors.npz. Data, split and number of priors are those of the config and of
the KEY VALUE pairs behind the flags.
"""

import argparse
import logging
import sys

from psis_d2.data import get_class_names
from psis_d2.data.shape_priors import make_shape_priors, save_shape_priors
from psis_d2.engine.setup import add_data_arguments, build_config, prepare_data
from psis_d2.visualization import priors_grid, save_png


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The config and the files to write."""
    parser.add_argument("--config-file", default="shapemask_R50", metavar="FILE")
    parser.add_argument("--output", required=True, metavar="FILE.npz", help="where to write")
    parser.add_argument("--picture", metavar="FILE.png", help="also draw the priors")
    add_data_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")


def run(args: argparse.Namespace) -> None:
    """Make, write, draw."""
    args.num_gpus = 0
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    cfg = build_config(args)
    prepare_data(cfg, training=False)
    shape_priors = make_shape_priors(cfg)
    save_shape_priors(args.output, shape_priors)
    facts = shape_priors.provenance
    print(
        f"{facts['num_priors']} priors{' a category' * facts['class_specific']} from "
        f"{facts['masks_used']} masks of {len(facts['masks_of_class'])} categories: {args.output}"
    )
    if args.picture:
        names = get_class_names(cfg.DATASETS.TRAIN[0]) if facts["class_specific"] else None
        save_png(args.picture, priors_grid(shape_priors.priors, names))
        print(f"A picture of them is in {args.picture}")
