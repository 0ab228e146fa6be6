"""Make PASCAL VOC 2012's segmentation images a COCO-format data set.

    psis-d2 prepare-voc
    psis-d2 prepare-voc --boxes --sbd benchmark_RELEASE/dataset

Reads DETECTRON2_DATASETS/VOC2012 (what VOCdevkit/VOC2012 holds) and writes
VOC2012/coco/instances_{train,val}.json, the data sets voc12_masks_train and voc12_masks_val. With
--boxes also voc12_masks_train_boxes, which adds the other images of the detection task with boxes
alone; with --sbd voc12_masks_train_sbd, which adds the masks of SBD (Hariharan et al., ICCV 2011).
"""

import argparse
import os

from psis_d2.data.datasets import voc


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the data is and what becomes of it."""
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    parser.add_argument("--folder", default=os.path.join(root, "VOC2012"))
    parser.add_argument("--boxes", action="store_true", help="also images with boxes alone")
    parser.add_argument("--sbd", metavar="FOLDER", help="SBD's, with inst/*.mat; needs scipy")


def run(args: argparse.Namespace) -> None:
    """Convert, print what there is now."""
    for name, count in voc.prepare(args.folder, args.boxes, args.sbd).items():
        numbers = ", ".join(f"{number} {what}" for what, number in sorted(count.items()) if number)
        print(f"{voc.json_path(args.folder, name)}: {numbers}")
