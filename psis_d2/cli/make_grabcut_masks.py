"""Write a json with GrabCut masks for objects that have boxes only.

    psis-d2 make-grabcut-masks --dataset coco_2017_train --seen voc --output grabcut.json
    psis-d2 make-grabcut-masks --json train.json --images images/ --output grabcut.json

Objects of seen categories keep what they have; those of the others get the GrabCut mask of their
box, whatever they had. An interrupted call continues where it stopped.
"""

import argparse
import logging

from psis_d2.config import add_psis_config
from psis_d2.data.grabcut import GrabCut, cache_folder
from psis_d2.data.grabcut.to_json import make_grabcut_masks

from detectron2.config import get_cfg


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Data, split and settings; these are by default those of a config."""
    cfg = get_cfg()
    add_psis_config(cfg)
    settings = GrabCut.from_config(cfg)
    parser.add_argument("--dataset", metavar="NAME", help="a registered data set")
    parser.add_argument("--json", metavar="FILE", help="or a COCO-format json ...")
    parser.add_argument("--images", metavar="FOLDER", help="... and its images")
    parser.add_argument("--output", required=True, metavar="FILE", help="json to write")
    parser.add_argument("--seen", default="auto", help="as PSIS.SEEN_CLASSES; default: auto")
    parser.add_argument("--cache", default=cache_folder(cfg), metavar="FOLDER")
    parser.add_argument("--threads", type=int, default=0, help="default: one a core")
    parser.add_argument(
        "--iterations",
        type=int,
        default=settings.iterations,
        help=f"default: {settings.iterations}",
    )
    parser.add_argument(
        "--context",
        type=float,
        default=settings.context,
        help=f"in box sides; default: {settings.context}",
    )
    parser.add_argument(
        "--max-side",
        type=int,
        default=settings.max_side,
        help=f"pixels, 0 = any; default: {settings.max_side}",
    )


def run(args: argparse.Namespace) -> None:
    """Make the masks, write the json."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    count = make_grabcut_masks(
        args.output,
        dataset=args.dataset,
        json_file=args.json,
        images=args.images,
        seen=args.seen,
        cache=args.cache,
        settings=GrabCut(args.iterations, args.context, args.max_side),
        threads=args.threads,
    )
    print(f"{count} GrabCut masks are in {args.output}")
