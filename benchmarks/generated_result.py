"""Ground truth and predictions of any size, from a seed; nothing is drawn or detected."""

import psis_d2  # noqa: F401  (before pycocotools)
from psis_d2.evaluation.ground_truth import GroundTruth
from psis_d2.evaluation.predictions import ImagePredictions

import numpy as np
from pycocotools import mask as mask_util

HEIGHT, WIDTH = 480, 640
SMALL, LARGE = np.log(8), np.log(180)  # radii in pixels


def outline(rng: np.random.Generator, x: float, y: float, radius: float) -> list[float]:
    """A polygon of 16 corners around a point."""
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    reach = radius * rng.uniform(0.6, 1.1, 16)
    corners = np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], axis=1)
    return corners.ravel().tolist()


def encode(polygons: list[list[float]]) -> list[dict]:
    """Their RLEs."""
    return mask_util.frPyObjects(polygons, HEIGHT, WIDTH)


def random_place(rng: np.random.Generator) -> tuple[float, float, float]:
    """Center and radius of an object."""
    return rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT), np.exp(rng.uniform(SMALL, LARGE))


def make_image(
    rng: np.random.Generator, image_id: int, classes: int, detections: int
) -> tuple[list[dict], ImagePredictions]:
    """Annotations, not numbered yet, and predictions of one image."""
    present = rng.integers(0, classes, 4)
    objects = [(*random_place(rng), int(rng.choice(present))) for _ in range(rng.integers(1, 14))]
    rles = encode([outline(rng, *place) for *place, _ in objects])
    annotations = []
    for (*_, category), rle, box in zip(objects, rles, mask_util.toBbox(rles), strict=True):
        annotation = {"image_id": image_id, "category_id": category, "bbox": box.tolist()}
        annotation |= {"iscrowd": int(rng.random() < 0.02), "area": float(mask_util.area(rle))}
        if rng.random() < 0.8:
            annotation["segmentation"] = rle
        annotations.append(annotation)
    polygons, categories = [], []
    for _ in range(detections):
        place, category = random_place(rng), int(rng.integers(classes))
        if rng.random() < 0.5:
            x, y, radius, category = objects[rng.integers(len(objects))]
            dx, dy = rng.normal(scale=0.1 * radius, size=2)
            place = x + dx, y + dy, radius * rng.uniform(0.8, 1.2)
        polygons.append(outline(rng, *place))
        categories.append(category)
    rles = encode(polygons)
    return annotations, ImagePredictions(
        image_id=image_id,
        classes=np.array(categories, dtype=np.int64),
        scores=rng.random(detections, dtype=np.float32),
        boxes=mask_util.toBbox(rles).astype(np.float32),
        size=(HEIGHT, WIDTH),
        counts=b"".join(rle["counts"] for rle in rles),
        ends=np.cumsum([len(rle["counts"]) for rle in rles]),
    )


def make_result(
    images: int, classes: int, detections: int, seed: int = 0
) -> tuple[GroundTruth, list[ImagePredictions]]:
    """A data set and what a model found in it, the same for the same numbers."""
    rng = np.random.default_rng(seed)
    annotations, predictions = [], []
    for image_id in range(1, images + 1):
        of_image, found = make_image(rng, image_id, classes, detections)
        annotations += of_image
        predictions.append(found)
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    names = [f"class {i}" for i in range(classes)]
    sizes = {image_id: (HEIGHT, WIDTH) for image_id in range(1, images + 1)}
    truth = GroundTruth("generated", names, list(range(1, classes + 1)), sizes, annotations)
    return truth, predictions
