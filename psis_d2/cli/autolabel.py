"""Give every box of a COCO json a mask.

    psis-d2 autolabel model.pth --images photos/ --boxes boxes.json --output labeled.json
    psis-d2 autolabel model.pth --images photos/ --output labeled.json

Without --boxes, the objects are those that the model finds. Everything else in the json stays as
it is; annotations with a mask are left alone unless --all. A run that was stopped goes on where it
stopped. Rounds of training and labeling (--rounds) are psis-d2 self-train.
"""

import argparse

from psis_d2.cli._labeling import add_labeling_arguments, read_labeling, report_labeling
from psis_d2.cli._model import add_model_arguments, load_predictor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``psis-d2 autolabel``."""
    add_model_arguments(parser)
    add_labeling_arguments(parser)
    parser.add_argument("--num-gpus", type=int, default=0, help="processes, a GPU each")
    parser.add_argument("--num-cpu-processes", type=int, default=1, help="processes without GPUs")


def run(args: argparse.Namespace) -> None:
    """Start the processes."""
    from psis_d2.engine import launch

    if args.num_gpus == 0 and args.num_cpu_processes > 1:
        args.device = "cpu"
    launch(
        label,
        num_gpus=args.num_gpus if args.num_gpus > 1 else 0,
        num_cpu_processes=args.num_cpu_processes,
        args=(args,),
    )


def label(args: argparse.Namespace) -> None:
    """One process of the job."""
    from psis_d2.errors import exit_on_user_error
    from psis_d2.inference.autolabel import autolabel

    with exit_on_user_error():
        report = autolabel(
            load_predictor(args),
            args.images,
            args.output,
            boxes=args.boxes,
            labeling=read_labeling(args),
        )
        if report:
            report_labeling(report, args.output)
