"""Trained models as files that run without this project: TorchScript and ONNX."""

from psis_d2.export.exported import ExportedModel, differences
from psis_d2.export.support import FORMATS, SUPPORTED, Support, support_of, support_table
from psis_d2.export.write import Exported, export_model, load_for_export

__all__ = [
    "FORMATS",
    "SUPPORTED",
    "Exported",
    "ExportedModel",
    "Support",
    "differences",
    "export_model",
    "load_for_export",
    "support_of",
    "support_table",
]
