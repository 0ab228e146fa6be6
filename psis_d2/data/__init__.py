"""Data sets in which only some objects have masks: reading, restricting, mapping, loading."""

from psis_d2.data import datasets  # registers what psis_d2 brings along
from psis_d2.data.catalog import get_class_names, get_dataset_dicts, prepare_dataset
from psis_d2.data.coco import load_coco, register_coco_json
from psis_d2.data.loader import build_test_loader, build_train_loader
from psis_d2.data.mapper import PartialMaskMapper
from psis_d2.data.splits import resolve_seen_classes
from psis_d2.data.training_set import get_training_dicts, seen_ids_for

__all__ = [
    "PartialMaskMapper",
    "build_test_loader",
    "build_train_loader",
    "datasets",
    "get_class_names",
    "get_dataset_dicts",
    "get_training_dicts",
    "load_coco",
    "prepare_dataset",
    "register_coco_json",
    "resolve_seen_classes",
    "seen_ids_for",
]
