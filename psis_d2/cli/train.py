"""Train and evaluate any model.

    psis-d2 train --config-file shapeprop_R50 --num-gpus 8
    psis-d2 train --config-file shapeprop_R50 --seen nonvoc --num-gpus 8
    psis-d2 train --config-file shapeprop_R50 --eval-only MODEL.WEIGHTS model.pth
    psis-d2 train --config-file shapeprop_R50 --train-json train.json --train-images images/ \\
        --val-json val.json --val-images images/

Detectron2's flags, and those for data that nobody has registered. A config is a file or one of the
names that `psis-d2 zoo configs` lists.
"""

import argparse

from psis_d2.engine.setup import add_data_arguments
from psis_d2.engine.train import train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of a run."""
    parser.add_argument("--config-file", default="", metavar="FILE", help="a file or a name")
    parser.add_argument("--resume", action="store_true", help="go on from OUTPUT_DIR's checkpoint")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="run code that a file of weights holds; only for files whose origin you know",
    )
    parser.add_argument(
        "--allow-random",
        action="store_true",
        help="go on with weights that do not fit the model, which stay random",
    )
    parser.add_argument(
        "--seen",
        default="",
        metavar="SPLIT",
        help="the categories with masks, as PSIS.SEEN_CLASSES spells them: nonvoc turns any config "
        "of COCO around; OUTPUT_DIR gets the name behind its own",
    )
    add_data_arguments(parser)
    group = parser.add_argument_group("where it runs")
    group.add_argument("--num-gpus", type=int, help="of each machine, 0 = CPU; default: 1 if any")
    group.add_argument(
        "--num-cpu-processes",
        type=int,
        default=1,
        metavar="N",
        help="processes per machine of a run without GPUs",
    )
    group.add_argument("--num-machines", type=int, default=1, metavar="N")
    group.add_argument("--machine-rank", type=int, default=0, metavar="N", help="0 for the first")
    group.add_argument(
        "--dist-url", default="auto", metavar="URL", help="where several machines meet"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="of the config")


def run(args: argparse.Namespace) -> None:
    """Train or evaluate."""
    train(**vars(args))
