"""The flags of subcommands that write a COCO json with masks."""

import argparse


def add_labeling_arguments(parser: argparse.ArgumentParser, boxes_required: bool = False) -> None:
    """What is labeled, and how."""
    parser.add_argument("--images", required=True, metavar="FOLDER", help="the images")
    parser.add_argument(
        "--boxes", required=boxes_required, metavar="FILE", help="COCO json with boxes"
    )
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


def read_labeling(args: argparse.Namespace):
    """The :class:`~psis_d2.inference.autolabel.Labeling` that the flags mean."""
    from psis_d2.inference.autolabel import Labeling

    min_score = args.min_score
    if min_score is None:
        min_score = 0.0 if args.boxes else 0.5
    return Labeling(args.only_missing, min_score, args.polygons, args.previews)


def report_labeling(report, output: str) -> None:
    """Say what became of the annotations."""
    print("\n".join(report.lines()))
    print(f"written: {output}")
