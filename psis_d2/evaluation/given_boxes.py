"""Mask quality apart from detection: the boxes come from the annotations."""

import logging
from collections import OrderedDict, defaultdict
from collections.abc import Collection

from psis_d2.evaluation.base import PredictionCollector, class_groups
from psis_d2.evaluation.ground_truth import GroundTruth, box_region, load_ground_truth
from psis_d2.evaluation.names import short_name
from psis_d2.evaluation.predictions import ImagePredictions
from psis_d2.evaluation.tables import category_rows, format_results, format_rows

import numpy as np
from pycocotools import mask as mask_util

logger = logging.getLogger(__name__)

# COCO's thresholds, 0.5 to 0.95 in steps of 0.05.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
METRICS = ("IoU", "AP", "AP50", "AP75")


class GivenBoxEvaluator(PredictionCollector):
    """Mask IoU of every annotated object with the mask predicted in its own box.

    Tasks are ``gtbox_seen``, ``gtbox_unseen`` and ``gtbox_all``, with metrics in percent, each the
    mean over the categories that have an object with a mask:

    * IoU: the mean of the objects' mask IoU;
    * AP50, AP75: the share of objects whose IoU reaches 0.5, 0.75;
    * AP: that share, averaged over the thresholds 0.5, 0.55, ... 0.95;

    and N, the number of objects. Objects without a mask and crowd regions are set aside. An object
    with a mask for which no prediction came counts with an IoU of 0.

    With `overlap` there are ``gtbox_overlapped_seen`` and so on, too: the same of overlapped
    objects alone (:meth:`~psis_d2.evaluation.ground_truth.GroundTruth.overlapped`).

    ``output_dir`` gets ``given_box_results.json`` (predictions in COCO's result format, each with
    the ``id`` of its annotation) and ``metrics_<dataset>_given_boxes.json``. See
    :class:`~psis_d2.evaluation.base.PredictionCollector` for the arguments; ``max_dets`` has no
    effect here.
    """

    file_name = "given_box_results.json"

    def evaluate_predictions(self, truth: GroundTruth, predictions: list[ImagePredictions]) -> dict:
        """See :class:`~psis_d2.evaluation.base.PredictionCollector`; they have annotation ids."""
        if not truth.log_masks():
            return OrderedDict()
        number = sum(map(len, predictions))
        masks = {
            (part.image_id, key): mask
            for part in predictions
            if part.has_masks
            for key, mask in zip(part.ids.tolist(), part.masks(), strict=True)
        }
        if number and not masks:
            logger.warning("The model predicts boxes only, so masks are not measured.")
            return OrderedDict()
        ious, lost = mask_ious(truth, masks)
        if lost:
            logger.warning(
                "%s: %d objects with a mask got no prediction and count with an IoU of 0.",
                *(self.dataset_name, lost),
            )
        groups = self.groups(truth)
        results = given_box_metrics(ious, groups)
        if self.overlap:
            results.update(overlapped_metrics(truth, masks, groups, self.overlap))
        of_category = {
            metric: [given_box_metrics(ious, {"one": [i]})["gtbox_one"][metric] for i in ious]
            for metric in METRICS
        }
        rows = category_rows(truth, self.seen_ids, of_category)
        self.save(
            f"metrics_{short_name(self.dataset_name)}_given_boxes.json",
            {
                "dataset": self.dataset_name,
                **({"note": self.note} if self.note else {}),
                "images": len(truth.image_sizes),
                "predictions": number,
                "results": results,
                "categories": rows,
            },
            indent=1,
        )
        title = self.heading("Masks in given boxes by category")
        logger.info("%s\n%s", title, format_rows(rows))
        title = self.heading(f"Masks in given boxes on {self.dataset_name}")
        logger.info("%s\n%s", title, format_results(results))
        return results


def box_fill_results(
    dataset_name: str, seen_ids: Collection[int], overlap: float = 0.0
) -> dict[str, dict[str, float]]:
    """What :class:`GivenBoxEvaluator` says of a model that fills every box: the floor to beat.

    Args:
        dataset_name: a registered COCO-format data set.
        seen_ids: contiguous ids of the seen categories.
        overlap: see :class:`GivenBoxEvaluator`.

    Returns:
        {task: {metric: value}}; {} if no object has a mask.
    """
    truth = load_ground_truth(dataset_name)
    if not truth.log_masks():
        return OrderedDict()
    filled = {
        (a["image_id"], a["id"]): box_region(a["bbox"], *truth.image_sizes[a["image_id"]])
        for a in truth.annotations
    }
    ious, _ = mask_ious(truth, filled)
    groups = class_groups(seen_ids, len(truth.class_names))
    results = given_box_metrics(ious, groups)
    if overlap:
        results.update(overlapped_metrics(truth, filled, groups, overlap))
    return results


def overlapped_metrics(
    truth: GroundTruth, masks: dict[tuple, dict], groups: dict[str, list[int]], overlap: float
) -> dict[str, dict[str, float]]:
    """:func:`given_box_metrics` of overlapped objects, as tasks "gtbox_overlapped_<name>".

    Arguments are those of :func:`mask_ious` and :func:`given_box_metrics`.
    """
    ious, _ = mask_ious(truth, masks, truth.overlapped(overlap))
    renamed = {f"overlapped_{name}": ids for name, ids in groups.items()}
    return given_box_metrics(ious, renamed)


def mask_ious(
    truth: GroundTruth, masks: dict[tuple, dict], only: Collection[tuple] | None = None
) -> tuple[dict[int, list[float]], int]:
    """IoU of every object that has a mask with the mask predicted for it.

    Args:
        truth: the ground truth.
        masks: {(image id, annotation id): RLE}.
        only: (image id, annotation id) of the objects that count, None for all.

    Returns:
        {contiguous category id: IoUs, 0 to 1}, for every category in order, and how many objects
        had no prediction.
    """
    ious, lost = defaultdict(list), 0
    for annotation in truth.annotations:
        if annotation["iscrowd"] or "segmentation" not in annotation:
            continue
        key = annotation["image_id"], annotation["id"]
        if only is not None and key not in only:
            continue
        mask = masks.get(key)
        if mask is None:
            lost += 1
            iou = 0.0
        else:
            iou = float(mask_util.iou([mask], [annotation["segmentation"]], [0])[0, 0])
        ious[annotation["category_id"]].append(iou)
    return {i: ious[i] for i in range(len(truth.class_names))}, lost


def given_box_metrics(
    ious: dict[int, list[float]], groups: dict[str, list[int]]
) -> dict[str, dict[str, float]]:
    """The metrics of :class:`GivenBoxEvaluator`.

    Args:
        ious: {contiguous category id: IoUs}.
        groups: {name: contiguous category ids}.

    Returns:
        {"gtbox_<name>": {metric: percent, "N": objects}}; nan for a group without objects.
    """
    results = OrderedDict()
    for name, ids in groups.items():
        values = [np.array(ious[i]) for i in ids if ious[i]]
        # [categories, thresholds]: share of a category's objects that reach a threshold.
        shares = [(v[:, None] >= IOU_THRESHOLDS).mean(axis=0) for v in values]
        means = np.mean(shares, axis=0) if shares else np.full(len(IOU_THRESHOLDS), np.nan)
        results[f"gtbox_{name}"] = {
            "IoU": 100 * float(np.mean([v.mean() for v in values])) if values else float("nan"),
            "AP": 100 * float(means.mean()),
            "AP50": 100 * float(means[0]),
            "AP75": 100 * float(means[5]),
            "N": float(sum(len(v) for v in values)),
        }
    return results
