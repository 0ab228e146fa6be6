"""COCO's average precision of all categories at once, by the fastest library that is there."""

import contextlib
import io
import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from psis_d2.evaluation import lvis
from psis_d2.evaluation.ground_truth import GroundTruth, box_region
from psis_d2.evaluation.predictions import ImagePredictions
from psis_d2.garbage import without_collector
from psis_d2.optional import require

import numpy as np
from pycocotools import mask as mask_util

logger = logging.getLogger(__name__)

# Index into the last dimension of the arrays.
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)
# COCO ignores an object of a size that it does not look at. This one is in no range of sizes.
_NO_SIZE = 1e12
# Categories are evaluated in parts of about so many pairs of image and category and so many
# detections: in the libraries, each of the former costs memory, and the latter are dicts.
_PAIRS, _DETECTIONS = 500_000, 100_000


@dataclass(frozen=True)
class PrecisionArrays:
    """What COCO's evaluation accumulates; T = 10 IoU thresholds, R = 101 recalls, A = 4 sizes.

    -1 where there is no object. The sizes are all, small, medium, large.

    Attributes:
        precision: float [T, R, C, A].
        recall: float [T, C, A].
        scores: float [T, R, C, A].
    """

    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray


def average_precision(
    truth: GroundTruth,
    predictions: Sequence[ImagePredictions],
    kind: str,
    max_dets: int = 100,
    only: Collection[tuple] | None = None,
    library: str | None = None,
) -> PrecisionArrays:
    """Evaluate all categories at once; a group of them is a slice of what comes out.

    Data that says what is absent (LVIS) is evaluated as LVIS does: see :mod:`.lvis`.

    Args:
        truth: the ground truth.
        predictions: at most one an image, classes being contiguous category ids.
        kind: ``bbox``, ``segm`` or ``boundary``: Boundary IoU (Cheng et al., CVPR 2021), the lesser
            of the masks' IoU and that of their inner borders, 0.02 of the image's diagonal wide.
            Objects and detections without mask do not count but for ``bbox``.
        max_dets: highest-scored detections per image and category that count.
        only: (image id, annotation id) of the objects that count, None for all. The others are
            matched as ever, but neither they nor the detections that they match count.
        library: "faster_coco_eval" or "pycocotools", which give the same arrays; None for the
            former where it is installed. ``boundary`` needs the former.

    Raises:
        UserError: boundaries are asked for without faster-coco-eval.
    """
    objects = truth.annotations
    if truth.absent is not None:
        predictions = lvis.verified_predictions(truth, predictions, kind, max_dets)
        objects = [*objects, *lvis.regions_to_ignore(truth)]
    if kind != "bbox":
        predictions = [p for p in predictions if p.size is not None]
        predictions = drop_detections_on_maskless(truth, predictions)
        # A crowd region without a mask stays what it is: its box is the region.
        objects = [
            a if "segmentation" in a else {**a, "segmentation": _region(truth, a)}
            for a in objects
            if "segmentation" in a or a["iscrowd"]
        ]
    if only is not None:
        objects = [
            a if (a["image_id"], a["id"]) in only else {**a, "area": _NO_SIZE} for a in objects
        ]
    if kind == "boundary":
        library = require("faster_coco_eval").__name__
    evaluate = _choose(library)
    with without_collector():
        parts = [
            evaluate(*part, kind, max_dets) for part in _parts(truth, objects, predictions, kind)
        ]
    arrays = {
        name: np.concatenate([part[name][..., 0] for part in parts], axis=-2)
        for name in ("precision", "recall", "scores")
    }
    return PrecisionArrays(**arrays)


def summarize(precision: np.ndarray, class_ids: Sequence[int]) -> dict[str, float]:
    """COCO's six summary numbers over some categories, in percent; nan where undefined.

    Equal to what ``COCOeval`` says with ``params.catIds`` set to these categories.

    Args:
        precision: of :class:`PrecisionArrays`.
        class_ids: contiguous category ids.
    """
    chosen = precision[:, :, class_ids]
    values = {
        "AP": chosen[..., _ALL],
        "AP50": chosen[0, ..., _ALL],
        "AP75": chosen[5, ..., _ALL],
        "APs": chosen[..., _SMALL],
        "APm": chosen[..., _MEDIUM],
        "APl": chosen[..., _LARGE],
    }
    means = {}
    for name, value in values.items():
        defined = value[value > -1]
        means[name] = float(np.mean(defined) * 100) if len(defined) else float("nan")
    return means


