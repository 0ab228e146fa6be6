"""COCO box and mask AP on seen, unseen and all categories."""

import contextlib
import io
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Collection

from psis_d2.evaluation.base import PredictionCollector
from psis_d2.evaluation.ground_truth import GroundTruth, box_region
from psis_d2.evaluation.names import short_name
from psis_d2.evaluation.tables import category_rows, format_results, format_rows

import numpy as np
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

logger = logging.getLogger(__name__)

# Index into the last dimension of a precision array.
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)


class PartialCOCOEvaluator(PredictionCollector):
    """COCO AP where any part of the ground truth may lack masks.

    Boxes are measured on all objects. Masks are measured on the objects that have one; an object
    without is set aside, and a detection on it counts neither for nor against
    (:func:`drop_detections_on_maskless`). What cannot be measured is nan: a category without
    ground truth (for masks: without masks), an area range without objects.

    Tasks are ``bbox_seen``, ``bbox_unseen``, ``bbox_all`` and the same with ``segm``; metrics are
    AP, AP50, AP75, APs, APm, APl in percent. A group without categories has no task; if no object
    has a mask or all predictions are boxes, there are only ``bbox`` tasks.

    With `overlap` there are ``segm_overlapped_seen`` and so on, too: mask AP on overlapped objects
    alone (:meth:`~psis_d2.evaluation.ground_truth.GroundTruth.overlapped`). A detection that
    matches another object counts neither for nor against; one that matches none is an error here,
    too, wherever it is.

    ``output_dir`` gets ``coco_instances_results.json`` (the predictions in COCO's result format)
    and ``metrics_<dataset>.json`` (the results, per category too). See
    :class:`~psis_d2.evaluation.base.PredictionCollector` for the arguments.
    """

    def evaluate_records(self, truth: GroundTruth, records: list[dict]) -> dict:
        """See :class:`~psis_d2.evaluation.base.PredictionCollector`."""
        self.save(
            "coco_instances_results.json",
            [{**r, "category_id": truth.json_ids[r["category_id"]]} for r in records],
        )
        groups = self.groups(truth)
        kinds = ["bbox"]
        if truth.log_masks():
            if records and not any("segmentation" in record for record in records):
                logger.info("The model predicts boxes only, so masks are not measured.")
            else:
                kinds.append("segm")

        results, of_category = OrderedDict(), {}
        measured = [(kind, kind, None) for kind in kinds]
        if self.overlap and "segm" in kinds:
            overlapped = truth.overlapped(self.overlap)
            logger.info("%d objects have an overlap of %s.", len(overlapped), self.overlap)
            measured.append(("segm_overlapped", "segm", overlapped))
        for task, kind, only in measured:
            precision = average_precision(truth, records, kind, self.max_dets, only)
            for group, ids in groups.items():
                results[f"{task}_{group}"] = summarize(precision, ids)
            of_category[f"{task}_AP"] = [
                summarize(precision, [i])["AP"] for i in range(len(truth.class_names))
            ]
        rows = category_rows(truth, self.seen_ids, of_category)
        self.save(
            f"metrics_{short_name(self.dataset_name)}.json",
            {
                "dataset": self.dataset_name,
                "images": len(truth.image_sizes),
                "detections": len(records),
                "max_dets": self.max_dets,
                "results": results,
                "categories": rows,
            },
            indent=1,
        )
        logger.info("AP by category:\n%s", format_rows(rows))
        logger.info("AP on %s:\n%s", self.dataset_name, format_results(results))
        return results


class _SelectiveEval(COCOeval):
    """COCO's evaluation that ignores objects marked ``set_aside``, as it does those of other sizes.

    It overwrites ``ignore``, and its crowd flag would change how an object is matched.
    """

    def _prepare(self):
        super()._prepare()
        for objects in self._gts.values():
            for annotation in objects:
                annotation["ignore"] = annotation["ignore"] or annotation["set_aside"]


