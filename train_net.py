#!/usr/bin/env python3
"""Train and evaluate any psis_d2 model, from a checkout: the same as ``psis-d2 train``.

python train_net.py --config-file configs/shapeprop_R50.yaml --num-gpus 8
python train_net.py --config-file configs/shapeprop_R50.yaml --eval-only MODEL.WEIGHTS model.pth
"""

import argparse
from collections.abc import Sequence

from psis_d2.cli import train
from psis_d2.engine.train import run_process
from psis_d2.errors import exit_on_user_error

__all__ = ["invoke_main", "main", "parse_arguments"]


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of ``psis-d2 train``."""
    parser = argparse.ArgumentParser(
        description=train.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    train.add_arguments(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> dict | None:
    """A run in this process alone."""
    with exit_on_user_error():
        return run_process(args)


def invoke_main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and start the processes that it asks for."""
    args = parse_arguments(argv)
    with exit_on_user_error():
        train.run(args)


if __name__ == "__main__":
    invoke_main()
