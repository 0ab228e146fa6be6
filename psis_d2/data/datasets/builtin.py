"""Registers the data sets that psis_d2 brings along in Detectron2's catalogs."""

from __future__ import annotations

import functools
import os

from psis_d2.data.coco import register_coco_json
from psis_d2.data.fewshot import register_few_shots
from psis_d2.data.splits import SHAPES_SEEN_NAMES, SHAPES_UNSEEN_NAMES
from psis_d2.errors import UserError

from detectron2.data import DatasetCatalog, MetadataCatalog


def _prepare_partial_shapes(folder: str) -> None:
    # Imported late: it needs OpenCV.
    from psis_d2.data.datasets.partial_shapes import prepare

    prepare(folder)


def register_partial_shapes(root: str) -> None:
    """Register ``partial_shapes_train`` and ``partial_shapes_val`` under ``root/partial_shapes``.

    The files need not exist: loading a data set, or calling its metadata's ``psis_prepare``, makes
    them. Names that are registered already stay as they are.
    """
    folder = os.path.join(root, "partial_shapes")
    class_names = [*SHAPES_SEEN_NAMES, *SHAPES_UNSEEN_NAMES]
    for split in ("train", "val"):
        name = f"partial_shapes_{split}"
        if name in DatasetCatalog:
            continue
        json_file = os.path.join(folder, "annotations", f"instances_{split}.json")
        image_root = os.path.join(folder, split)
        prepare = functools.partial(_prepare_partial_shapes, folder)
        register_coco_json(name, json_file, image_root, prepare)
        MetadataCatalog.get(name).set(
            thing_classes=class_names,
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(class_names))},
        )


def _require_visual_genome(json_file: str) -> None:
    if not os.path.isfile(json_file):
        raise UserError(
            f"Visual Genome is not there as a COCO-format json ({json_file} is missing); make it "
            "with psis-d2 prepare-visual-genome."
        )


def register_visual_genome(root: str) -> None:
    """Register ``vg_train`` and ``vg_val`` under ``root/visual_genome``, categories by their json.

    Names that are registered already stay as they are.
    """
    folder = os.path.join(root, "visual_genome")
    for split in ("train", "val"):
        name = f"vg_{split}"
        if name in DatasetCatalog:
            continue
        json_file = os.path.join(folder, "annotations", f"instances_{split}.json")
        prepare = functools.partial(_require_visual_genome, json_file)
        register_coco_json(name, json_file, folder, prepare)


register_visual_genome(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
register_partial_shapes(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
for _novel in ("voc", "nonvoc"):
    register_few_shots("coco_2017_train", _novel)
for _novel in ("shapes", "shapes-swapped"):
    register_few_shots("partial_shapes_train", _novel)
