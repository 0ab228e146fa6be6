"""Analyses of predictions that were saved: they read files and never a model."""

from psis_d2.analysis.best_overlap import best_overlaps, read_maps
from psis_d2.analysis.curve import curve_rows, read_runs, spoken_metric
from psis_d2.analysis.false_positives import attribute_false_positives
from psis_d2.analysis.overlap import ap_by_overlap
from psis_d2.analysis.saved import read_predictions, read_truth

__all__ = [
    "ap_by_overlap",
    "attribute_false_positives",
    "best_overlaps",
    "curve_rows",
    "read_maps",
    "read_predictions",
    "read_runs",
    "read_truth",
    "spoken_metric",
]