def drop_detections_on_maskless(
    truth: GroundTruth, predictions: Sequence[ImagePredictions]
) -> list[ImagePredictions]:
    """The detections whose mask can be judged.

    Left out is a detection on an object without a mask: at least half of its mask (of its box, if
    the mask is empty) lies in that object's box, and its mask overlaps no mask of its category with
    an IoU of 0.5 or more. COCO's own crowd regions would do nearly the same, but decide at each
    IoU threshold again: at the high ones, a mask that leaves the box a little would be an error,
    and a coarse mask of an annotated neighbor would be forgiven.

    Args:
        truth: the ground truth.
        predictions: with masks, classes being contiguous category ids.
    """
    maskless, masked = defaultdict(lambda: defaultdict(list)), defaultdict(list)
    for annotation in truth.annotations:
        if annotation["iscrowd"]:
            continue
        image, category = annotation["image_id"], annotation["category_id"]
        if "segmentation" in annotation:
            masked[image, category].append(annotation["segmentation"])
        else:
            maskless[image][category].append(_region(truth, annotation))

    kept = []
    for of_image in predictions:
        image = of_image.image_id
        if image not in maskless or not len(of_image):
            kept.append(of_image)
            continue
        judged, found = np.ones(len(of_image), dtype=bool), of_image.masks()
        for category, regions in maskless[image].items():
            rows = np.flatnonzero(of_image.classes == category)
            masks = [found[row] for row in rows]
            if known := masked.get((image, category)):
                fits = mask_util.iou(masks, known, [0] * len(known)) if masks else np.zeros((0, 1))
                rows = rows[fits.max(axis=1) < 0.5]
                masks = [found[row] for row in rows]
            if not masks:
                continue
            for place in np.flatnonzero(mask_util.area(masks) == 0):
                masks[place] = box_region(of_image.boxes[rows[place]], *truth.image_sizes[image])
            # With the crowd flag, the COCO code divides the intersection by the mask's own area.
            inside = mask_util.iou(masks, regions, [1] * len(regions)).max(axis=1)
            judged[rows[inside >= 0.5]] = False
        kept.append(of_image if judged.all() else of_image.take(judged))
    return kept


def _region(truth: GroundTruth, annotation: dict) -> dict:
    return box_region(annotation["bbox"], *truth.image_sizes[annotation["image_id"]])


# ------------------------------------------------------------------------------ the libraries


def _parts(
    truth: GroundTruth,
    objects: Sequence[dict],
    predictions: Sequence[ImagePredictions],
    kind: str,
) -> Iterator[tuple[list[dict], list[int], list[dict], list[dict]]]:
    """Images, categories, annotations and detections of some categories at a time, all in order.

    Images are numbered in the order of their ids, since both libraries sort them and one of them
    knows no strings. Annotations and detections are numbered from 1: the COCO code takes a match
    with annotation 0 for none, and of two annotations with one id it forgets the first.
    """
    ids = sorted(truth.image_sizes, key=lambda key: (isinstance(key, str), key))
    place = {key: number for number, key in enumerate(ids)}
    images = [
        {"id": place[key], "height": height, "width": width}
        for key, (height, width) in truth.image_sizes.items()
    ]
    of_category = defaultdict(list)
    for annotation in objects:
        of_category[annotation["category_id"]].append(annotation)
    found = np.zeros(len(truth.class_names), dtype=np.int64)
    for part in predictions:
        found += np.bincount(part.classes, minlength=len(found))
    for categories in _split(found, len(images)):
        annotations = [
            {**a, "image_id": place[a["image_id"]]} for c in categories for a in of_category[c]
        ]
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
        detections = _detections(predictions, categories, place, kind)
        yield images, categories, annotations, detections


def _split(found: np.ndarray, num_images: int) -> list[list[int]]:
    """Categories in order, in parts that are small enough; `found` counts their detections."""
    parts, held = [[]], 0
    for category, number in enumerate(found.tolist()):
        full = (len(parts[-1]) + 1) * num_images > _PAIRS or held + number > _DETECTIONS
        if parts[-1] and full:
            parts.append([])
            held = 0
        parts[-1].append(category)
        held += number
    return parts


