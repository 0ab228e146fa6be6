"""Registers the data sets that psis_d2 brings along in Detectron2's catalogs."""

from __future__ import annotations

import functools
import os

from psis_d2.data.coco import register_coco_json
from psis_d2.data.fewshot import register_few_shots
from psis_d2.data.splits import SHAPES_SEEN_NAMES, SHAPES_UNSEEN_NAMES
from psis_d2.errors import UserError

from detectron2.data import DatasetCatalog, MetadataCatalog


def _prepare_partial_shapes(folder: str, version: str) -> None:
    # Imported late: it needs OpenCV.
    from psis_d2.data.datasets.partial_shapes import prepare

    prepare(folder, version=version)


PARTIAL_SHAPES = {
    "partial_shapes": ("1", ("train", "val")),
    "partial_shapes_2": ("2", ("train", "val", "test")),
}
"""Name of the folder, and of the data sets before their split -> edition and splits."""


def register_partial_shapes(root: str) -> None:
    """Register ``partial_shapes_{train,val}`` and ``partial_shapes_2_{train,val,test}``.

    They lie in ``root/partial_shapes`` and ``root/partial_shapes_2``. The files need not exist:
    loading a data set, or calling its metadata's ``psis_prepare``, makes them. Names that are
    registered already stay as they are.
    """
    class_names = [*SHAPES_SEEN_NAMES, *SHAPES_UNSEEN_NAMES]
    for base, (version, splits) in PARTIAL_SHAPES.items():
        folder = os.path.join(root, base)
        for split in splits:
            name = f"{base}_{split}"
            if name in DatasetCatalog:
                continue
            json_file = os.path.join(folder, "annotations", f"instances_{split}.json")
            image_root = os.path.join(folder, split)
            prepare = functools.partial(_prepare_partial_shapes, folder, version)
            register_coco_json(name, json_file, image_root, prepare)
            MetadataCatalog.get(name).set(
                thing_classes=class_names,
                thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(class_names))},
            )


def _require_json(json_file: str, title: str, command: str) -> None:
    if not os.path.isfile(json_file):
        raise UserError(
            f"{title} is not there as a COCO-format json ({json_file} is missing); make it with "
            f"psis-d2 {command}."
        )


def _register_converted(name: str, json_file: str, folder: str, title: str, command: str) -> None:
    """A data set whose json a command of psis-d2 makes; registered names stay as they are."""
    if name not in DatasetCatalog:
        prepare = functools.partial(_require_json, json_file, title, command)
        register_coco_json(name, json_file, folder, prepare)


def register_visual_genome(root: str) -> None:
    """Register ``vg_train`` and ``vg_val`` under ``root/visual_genome``, categories by their json.

    Names that are registered already stay as they are.
    """
    folder = os.path.join(root, "visual_genome")
    for split in ("train", "val"):
        path = os.path.join(folder, "annotations", f"instances_{split}.json")
        _register_converted(f"vg_{split}", path, folder, "Visual Genome", "prepare-visual-genome")


def register_bdd100k(root: str) -> None:
    """Register ``bdd100k_train``, ``_val`` and ``_train_boxes`` under ``root/bdd100k``."""
    folder = os.path.join(root, "bdd100k")
    for split in ("train", "val", "train_boxes"):
        path = os.path.join(folder, "annotations", f"instances_{split}.json")
        _register_converted(f"bdd100k_{split}", path, folder, "BDD100K", "prepare-bdd100k")


def register_voc_masks(root: str) -> None:
    """Register ``voc12_masks_`` and ``train``, ``val``, ``train_boxes`` or ``train_sbd``."""
    folder = os.path.join(root, "VOC2012")
    flags = {"train_boxes": " --boxes", "train_sbd": " --sbd FOLDER"}
    for split in ("train", "val", *flags):
        path = os.path.join(folder, "coco", f"instances_{split}.json")
        command = f"prepare-voc{flags.get(split, '')}"
        _register_converted(f"voc12_masks_{split}", path, folder, "VOC 2012", command)


_ROOT = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
for _register in (
    register_visual_genome,
    register_bdd100k,
    register_voc_masks,
    register_partial_shapes,
):
    _register(_ROOT)
for _novel in ("voc", "nonvoc"):
    register_few_shots("coco_2017_train", _novel)
for _novel in ("shapes", "shapes-swapped"):
    register_few_shots("partial_shapes_train", _novel)
