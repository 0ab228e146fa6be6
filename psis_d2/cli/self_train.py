"""Train, draw the masks that are missing, train again with them: as often as --rounds says.

    psis-d2 self-train --rounds 2 --config-file maskrcnn_agnostic_R50 \\
        --train-json train.json --train-images images/ --val-json val.json --val-images images/ \\
        OUTPUT_DIR output/rounds PSIS.MISSING_MASK_WEIGHT 0.5

Each round has a folder below OUTPUT_DIR: round1, round2, ..., with its model, its results and
masks.json, the training json with a mask for every box (as psis-d2 autolabel draws them). Masks of
one round teach the next one: PSIS.MISSING_MASK_WEIGHT, PSIS.MISSING_MASK_SCORE_POWER and
PSIS.MISSING_MASK_MIN_SCORE say how. The same command goes on with a job that was stopped.
"""

import argparse

from psis_d2.engine.setup import add_data_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``psis-d2 self-train``."""
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="trainings; default 2")
    parser.add_argument("--config-file", default="", metavar="FILE", help="a file or a name")
    add_data_arguments(parser)
    parser.add_argument("--num-gpus", type=int, help="0 = CPU; default: 1 if any")
    parser.add_argument("--num-cpu-processes", type=int, default=1, metavar="N")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="of the config")


def run(args: argparse.Namespace) -> None:
    """Train all rounds."""
    from psis_d2.inference.self_training import self_train

    print(f"written: {self_train(**vars(args))}")
