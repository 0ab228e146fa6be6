#!/usr/bin/env python3
"""Write a COCO-format json in which objects whose mask training may not see have GrabCut masks.

    python tools/make_grabcut_masks.py --dataset coco_2017_train --seen voc --output grabcut.json
    python tools/make_grabcut_masks.py --json train.json --images images/ --output grabcut.json

Objects of seen categories keep what they have; those of the others get the GrabCut mask of their
box, whatever they had. An interrupted call continues where it stopped.
"""

import argparse
import json
import logging
from pathlib import Path

from psis_d2.config import add_psis_config
from psis_d2.data.catalog import coco_reader, get_class_names, get_dataset_dicts, prepare_dataset
from psis_d2.data.coco import match_annotations, register_coco_json
from psis_d2.data.grabcut import GrabCut, cache_folder, grabcut_masks
from psis_d2.data.splits import resolve_seen_classes
from psis_d2.data.supervision import masked_classes, restrict_masks
from psis_d2.errors import UserError, exit_on_user_error
from psis_d2.files import written_at_once

from detectron2.config import get_cfg
from pycocotools import mask as mask_util


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; settings are by default those of a config."""
    cfg = get_cfg()
    add_psis_config(cfg)
    settings = GrabCut.from_config(cfg)
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--dataset", metavar="NAME", help="a registered data set")
    parser.add_argument("--json", metavar="FILE", help="or a COCO-format json ...")
    parser.add_argument("--images", metavar="FOLDER", help="... and its images")
    parser.add_argument("--output", required=True, metavar="FILE", help="json to write")
    parser.add_argument("--seen", default="auto", help="as PSIS.SEEN_CLASSES")
    parser.add_argument("--cache", default=cache_folder(cfg), metavar="FOLDER")
    parser.add_argument("--threads", type=int, default=0, help="0 = one a core")
    parser.add_argument("--iterations", type=int, default=settings.iterations)
    parser.add_argument("--context", type=float, default=settings.context, help="in box sides")
    parser.add_argument("--max-side", type=int, default=settings.max_side, help="pixels, 0 = any")
    return parser.parse_args(argv)


def convert(args: argparse.Namespace) -> int:
    """Write the json.

    Returns:
        The number of objects with a GrabCut mask.

    Raises:
        UserError: the data is not usable or something cannot be written.
    """
    if bool(args.dataset) == bool(args.json) or bool(args.json) != bool(args.images):
        raise UserError("Give either --dataset, or --json and --images.")
    name = args.dataset or f"grabcut:{args.json}"
    if args.json:
        register_coco_json(name, args.json, args.images)
    prepare_dataset(name)
    reader = coco_reader(name)
    if reader is None:
        raise UserError(f"Data set '{name}' has no COCO-format json; give --json and --images.")
    dicts = get_dataset_dicts(name)
    seen = resolve_seen_classes(
        args.seen, get_class_names(name), masked_classes=masked_classes(dicts), dataset_name=name
    )
    restrict_masks(dicts, seen)
    for record in dicts:
        record["annotations"] = [a for a in record["annotations"] if a["category_id"] not in seen]
    settings = GrabCut(args.iterations, args.context, args.max_side)
    masks = grabcut_masks(dicts, name, args.cache, settings, args.threads)

    content = json.loads(Path(reader.json_file).read_text(encoding="utf-8-sig"))
    for key, annotation in match_annotations(dicts, content["annotations"]).items():
        annotation.pop("segmentation", None)
        # COCO's area is the mask's.
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        if key in masks:
            annotation["segmentation"] = masks[key]
            annotation["area"] = int(mask_util.area(masks[key]))
    try:
        with written_at_once(args.output) as file:
            file.write(json.dumps(content))
    except OSError as error:
        raise UserError(
            f"Cannot write {args.output} ({error.strerror or error}); choose another --output."
        ) from error
    return len(masks)


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command line."""
    args = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with exit_on_user_error():
        print(f"{convert(args)} GrabCut masks are in {args.output}")


if __name__ == "__main__":
    main()
