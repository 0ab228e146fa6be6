"""A COCO-format data set on disk, a few seconds of training large."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("box", "cup", "hat")


def write_tiny_data(folder: Path, images: int = 6, masked=("box",), size: int = 64) -> dict:
    """Images with two bright rectangles each, and their json.

    Args:
        folder: where ``images/`` and ``data.json`` are written.
        images: how many.
        masked: names of the categories whose objects have masks.
        size: image side in pixels.

    Returns:
        {"json": path, "images": path}, as strings.
    """
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    records, annotations = [], []
    for i in range(images):
        picture = rng.integers(0, 60, (size, size, 3), dtype=np.uint8)
        for k in range(2):
            x, y = (int(v) for v in rng.integers(2, size // 2, 2))
            w, h = (int(v) for v in rng.integers(size // 4, size // 2 - 2, 2))
            category = (i + k) % len(CLASSES)
            picture[y : y + h, x : x + w] = 120 + 40 * category
            annotation = {"id": len(annotations) + 1, "image_id": i + 1, "iscrowd": 0}
            annotation |= {"category_id": category + 1, "bbox": [x, y, w, h], "area": w * h}
            if CLASSES[category] in masked:
                annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            annotations.append(annotation)
        name = f"{i:03d}.png"
        Image.fromarray(picture).save(folder / "images" / name)
        records.append({"id": i + 1, "file_name": name, "height": size, "width": size})
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    data = {"images": records, "annotations": annotations, "categories": categories}
    (folder / "data.json").write_text(json.dumps(data))
    return {"json": str(folder / "data.json"), "images": str(folder / "images")}


SMALL = {
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "INPUT.MIN_SIZE_TRAIN": [64],
    "INPUT.MIN_SIZE_TEST": 64,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.STEPS": [],
    "SOLVER.WARMUP_ITERS": 1,
    "SOLVER.BASE_LR": 0.005,
    "TEST.EXPECTED_RESULTS": [],
}
# Keys without effect are refused: these are for configs of the head that reads them.
SMALL_SHAPEPROP = {"PSIS.SHAPEPROP.TOWER_DIM": 16, "PSIS.SHAPEPROP.EMBED_DIM": 8}


def command_line(data: dict, output: Path, *opts, config: str = "shapeprop_shapes") -> list[str]:
    """Arguments of train_net.py that train a small quick config on `data` for two iterations."""
    root = Path(__file__).parents[1]
    line = ["--config-file", str(root / "configs" / "quick" / f"{config}.yaml"), "--num-gpus", "0"]
    for split in ("train", "val"):
        line += [f"--{split}-json", data["json"], f"--{split}-images", data["images"]]
    for key, value in (SMALL | SMALL_SHAPEPROP if "shapeprop" in config else SMALL).items():
        line += [key, str(value)]
    line += ["SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(output)]
    return line + [str(opt) for opt in opts]
