"""Tiny COCO-format data sets on disk for the tests of psis_d2.data."""

import json

import psis_d2  # noqa: F401  (before detectron2)
from psis_d2.config import add_psis_config
from psis_d2.data.coco import register_coco_json

import numpy as np
import pytest
from detectron2.config import get_cfg
from PIL import Image

from toy_data import SIZES, annotations

# Ids with gaps and not in order: the contiguous ids are dog 0, cat 1, bird 2.
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}, {"id": 7, "name": "bird"}]


@pytest.fixture
def write_json(tmp_path):
    """Write a COCO-format json and an image folder (without images); return both paths."""

    def write(images, annotations, categories=CATEGORIES, file_name="instances.json"):
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = tmp_path / file_name
        path.write_text(json.dumps(content))
        (tmp_path / "images").mkdir(exist_ok=True)
        return str(path), str(tmp_path / "images")

    return write


@pytest.fixture
def make_dataset(write_json, catalogs):
    """Write and register a data set of noise images; return its name."""

    def make(name, sizes, annotations, categories=CATEGORIES):
        """``sizes``: image id -> (height, width)."""
        images = [
            {"id": key, "file_name": f"{key}.png", "height": height, "width": width}
            for key, (height, width) in sizes.items()
        ]
        json_file, folder = write_json(images, annotations, categories, f"{name}.json")
        for key, size in sizes.items():
            pixels = np.random.default_rng(key).integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"{folder}/{key}.png")
        register_coco_json(name, json_file, folder)
        return name

    return make


@pytest.fixture
def cfg():
    """A config for small images, masks on, every category seen."""
    cfg = get_cfg()
    add_psis_config(cfg)
    cfg.SEED = 5
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN = (24, 32, 40)
    cfg.INPUT.MIN_SIZE_TEST = 32
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.PSIS.SEEN_CLASSES = "all"
    return cfg


@pytest.fixture
def toy(make_dataset, cfg, tmp_path):
    """Register the toy data set and make the config train and test on it; seen: dog, bird."""
    make_dataset("toy", SIZES, annotations())
    cfg.DATASETS.TRAIN = ("toy",)
    cfg.DATASETS.TEST = ("toy",)
    (tmp_path / "seen.txt").write_text("dog\nbird\n")
    cfg.PSIS.SEEN_CLASSES = str(tmp_path / "seen.txt")
    return cfg
