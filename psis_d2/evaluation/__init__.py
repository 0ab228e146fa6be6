"""COCO AP and given-box mask IoU on seen, unseen and all categories."""

from psis_d2.evaluation.coco import PartialCOCOEvaluator
from psis_d2.evaluation.given_boxes import GivenBoxEvaluator, box_fill_results
from psis_d2.evaluation.tables import flatten, format_results

__all__ = [
    "GivenBoxEvaluator",
    "PartialCOCOEvaluator",
    "box_fill_results",
    "flatten",
    "format_results",
]
