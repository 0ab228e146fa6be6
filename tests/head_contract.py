"""Every mask head of the project with a tiny model of its quick config: nothing here names one."""

import contextlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import psis_d2.modeling  # noqa: F401  (registers heads)
from psis_d2.data.coco import register_coco_json
from psis_d2.modeling.mask_heads.base import RegionMaskHead, prepare_mask_head

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, ROI_MASK_HEAD_REGISTRY, build_model

from model_builders import CONFIGS, tiny_config
from tiny_data import write_tiny_data

DATA = "contract_data"
FILES = ("clean", "garbage", "other")
"""The same objects; with garbage in the masks of unseen categories; with other seen masks."""


def region_heads() -> dict[str, type]:
    """The project's RoI mask heads by their registered names."""
    return {name: kind for name, kind in ROI_MASK_HEAD_REGISTRY if _is_ours(kind)}


def meta_architectures() -> dict[str, type]:
    """The project's meta-architectures, whose masks are made without a RoI mask head."""
    return {name: kind for name, kind in META_ARCH_REGISTRY if _is_ours(kind)}


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("psis_d2.")


@cache
def quick_configs() -> dict[str, list[str]]:
    """Quick configs, relative to ``configs/``, by the head that predicts their masks.

    That is the meta-architecture if it is one of the project's, else the RoI mask head; shorter
    names come first.
    """
    found: dict[str, list[str]] = {}
    paths = sorted((CONFIGS / "quick").glob("*.yaml"), key=lambda p: (len(p.name), p.name))
    for path in paths:
        name = f"quick/{path.name}"
        cfg = tiny_config(config=name)
        if path.name.startswith("Base-") or not cfg.MODEL.MASK_ON:
            continue
        meta = cfg.MODEL.META_ARCHITECTURE
        head = meta if meta in meta_architectures() else cfg.MODEL.ROI_MASK_HEAD.NAME
        found.setdefault(head, []).append(name)
    return found


def region_configs() -> dict[str, str]:
    """A quick config of every RoI mask head that has one."""
    quick = quick_configs()
    return {name: quick[name][0] for name in region_heads() if name in quick}


def all_configs() -> list[str]:
    """These, and all quick configs of the meta-architectures, which are the members of a family."""
    families = [quick_configs().get(name, []) for name in meta_architectures()]
    return [*region_configs().values(), *(name for family in families for name in family)]


def register_data(folder: Path) -> None:
    """Register objects of 20 categories, some with masks, as what the configs train on.

    Args:
        folder: where their json is, or will be.
    """
    path = folder / "data.json"
    if not path.exists():
        annotations = []
        for number in range(8):
            x, y, w, h = 4 * number, 2 * number, 20 + number, 30
            annotation = {"id": number + 1, "image_id": 1, "iscrowd": 0, "bbox": [x, y, w, h]}
            annotation |= {"category_id": number % 2 + 1, "area": w * h}
            annotation["segmentation"] = [[x, y, x + w, y, x + 3 * number, y + h]]
            annotations.append(annotation)
        content = {
            "images": [{"id": 1, "file_name": "1.png", "height": 64, "width": 64}],
            "annotations": annotations,
            "categories": [{"id": k + 1, "name": f"class{k}"} for k in range(20)],
        }
        path.write_text(json.dumps(content))
    if DATA not in DatasetCatalog:
        register_coco_json(DATA, str(path), str(folder))


def write_files(folder: Path) -> None:
    """Images and jsons of each of :data:`FILES`, and ``seen.txt`` with the one seen category."""
    (folder / "seen.txt").write_text("box\n")
    for kind in FILES:
        data = write_tiny_data(folder / kind, images=4)
        content = json.loads(Path(data["json"]).read_text())
        # as many categories as the configs have
        content["categories"] += [{"id": k, "name": f"class{k}"} for k in range(4, 21)]
        rng = np.random.default_rng(0)
        for annotation in content["annotations"]:
            seen = annotation["category_id"] == 1
            if (kind == "garbage" and not seen) or (kind == "other" and seen):
                usable = seen or annotation["id"] % 4 < 3
                annotation["segmentation"] = _any_mask(rng, annotation["id"], usable)
        Path(data["json"]).write_text(json.dumps(content))


def _any_mask(rng, number: int, usable: bool):
    """A mask that has nothing to do with any object, or what is none at all."""
    x, y, w, h = (int(value) for value in rng.integers(4, 28, 4))
    if usable:
        return [[x, y, x + w, y + 3, x + 2, y + h]]
    broken = [[[1, 2]], None, {"size": [64, 64], "counts": "cheese"}, [[x, y, x, y, x, y]]]
    return broken[number // 4 % 4]


@contextlib.contextmanager
def registered_files(folder: Path) -> Iterator[str]:
    """Register the files in a folder for the length of a block, under one name for all."""
    register_coco_json(DATA, str(folder / "data.json"), str(folder / "images"))
    try:
        yield DATA
    finally:
        for catalog in (DatasetCatalog, MetadataCatalog):
            catalog.remove(DATA)


def contract_config(config: str, folder: Path, *overrides) -> CfgNode:
    """A narrow quick config that trains on :func:`register_data`'s data."""
    return tiny_config(
        *("MODEL.ROI_MASK_HEAD.CONV_DIM", 32),  # GN's groups
        *("PSIS.SHAPEMASK.NUM_PRIORS", 3, "PSIS.CONDINST.BRANCH_DIM", 16),
        *("PSIS.SEEN_CLASSES", "auto", "DATASETS.TRAIN", (DATA,), "DATASETS.TEST", ()),
        *("OUTPUT_DIR", str(folder)),
        *overrides,
        config=config,
    )


def contract_model(config: str, folder: Path, *overrides, seed: int = 0) -> torch.nn.Module:
    """A model of it in training mode, prepared as a run would be."""
    cfg = contract_config(config, folder, *overrides)
    prepare_mask_head(cfg)
    torch.manual_seed(seed)
    return build_model(cfg)


def missing_pieces(heads: dict[str, type], configs: dict, tests: Path) -> list[str]:
    """What heads lack: one sentence a piece."""
    missing = []
    for name, kind in heads.items():
        method = kind.__module__.rsplit(".", 1)[-1]
        if not configs.get(name):
            missing.append(f"{name} has no config: add configs/quick/{method}_shapes.yaml.")
        if not list(tests.rglob(f"test_{method}.py")):
            missing.append(f"{name} has no test: add tests/modeling/test_{method}.py.")
        if name in ROI_MASK_HEAD_REGISTRY and not issubclass(kind, RegionMaskHead):
            missing.append(f"{name} has no contract: make it a subclass of RegionMaskHead.")
    return missing
