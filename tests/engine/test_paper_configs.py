"""The configs of the papers as users run them, on a few images: train, evaluate, evaluate again."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from psis_d2.data.datasets import partial_shapes

import pytest

ROOT = Path(__file__).parents[2]
OTHER_DATA = re.compile("vg3k|bdd100k|voc12")
CONFIGS = sorted(
    path.stem
    for path in (ROOT / "configs").glob("*.yaml")
    # Other data, whose loaders have tests of their own: tests/data/datasets.
    if not path.stem.startswith("Base-") and not OTHER_DATA.search(path.stem)
)
FULLY_SUPERVISED = ("cpmask_full_R101", "shapemask_specific_R101", "shapemask_specific_R101_NASFPN")
FULLY_SUPERVISED += tuple(f"shapemask_light{n}_R101" for n in (16, 32, 64))
BOXES_ONLY = ("fasterrcnn_R50", "fasterrcnn_R101", "fcos_R50", "retinanet_R50")
FAST = "shapeprop_R50"
SMALL = """INPUT.MIN_SIZE_TRAIN [128] INPUT.MIN_SIZE_TRAIN_SAMPLING choice
    INPUT.MAX_SIZE_TRAIN 192 INPUT.MIN_SIZE_TEST 128
    INPUT.MAX_SIZE_TEST 192 SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 2 SOLVER.STEPS []
    SOLVER.BASE_LR 0.001 DATALOADER.NUM_WORKERS 0 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16
    MODEL.RESNETS.NORM BN MODEL.BACKBONE.FREEZE_AT 0"""  # nothing pretrained to freeze


@pytest.fixture(scope="module")
def some_of_coco(coco_subset, tmp_path_factory) -> Path:
    """Eight training images and four to evaluate on, as ``DETECTRON2_DATASETS`` wants them."""
    source, folder = Path(coco_subset) / "coco", tmp_path_factory.mktemp("datasets")
    for split, count in (("train2017", 8), ("val2017", 4)):
        content = json.loads((source / "annotations" / f"instances_{split}.json").read_text())
        annotated = {a["image_id"] for a in content["annotations"]}
        content["images"] = [x for x in content["images"] if x["id"] in annotated][:count]
        kept = {x["id"] for x in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        target = folder / "coco" / "annotations" / f"instances_{split}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content))
        (folder / "coco" / split).symlink_to((source / split).resolve())
    return folder


@pytest.fixture(scope="module")
def some_partial_shapes(tmp_path_factory) -> Path:
    """As few images of PartialShapes."""
    folder = tmp_path_factory.mktemp("datasets")
    partial_shapes.generate(str(folder / "partial_shapes"), 8, 4, progress=False)
    return folder


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == FAST else pytest.mark.slow) for n in CONFIGS]
)
def test_trains_and_evaluates_on_coco(name, some_of_coco, tmp_path):
    options = []
    if "fewshot" in name:  # the draw is tested in tests/data/test_fewshot.py
        options = ["DATASETS.TRAIN", "['coco_2017_train']"]
    _train_and_evaluate(name, some_of_coco, tmp_path, options)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_trains_and_evaluates_on_partial_shapes(name, some_partial_shapes, tmp_path):
    options = ["DATASETS.TRAIN", "['partial_shapes_train']"]
    options += ["DATASETS.TEST", "['partial_shapes_val']", "MODEL.ROI_HEADS.NUM_CLASSES", "20"]
    if name not in FULLY_SUPERVISED:
        options += ["PSIS.SEEN_CLASSES", "shapes"]
    if name == "cpmask_fewshot_base_R50":
        options += ["PSIS.TRAIN_CLASSES", "shapes"]
    _train_and_evaluate(name, some_partial_shapes, tmp_path, options)


def _train_and_evaluate(name: str, datasets: Path, tmp_path: Path, options: list[str]):
    options = ["MODEL.WEIGHTS", "", *SMALL.split(), "OUTPUT_DIR", str(tmp_path), *options]
    if name.startswith("shapemask"):
        options += ["PSIS.SHAPEMASK.NUM_PRIORS", "1"]
    runs = [[], ["--eval-only"]] if name == FAST else [[]]  # training ends with an evaluation
    for extra in runs:
        if extra:
            options += ["MODEL.WEIGHTS", str(tmp_path / "model_final.pth")]
        command = [sys.executable, "train_net.py", "--config-file", f"configs/{name}.yaml"]
        done = subprocess.run(
            [*command, "--num-gpus", "0", *extra, *options],
            cwd=ROOT,
            env={**os.environ, "DETECTRON2_DATASETS": str(datasets)},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        results = json.loads((tmp_path / "results.json").read_text())
        assert {"bbox_seen", "bbox_all"} <= results.keys()
        assert ("bbox_unseen" in results) == (name not in FULLY_SUPERVISED)
        # A detector that finds nothing does not show whether it draws masks.
        assert "segm_seen" in results or name in BOXES_ONLY
        (tmp_path / "results.json").unlink()
    (tmp_path / "model_final.pth").unlink()  # 100 to 700 MB of each config
