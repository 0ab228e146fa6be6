"""Random ground truth and detections near it, without files."""

import psis_d2  # noqa: F401  (before detectron2)
from psis_d2.evaluation.ground_truth import GroundTruth
from psis_d2.evaluation.predictions import ImagePredictions, encode_masks

import numpy as np

from tiny_coco import rectangle

SIZE, CLASSES = (90, 120), 5


def random_box(rng):
    corner = rng.integers(0, 80, 2)
    return [*corner.tolist(), *rng.integers(1, 80, 2).tolist()]


def random_case(seed, images=12, key=lambda number: number):
    """Objects of four of five classes (crowds, some without masks) and detections near them."""
    rng = np.random.default_rng(seed)
    annotations, predictions = [], []
    for number in range(images):
        rows, masks = [], []
        for _ in range(rng.integers(0, 6)):
            box = random_box(rng)
            annotation = {
                "id": len(annotations),
                "image_id": key(number),
                "category_id": int(rng.integers(4)),
                "bbox": box,
                "iscrowd": int(rng.random() < 0.15),
                "area": float(rng.integers(1, 9000)),
            }
            if rng.random() < 0.8:
                counts = encode_masks(rectangle(box, SIZE)[None])[0]
                annotation["segmentation"] = {"size": list(SIZE), "counts": counts}
            annotations.append(annotation)
            for _ in range(rng.integers(0, 4)):
                near = np.maximum(np.add(box, rng.integers(-8, 9, 4)), [0, 0, 1, 1]).tolist()
                # Few different scores: the order of equal ones has to be the same, too.
                rows.append((annotation["category_id"], near, rng.integers(1, 6) / 8))
                masks.append(rectangle(near if rng.random() < 0.9 else [0, 0, 0, 0], SIZE))
        rows += [(int(rng.integers(CLASSES)), random_box(rng), rng.random()) for _ in range(3)]
        masks += [rectangle(row[1], SIZE) for row in rows[-3:]]
        rles = encode_masks(np.stack(masks))
        predictions.append(
            ImagePredictions(
                image_id=key(number),
                classes=np.array([row[0] for row in rows]),
                scores=np.array([row[2] for row in rows], dtype=np.float32),
                boxes=np.array([row[1] for row in rows], dtype=np.float32),
                size=SIZE,
                counts=b"".join(rles),
                ends=np.cumsum([len(rle) for rle in rles]),
            )
        )
    names = [f"class{i}" for i in range(CLASSES)]
    sizes = {key(number): SIZE for number in range(images)}
    return GroundTruth("random", names, list(range(CLASSES)), sizes, annotations), predictions
