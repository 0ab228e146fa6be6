"""Models: importing this package registers every part with Detectron2."""

from psis_d2.modeling import (  # noqa: F401
    backbones,
    box_heads,
    condinst,
    detection_roi_heads,
    detectors,
    mask_heads,
    roi_heads,
    rpn,
    timm_fpn,
)