def average_precision(
    truth: GroundTruth,
    detections: list[dict],
    kind: str,
    max_dets: int = 100,
    only: Collection[tuple] | None = None,
) -> np.ndarray:
    """COCO's precision array, for all categories at once.

    Args:
        truth: the ground truth.
        detections: COCO-format results with contiguous category ids.
        kind: ``bbox`` or ``segm``; for ``segm``, objects and detections without mask do not count.
        max_dets: highest-scored detections per image and category that count.
        only: (image id, annotation id) of the objects that count, None for all. The others are
            matched as ever, but neither they nor the detections that they match count.

    Returns:
        float [10 IoU thresholds, 101 recalls, C, 4 area ranges], -1 where there is no object.
    """
    objects = truth.annotations
    if kind == "segm":
        detections = drop_detections_on_maskless(
            truth, [d for d in detections if "segmentation" in d]
        )
        # A crowd region without a mask stays what it is: its box is the region.
        objects = [
            a if "segmentation" in a else {**a, "segmentation": _region(truth, a)}
            for a in objects
            if "segmentation" in a or a["iscrowd"]
        ]
    aside = (only is not None and (a["image_id"], a["id"]) not in only for a in objects)
    objects = [{**a, "set_aside": int(x)} for a, x in zip(objects, aside, strict=True)]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _SelectiveEval(
            _index(truth, objects),
            _index(truth, [{**d, "area": _area(d, kind), "iscrowd": 0} for d in detections]),
            iouType=kind,
        )
        evaluation.params.maxDets = [max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., 0]


def summarize(precision: np.ndarray, class_ids: list[int]) -> dict[str, float]:
    """COCO's six summary numbers over some categories, in percent; nan where undefined.

    Equal to what ``COCOeval`` says with ``params.catIds`` set to these categories.

    Args:
        precision: what :func:`average_precision` returns.
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


def drop_detections_on_maskless(truth: GroundTruth, detections: list[dict]) -> list[dict]:
    """The detections whose mask can be judged.

    Left out is a detection on an object without a mask: at least half of its mask (of its box, if
    the mask is empty) lies in that object's box, and its mask overlaps no mask of its category with
    an IoU of 0.5 or more. COCO's own crowd regions would do nearly the same, but decide at each
    IoU threshold again: at the high ones, a mask that leaves the box a little would be an error,
    and a coarse mask of an annotated neighbor would be forgiven.

    Args:
        truth: the ground truth.
        detections: COCO-format results with masks and contiguous category ids.
    """
    maskless, masked = defaultdict(list), defaultdict(list)
    for annotation in truth.annotations:
        key = annotation["image_id"], annotation["category_id"]
        if annotation["iscrowd"]:
            continue
        if "segmentation" in annotation:
            masked[key].append(annotation["segmentation"])
        else:
            maskless[key].append(_region(truth, annotation))

    def on_maskless(detection: dict) -> bool:
        key = detection["image_id"], detection["category_id"]
        regions, masks = maskless.get(key), masked.get(key)
        if not regions:
            return False
        mask = detection["segmentation"]
        if masks and mask_util.iou([mask], masks, [0] * len(masks)).max() >= 0.5:
            return False
        if mask_util.area(mask) == 0:
            mask = _region(truth, detection)
        # With the crowd flag, the COCO code divides the intersection by the detection's own area.
        return mask_util.iou([mask], regions, [1] * len(regions)).max() >= 0.5

    return [detection for detection in detections if not on_maskless(detection)]


def _region(truth: GroundTruth, annotation: dict) -> dict:
    return box_region(annotation["bbox"], *truth.image_sizes[annotation["image_id"]])


def _area(detection: dict, kind: str) -> float:
    # COCO's loader takes the box's area wherever there is a box; masks are binned by their own.
    if kind == "segm":
        return int(mask_util.area(detection["segmentation"]))
    return detection["bbox"][2] * detection["bbox"][3]


def _index(truth: GroundTruth, annotations: list[dict]) -> COCO:
    """The COCO code's form of annotations or detections, categories contiguous.

    All are numbered from 1: the COCO code takes a match with annotation 0 for none, and of two
    annotations with one id it forgets the first.
    """
    coco = COCO()
    coco.dataset = {
        "images": [
            {"id": key, "height": height, "width": width}
            for key, (height, width) in truth.image_sizes.items()
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(truth.class_names)],
        "annotations": [{**a, "id": number} for number, a in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco
