"""Draw few-shot training data once: a few objects of every novel category.

    psis-d2 make-fewshot --dataset coco_2017_train --novel voc --shots 10 --seed 0
    psis-d2 make-fewshot --json train.json --novel names.txt --shots 5 --out few.json

The draw goes beside the annotations that it is drawn from; for named data sets it then has a name
of its own, such as coco_2017_train_fewshot_voc_10_seed0, which DATASETS.TRAIN takes.
"""

import argparse

from psis_d2.data.fewshot import make_fewshot

from detectron2.data import DatasetCatalog
from detectron2.utils.logger import setup_logger


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is drawn, and from where."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", help="registered data set to draw from")
    source.add_argument("--json", help="COCO-format json to draw from")
    parser.add_argument(
        "--novel", required=True, help="novel categories, as PSIS.SEEN_CLASSES: voc, file, ..."
    )
    parser.add_argument("--shots", type=int, default=10, help="objects of each novel category")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another draw")
    parser.add_argument("--out", help="json to write; default: beside the source")


def run(args: argparse.Namespace) -> None:
    """Draw, write, print what was taken."""
    setup_logger(name="psis_d2").setLevel("WARNING")
    out, content, drawn = make_fewshot(
        args.novel, args.shots, args.seed, dataset=args.dataset, json_file=args.json, out=args.out
    )
    for name, ids in drawn.items():
        print(f"{name}: annotations {', '.join(map(str, ids))}")
    print(
        f"{len(content['annotations'])} objects of {len(drawn)} categories in "
        f"{len(content['images'])} images, seed {args.seed}"
    )
    print(f"The draw is in {out}")
    name = f"{args.dataset}_fewshot_{args.novel}_{args.shots}_seed{args.seed}"
    if name in DatasetCatalog and not args.out:
        print(f"Train on it with DATASETS.TRAIN \"['{name}']\"")
