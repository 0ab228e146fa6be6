"""Models: importing this package registers every part with Detectron2."""

from psis_d2.modeling import (  # noqa: F401
    backbones,
    condinst,
    detection_roi_heads,
    detectors,
    mask_heads,
    roi_heads,
    rpn,
)
