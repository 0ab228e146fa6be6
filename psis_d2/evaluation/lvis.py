"""LVIS (Gupta et al., CVPR 2019, sec. 2.2) in the terms of COCO's evaluation.

Of more than a thousand categories, an image was searched for a few. LVIS's rules are those of COCO
on other detections and regions:

* A detection of a category that the image was not searched for counts not at all.
* Where not every object of a category is annotated, a detection that matches none is ignored, which
  is what COCO does inside a crowd region: here the region is the whole image.
* The highest-scored detections of an image count, of all categories together.
"""

from collections.abc import Sequence

from psis_d2.evaluation.ground_truth import GroundTruth
from psis_d2.evaluation.predictions import ImagePredictions

import numpy as np
from pycocotools import mask as mask_util

# Wider than any image, for boxes that reach out of theirs.
_EVERYWHERE = [-1e7, -1e7, 2e7, 2e7]


def verified_predictions(
    truth: GroundTruth, predictions: Sequence[ImagePredictions], kind: str, max_dets: int
) -> list[ImagePredictions]:
    """The detections that LVIS looks at.

    Args:
        truth: ground truth of LVIS.
        predictions: classes being contiguous category ids.
        kind: ``bbox``, ``segm`` or ``boundary``.
        max_dets: highest-scored detections of an image that count.
    """
    searched = {image: set(categories) for image, categories in truth.absent.items()}
    for annotation in truth.annotations:
        searched[annotation["image_id"]].add(annotation["category_id"])
    kept = []
    for of_image in predictions:
        best = np.sort(np.argsort(-of_image.scores, kind="stable")[:max_dets])
        of_image = of_image.take(best)
        known = np.isin(of_image.classes, list(searched[of_image.image_id]))
        if kind != "bbox" and of_image.has_masks:
            # In no region, not even in one that is everywhere.
            loose = np.isin(of_image.classes, list(truth.not_exhaustive[of_image.image_id]))
            known &= ~(loose & (mask_util.area(of_image.masks()) == 0))
        kept.append(of_image if known.all() else of_image.take(known))
    return kept


def regions_to_ignore(truth: GroundTruth) -> list[dict]:
    """Crowd regions over whole images, of the categories whose objects are not all annotated."""
    regions = []
    for image, categories in truth.not_exhaustive.items():
        if not categories:
            continue
        height, width = truth.image_sizes[image]
        whole = {"size": [height, width], "counts": [0, height * width]}
        region = {
            "image_id": image,
            "id": None,
            "bbox": _EVERYWHERE,
            "area": float(height * width),
            "iscrowd": 1,
            "segmentation": mask_util.frPyObjects(whole, height, width),
        }
        regions += [{**region, "category_id": category} for category in sorted(categories)]
    return regions
