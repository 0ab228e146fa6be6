#!/usr/bin/env python3
"""Cluster the masks that training may see into ShapeMask's shape priors.

    python tools/make_shape_priors.py --config-file configs/shapemask_R50.yaml \\
        --output priors.npz --picture priors.png

Training makes its priors by itself; with this they are made once, looked at, and shared by runs:
PSIS.SHAPEMASK.PRIORS priors.npz. Data, split and number of priors are those of the config and of
the KEY VALUE pairs behind the flags.
"""

import argparse
import logging
import sys

from psis_d2.data.catalog import get_class_names
from psis_d2.data.shape_priors import make_shape_priors, save_shape_priors
from psis_d2.engine.setup import add_data_arguments, build_config, prepare_data
from psis_d2.errors import exit_on_user_error
from psis_d2.visualization import priors_grid, save_png


def main(argv: list[str] | None = None) -> None:
    """Make, write, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="configs/shapemask_R50.yaml", metavar="FILE")
    parser.add_argument("--output", required=True, metavar="FILE.npz", help="where to write")
    parser.add_argument("--picture", metavar="FILE.png", help="also draw the priors")
    add_data_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args(argv)
    args.num_gpus = 0
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with exit_on_user_error():
        cfg = build_config(args)
        prepare_data(cfg, training=False)
        shape_priors = make_shape_priors(cfg)
        save_shape_priors(args.output, shape_priors)
        facts = shape_priors.provenance
        print(
            f"{facts['num_priors']} priors{' a category' * facts['class_specific']} from "
            f"{facts['masks_used']} masks of {len(facts['masks_of_class'])} categories: "
            f"{args.output}"
        )
        if args.picture:
            names = get_class_names(cfg.DATASETS.TRAIN[0]) if facts["class_specific"] else None
            save_png(args.picture, priors_grid(shape_priors.priors, names))
            print(f"A picture of them is in {args.picture}")


if __name__ == "__main__":
    main()
