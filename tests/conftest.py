"""What all tests share. Importing psis_d2 comes before Detectron2, here as everywhere."""

import os
from pathlib import Path

import psis_d2  # noqa: F401  (before detectron2)

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

# The tests' tensors are small: more threads only wait for each other, and so do those of several
# processes of pytest-xdist and of the processes that they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
elif "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(min(2, os.cpu_count() or 1))


def pytest_collection_modifyitems(items):
    """Skip what is marked ``gpu`` where there is none."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skipif(True, reason="needs a CUDA GPU that torch can use")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def catalogs():
    """Forget the data sets that a test registers, in both of Detectron2's catalogs."""
    before = set(DatasetCatalog), set(MetadataCatalog)
    yield
    for catalog, names in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        for name in set(catalog) - names:
            catalog.remove(name)


@pytest.fixture(scope="session")
def coco_subset() -> Path:
    """A folder as ``DETECTRON2_DATASETS`` wants it, with at least a part of COCO in ``coco/``.

    It is the one that ``PSIS_D2_TEST_DATASETS`` names, else ``shared/datasets`` beside the
    repository; a test that asks for it is skipped where neither is there.
    """
    beside = Path(__file__).resolve().parents[2] / "shared" / "datasets"
    root = Path(os.environ.get("PSIS_D2_TEST_DATASETS") or beside)
    if not (root / "coco" / "annotations" / "instances_val2017.json").is_file():
        pytest.skip(f"no COCO images in {root}; name a folder in PSIS_D2_TEST_DATASETS")
    return root
