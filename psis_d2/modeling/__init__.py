"""Models: importing this package registers every part with Detectron2."""

from psis_d2.modeling import backbones, mask_heads, roi_heads, rpn  # noqa: F401