def _detections(
    predictions: Sequence[ImagePredictions], categories: list[int], place: dict, kind: str
) -> list[dict]:
    """The detections of a run of categories as the libraries want them."""
    detections = []
    for of_image in predictions:
        rows = (of_image.classes >= categories[0]) & (of_image.classes <= categories[-1])
        if not rows.all():
            of_image = of_image.take(rows)
        if not len(of_image):
            continue
        boxes = of_image.boxes.tolist()
        # COCO's loader takes the box's area wherever there is a box; masks are binned by their own.
        if kind != "bbox":
            masks = of_image.masks()
            areas = mask_util.area(masks).tolist()
        else:
            masks = [None] * len(boxes)
            areas = [box[2] * box[3] for box in boxes]
        columns = of_image.classes.tolist(), of_image.scores.tolist(), boxes, masks, areas
        for category, score, box, mask, area in zip(*columns, strict=True):
            detection = {
                "id": len(detections) + 1,
                "image_id": place[of_image.image_id],
                "category_id": category,
                "score": score,
                "bbox": box,
                "area": area,
                "iscrowd": 0,
            }
            if kind != "bbox":
                detection["segmentation"] = mask
            detections.append(detection)
    return detections


def _choose(library: str | None):
    """The function of a library."""
    if library != "pycocotools":
        try:
            import faster_coco_eval  # noqa: F401
        except ImportError:
            if library is not None:
                raise
        else:
            return _faster_coco_eval
    return _pycocotools


def _pycocotools(images, categories, annotations, detections, kind: str, max_dets: int) -> dict:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = _index(COCO(), images, categories, annotations)
        found = _index(COCO(), images, categories, detections)
        evaluation = COCOeval(truth, found, iouType=kind)
        evaluation.params.maxDets = [max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval


def _faster_coco_eval(
    images, categories, annotations, detections, kind: str, max_dets: int
) -> dict:
    from faster_coco_eval import COCO, COCOeval_faster

    truth = _index(COCO(), images, categories, annotations)
    found = _index(COCO(), images, categories, detections)
    evaluation = COCOeval_faster(truth, found, iouType=kind, print_function=logger.debug)
    params = evaluation.params
    params.maxDets = [max_dets]
    counts = _count_by_size(annotations, categories, params.areaRng)
    recalls = params.recThrs
    params.recThrs = np.concatenate([recalls, _between_first_two(np.unique(counts))])
    evaluation.evaluate()
    evaluation.accumulate()
    arrays = {name: evaluation.eval[name] for name in ("precision", "recall", "scores")}
    _lower_precision_of_one(arrays["precision"], len(recalls), counts)
    for name in ("precision", "scores"):
        arrays[name] = arrays[name][:, : len(recalls)]
    return arrays


# pycocotools adds the distance from 1 to the next float to the denominator of a precision. That
# changes one value: the precision of a single detection is the float below 1, or half of that
# distance less. faster_coco_eval adds nothing. To be the same bit for bit, it is asked for one
# recall more, between those of one and two right detections: if precision is not 1 there, then
# every 1 is that of a single detection.


def _count_by_size(
    annotations: Sequence[dict], categories: Sequence[int], ranges: Sequence[Sequence[float]]
) -> np.ndarray:
    """int [C, A]: the objects that count."""
    counts = np.zeros((len(categories), len(ranges)), dtype=np.int64)
    place = {category: number for number, category in enumerate(categories)}
    for annotation in annotations:
        if not annotation["iscrowd"]:
            inside = [low <= annotation["area"] <= high for low, high in ranges]
            counts[place[annotation["category_id"]]] += inside
    return counts


def _between_first_two(counts: np.ndarray) -> np.ndarray:
    """The recall between one and two right detections, by number of objects (0 has none: 2)."""
    return np.where(counts > 0, 1.5 / np.maximum(counts, 1), 2.0)


def _lower_precision_of_one(precision: np.ndarray, recalls: int, counts: np.ndarray) -> None:
    """Make precision [T, R + further recalls, C, A, 1] what pycocotools says. In place."""
    extra = np.searchsorted(np.unique(counts), counts)
    for (category, size), number in np.ndenumerate(extra):
        curves = precision[:, :, category, size, 0]
        single = curves[:, recalls + number] != 1
        ones = single[:, None] & (curves[:, :recalls] == 1)
        curves[:, :recalls][ones] = 1 / (1 + np.spacing(1))


def _index(coco, images, categories, annotations):
    """A library's own form of annotations or detections."""
    coco.dataset = {
        "images": images,
        "categories": [{"id": category, "name": str(category)} for category in categories],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
