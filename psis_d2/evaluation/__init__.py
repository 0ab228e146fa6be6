"""COCO AP and given-box mask IoU on seen, unseen and all categories."""

from psis_d2.evaluation.coco import PartialCOCOEvaluator
from psis_d2.evaluation.given_box_models import BoxShrink, GivenBoxModel, ShrunkBoxModel
from psis_d2.evaluation.given_boxes import GivenBoxEvaluator, box_fill_results
from psis_d2.evaluation.grabcut_model import GrabCutModel
from psis_d2.evaluation.run import build_evaluator, evaluate
from psis_d2.evaluation.tables import flatten, format_results

__all__ = [
    "BoxShrink",
    "GivenBoxEvaluator",
    "GivenBoxModel",
    "GrabCutModel",
    "PartialCOCOEvaluator",
    "ShrunkBoxModel",
    "box_fill_results",
    "build_evaluator",
    "evaluate",
    "flatten",
    "format_results",
]
