#!/usr/bin/env python3
"""Draw few-shot training data once: 10 or 20 objects of every novel category, as a json.

    python tools/make_fewshot.py --dataset coco_2017_train --novel voc --shots 10 --seed 0
    python tools/make_fewshot.py --json train.json --novel names.txt --shots 5 --out few.json

The draw goes beside the annotations that it is drawn from; for named data sets it then has a name
of its own, such as coco_2017_train_fewshot_voc_10_seed0, which DATASETS.TRAIN takes.
"""

import argparse
import json
import os

import psis_d2  # noqa: F401
from psis_d2.data.catalog import coco_reader, prepare_dataset
from psis_d2.data.fewshot import draw_few_shots, few_shot_json
from psis_d2.errors import UserError, exit_on_user_error
from psis_d2.evaluation.base import write_json

from detectron2.data import DatasetCatalog
from detectron2.utils.logger import setup_logger


def is_same(path: str, content: dict) -> bool:
    """Whether the file holds this very draw."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file) == content
    except (OSError, ValueError):
        return False


def main(argv: list[str] | None = None) -> None:
    """Draw, print what was taken, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", help="registered data set to draw from")
    source.add_argument("--json", help="COCO-format json to draw from")
    parser.add_argument(
        "--novel", required=True, help="novel categories, as PSIS.SEEN_CLASSES: voc, file, ..."
    )
    parser.add_argument("--shots", type=int, default=10, help="objects of each novel category")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another draw")
    parser.add_argument("--out", help="json to write; default: beside the source")
    args = parser.parse_args(argv)
    setup_logger(name="psis_d2").setLevel("WARNING")

    json_file = args.json
    if args.dataset:
        prepare_dataset(args.dataset)
        reader = coco_reader(args.dataset)
        if reader is None:
            raise UserError(f"Data set '{args.dataset}' has no json; draw from --json FILE.")
        json_file = reader.json_file
    content, drawn = draw_few_shots(json_file, args.novel, args.shots, args.seed)
    out = args.out or few_shot_json(json_file, args.novel, args.shots, args.seed)
    if os.path.lexists(out) and not is_same(out, content):
        raise UserError(
            f"{out} is there already and holds something else; delete it or give --out."
        )

    for name, ids in drawn.items():
        print(f"{name}: annotations {', '.join(map(str, ids))}")
    print(
        f"{len(content['annotations'])} objects of {len(drawn)} categories in "
        f"{len(content['images'])} images, seed {args.seed}"
    )
    if not os.path.lexists(out):
        try:
            write_json(out, content)
        except OSError as error:
            raise UserError(
                f"Cannot write {out} ({error.strerror or error}); give a writable path as --out."
            ) from error
    print(f"The draw is in {out}")
    name = f"{args.dataset}_fewshot_{args.novel}_{args.shots}_seed{args.seed}"
    if name in DatasetCatalog and not args.out:
        print(f"Train on it with DATASETS.TRAIN \"['{name}']\"")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
