"""COCO box and mask AP on seen, unseen and all categories."""

import logging
from collections import OrderedDict

from psis_d2.evaluation.average_precision import average_precision, summarize
from psis_d2.evaluation.base import PredictionCollector
from psis_d2.evaluation.ground_truth import GroundTruth
from psis_d2.evaluation.names import short_name
from psis_d2.evaluation.predictions import ImagePredictions
from psis_d2.evaluation.tables import category_rows, format_results, format_rows

logger = logging.getLogger(__name__)


class PartialCOCOEvaluator(PredictionCollector):
    """COCO AP where any part of the ground truth may lack masks.

    Boxes are measured on all objects. Masks are measured on the objects that have one; an object
    without is set aside, and a detection on it counts neither for nor against (see
    :func:`~psis_d2.evaluation.average_precision.drop_detections_on_maskless`). What cannot be
    measured is nan: a category without ground truth (for masks: without masks), an area range
    without objects.

    Tasks are ``bbox_seen``, ``bbox_unseen``, ``bbox_all`` and the same with ``segm``; metrics are
    AP, AP50, AP75, APs, APm, APl in percent. A group without categories has no task; if no object
    has a mask or all predictions are boxes, there are only ``bbox`` tasks.

    Data whose images list categories that they have none of (``neg_category_ids``) is evaluated as
    LVIS: see :mod:`psis_d2.evaluation.lvis`.

    With `boundary` there are ``boundary_seen`` and so on, too: mask AP by Boundary IoU.

    With `overlap` there are ``segm_overlapped_seen`` and so on, too: mask AP on overlapped objects
    alone (:meth:`~psis_d2.evaluation.ground_truth.GroundTruth.overlapped`). A detection that
    matches another object counts neither for nor against; one that matches none is an error here,
    too, wherever it is.

    ``output_dir`` gets ``coco_instances_results.json`` (the predictions in COCO's result format)
    and ``metrics_<dataset>.json`` (the results, per category too). See
    :class:`~psis_d2.evaluation.base.PredictionCollector` for the arguments.
    """

    file_name = "coco_instances_results.json"

    def evaluate_predictions(self, truth: GroundTruth, predictions: list[ImagePredictions]) -> dict:
        """See :class:`~psis_d2.evaluation.base.PredictionCollector`."""
        number = sum(map(len, predictions))
        groups = self.groups(truth)
        if truth.absent is not None:
            logger.info(
                "%s is evaluated as LVIS: a detection of a category that was not looked for in its "
                "image counts neither for nor against.",
                self.dataset_name,
            )
        kinds = ["bbox"]
        if truth.log_masks():
            if number and not any(part.has_masks for part in predictions):
                logger.info("The model predicts boxes only, so masks are not measured.")
            else:
                kinds.append("segm")

        results, of_category = OrderedDict(), {}
        measured = [(kind, kind, None) for kind in kinds]
        if self.boundary and "segm" in kinds:
            measured.append(("boundary", "boundary", None))
        if self.overlap and "segm" in kinds:
            overlapped = truth.overlapped(self.overlap)
            logger.info("%d objects have an overlap of %s.", len(overlapped), self.overlap)
            measured.append(("segm_overlapped", "segm", overlapped))
        for task, kind, only in measured:
            arrays = average_precision(truth, predictions, kind, self.max_dets, only)
            precision = arrays.precision
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
                **({"note": self.note} if self.note else {}),
                "images": len(truth.image_sizes),
                "detections": number,
                "max_dets": self.max_dets,
                "results": results,
                "categories": rows,
            },
            indent=1,
        )
        logger.info("%s\n%s", self.heading("AP by category"), format_rows(rows))
        title = self.heading(f"AP on {self.dataset_name}")
        logger.info("%s\n%s", title, format_results(results))
        return results
