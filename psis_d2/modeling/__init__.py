"""Models: importing this package registers every part with Detectron2."""

import psis_d2.model_zoo.handlers  # noqa: F401  (psis_d2:// and hf:// as MODEL.WEIGHTS)
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
