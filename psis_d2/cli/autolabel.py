"""Give every box of a COCO json a mask.

    psis-d2 autolabel model.pth --images photos/ --boxes boxes.json --output labeled.json
    psis-d2 autolabel model.pth --images photos/ --output labeled.json

Without --boxes, the objects are those that the model finds. Everything else in the json stays as
it is; annotations with a mask are left alone unless --all. A run that was stopped goes on where it
stopped.
"""

import argparse

from psis_d2.cli._model import add_model_arguments, load_predictor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``psis-d2 autolabel``."""
    add_model_arguments(parser)
    parser.add_argument("--images", required=True, metavar="FOLDER", help="the images")
    parser.add_argument("--boxes", metavar="FILE", help="COCO json with boxes")
    parser.add_argument("--output", required=True, metavar="FILE", help="COCO json to write")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--only-missing",
        dest="only_missing",
        action="store_true",
        default=True,
        help="leave annotations alone that have a mask (default)",
    )
    which.add_argument("--all", dest="only_missing", action="store_false", help="draw all anew")
    parser.add_argument("--min-score", type=float, help="least score; default 0, detections 0.5")
    parser.add_argument(
        "--polygons",
        nargs="?",
        type=float,
        const=1.0,
        metavar="PIXELS",
        help="write polygons, simplified by at most PIXELS (default 1), in place of RLE",
    )
    parser.add_argument("--previews", type=int, default=0, metavar="N", help="draw N images")
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
    from psis_d2.inference.autolabel import Labeling, autolabel

    with exit_on_user_error():
        if args.min_score is None:
            args.min_score = 0.0 if args.boxes else 0.5
        report = autolabel(
            load_predictor(args),
            args.images,
            args.output,
            boxes=args.boxes,
            labeling=Labeling(args.only_missing, args.min_score, args.polygons, args.previews),
        )
        if report:
            print("\n".join(report.lines()))
            print(f"written: {args.output}")
