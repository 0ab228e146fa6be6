"""One-stage detectors as proposal generators; importing this package registers them all.

Their proposals carry ``scores`` and ``pred_classes``:
:class:`~psis_d2.modeling.detection_roi_heads.DetectionROIHeads` takes them as detections.
"""

from psis_d2.modeling.detectors import fcos, retinanet  # noqa: F401
