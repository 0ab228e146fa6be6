"""Draw what CPMask saw beside its masks: boundaries and mean affinities.

    psis-d2 draw-heat-maps --config-file cpmask_R50 --output heat.png \\
        MODEL.WEIGHTS output/cpmask_R50/model_final.pth
    psis-d2 draw-heat-maps --config-file ... --image a.jpg --image b.jpg MODEL.WEIGHTS ...

Without --image, objects of the validation data in their annotated boxes, of unseen categories;
with --image, what the detector finds in them. A dashed red line is the annotated mask. Each
heat-map has a scale of its own, written above it: blue is the lowest value, yellow the highest.
"""

import argparse

from psis_d2.engine.heat_maps import CATEGORIES, draw_heat_maps
from psis_d2.engine.setup import add_data_arguments, build_config, choose_gpus

from detectron2.utils.logger import setup_logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is drawn, and of which model."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a file or a name")
    parser.add_argument("--output", default="heat_maps.png", help="picture to write")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        help="image file, may be repeated; else validation data",
    )
    parser.add_argument(
        "--categories", choices=CATEGORIES, default="", help="default: unseen; all with --image"
    )
    parser.add_argument("--objects", type=int, default=12, help="objects in the picture")
    parser.add_argument("--per-image", type=int, default=2, help="objects of an image at most")
    parser.add_argument("--min-score", type=float, default=0.5, help="of detections in --image")
    add_data_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs, MODEL.WEIGHTS too")


def run(args: argparse.Namespace) -> None:
    """Load, predict, draw."""
    args.num_gpus = choose_gpus(None)
    cfg = build_config(args)
    setup_logger(name="psis_d2").setLevel("WARNING")
    draw_heat_maps(
        cfg,
        args.output,
        args.image,
        categories=args.categories,
        objects=args.objects,
        per_image=args.per_image,
        min_score=args.min_score,
    )
    print(f"The picture is in {args.output}")
