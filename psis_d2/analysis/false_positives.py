"""Where the wrong pixels of masks lie: background, seen or unseen objects (Zhao et al., Fig. 3)."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from psis_d2.evaluation.ground_truth import GroundTruth, box_region
from psis_d2.evaluation.predictions import ImagePredictions

import numpy as np
from pycocotools import mask as mask_util
from tqdm import tqdm

MATCH_IOU = 0.5
PLACES = ("background", "seen", "unseen", "unknown")


def attribute_false_positives(
    truth: GroundTruth,
    predictions: Sequence[ImagePredictions],
    seen_ids: Collection[int],
    *,
    min_score: float = 0.0,
    progress: bool = False,
) -> list[dict]:
    """Count the pixels of masks outside of their objects by what lies there.

    A detection is compared with the object that it has found: of those of its category that no
    better-scored one has found, the one of the largest box IoU, if that is at least 0.5.
    Predictions in given boxes belong to the object whose ``id`` they have. Detections that find
    nothing are mistakes of the detector and do not count, nor do objects without a mask. A wrong
    pixel is

    * ``seen`` or ``unseen`` if a mask of another object of such a category covers it, half of each
      if masks of both do; crowd regions are such objects, too;
    * ``unknown`` if only boxes of objects without a mask do;
    * ``background`` otherwise.

    Args:
        truth: the ground truth.
        predictions: at most one an image, with masks.
        seen_ids: contiguous ids of the seen categories.
        min_score: detections of a lower score are left out.
        progress: show a bar.

    Returns:
        A row for the objects of ``seen``, ``unseen`` and ``all`` categories: ``group``, ``objects``
        (that were found), ``predicted`` pixels, ``wrong`` pixels, and how many of these lie in each
        of :data:`PLACES`; ``<place>_share`` in percent of the wrong ones, nan if there are none.
    """
    of_image = defaultdict(list)
    for annotation in truth.annotations:
        of_image[annotation["image_id"]].append(annotation)
    sums = {seen: np.zeros(3 + len(PLACES)) for seen in (True, False)}
    for part in tqdm(predictions, desc="false positives", unit="image", disable=not progress):
        part = part.take(part.scores >= min_score)
        objects = of_image[part.image_id]
        if not part.has_masks or not objects:
            continue
        masks = part.masks()
        scene = _Scene(objects, seen_ids, truth.image_sizes[part.image_id])
        for row, place in _found(part, objects):
            own = objects[place]
            if "segmentation" in own:
                counts = scene.count(masks[row], own["segmentation"])
                sums[own["category_id"] in seen_ids] += counts
    groups = {"seen": sums[True], "unseen": sums[False], "all": sums[True] + sums[False]}
    return [_row(group, values) for group, values in groups.items()]


def _row(group: str, values: np.ndarray) -> dict:
    objects, predicted, wrong, *places = values.tolist()
    shares = [100 * x / wrong if wrong else float("nan") for x in places]
    return {
        "group": group,
        **{"objects": int(objects), "predicted": int(predicted), "wrong": int(wrong)},
        **dict(zip(PLACES, places, strict=True)),
        **{f"{place}_share": x for place, x in zip(PLACES, shares, strict=True)},
    }


def _found(part: ImagePredictions, objects: Sequence[dict]) -> Iterable[tuple[int, int]]:
    """Rows of detections and places of the objects that they have found."""
    if part.ids is not None:
        places = {annotation["id"]: place for place, annotation in enumerate(objects)}
        for row, key in enumerate(part.ids.tolist()):
            if key in places and not objects[places[key]]["iscrowd"]:
                yield row, places[key]
        return
    of_category = defaultdict(list)
    for place, annotation in enumerate(objects):
        if not annotation["iscrowd"]:
            of_category[annotation["category_id"]].append(place)
    boxes = {c: np.array([objects[p]["bbox"] for p in places]) for c, places in of_category.items()}
    free = {category: np.ones(len(places), bool) for category, places in of_category.items()}
    for row in np.argsort(-part.scores, kind="stable").tolist():
        category = int(part.classes[row])
        if category not in of_category:
            continue
        ious = mask_util.iou(part.boxes[[row]], boxes[category], [0] * len(boxes[category]))[0]
        ious[~free[category]] = 0
        best = int(ious.argmax())
        if ious[best] >= MATCH_IOU:
            free[category][best] = False
            yield row, of_category[category][best]


class _Scene:
    """What lies where in an image, as run lengths: intersections of these need no pixels."""

    def __init__(self, objects: Sequence[dict], seen_ids: Collection[int], size: tuple[int, int]):
        masked = [a for a in objects if "segmentation" in a]
        self.seen, self.unseen = (
            _union([a["segmentation"] for a in masked if (a["category_id"] in seen_ids) is side])
            for side in (True, False)
        )
        self.both = _cut(self.seen, self.unseen)
        self.objects = _union([x for x in (self.seen, self.unseen) if x is not None])
        self.boxes = _union(
            [box_region(a["bbox"], *size) for a in objects if "segmentation" not in a]
        )
        self.boxed_objects = _cut(self.boxes, self.objects)

    def count(self, mask: dict, own: dict) -> np.ndarray:
        """1, pixels of a mask, those outside of its object, and these by place: [7]."""
        right = _cut(mask, own)

        def wrong_in(region: dict | None) -> int:
            return _area(_cut(mask, region)) - _area(_cut(right, region))

        wrong, both = _area(mask) - _area(right), wrong_in(self.both)
        unknown = wrong_in(self.boxes) - wrong_in(self.boxed_objects)
        background = wrong - wrong_in(self.objects) - unknown
        seen, unseen = (wrong_in(x) - both / 2 for x in (self.seen, self.unseen))
        return np.array([1, _area(mask), wrong, background, seen, unseen, unknown])


def _union(rles: Sequence[dict]) -> dict | None:
    return mask_util.merge(list(rles)) if rles else None


def _cut(one: dict | None, other: dict | None) -> dict | None:
    if one is None or other is None:
        return None
    return mask_util.merge([one, other], intersect=True)


def _area(rle: dict | None) -> int:
    return 0 if rle is None else int(mask_util.area(rle))
