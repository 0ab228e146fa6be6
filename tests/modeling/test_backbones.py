"""The narrow ResNet: widths and strides as configured, everything trainable."""

import psis_d2.modeling  # noqa: F401

import pytest
import torch
from detectron2.modeling import build_backbone

from model_builders import tiny_config


@pytest.mark.parametrize("width", [8, 32])
def test_widths_and_strides(width):
    cfg = tiny_config("MODEL.RESNETS.RES2_OUT_CHANNELS", width)
    backbone = build_backbone(cfg)
    widths = {name: shape.channels for name, shape in backbone.bottom_up.output_shape().items()}
    assert widths == {"res2": width, "res3": 2 * width, "res4": 4 * width, "res5": 8 * width}
    assert all(p.requires_grad for p in backbone.parameters())
    maps = backbone(torch.zeros(1, 3, 128, 64))
    for level, stride in zip(("p2", "p3", "p4", "p5", "p6"), (4, 8, 16, 32, 64), strict=True):
        assert backbone.output_shape()[level].stride == stride
        assert maps[level].shape == (1, 16, 128 // stride, 64 // stride)


def test_two_blocks_a_stage():
    backbone = build_backbone(tiny_config())
    convs = [m for m in backbone.bottom_up.modules() if isinstance(m, torch.nn.Conv2d)]
    # ResNet-18: the stem, 4 stages x 2 blocks x 2 convolutions; a shortcut where shapes change.
    assert len([c for c in convs if c.kernel_size != (1, 1)]) == 17
    assert len([c for c in convs if c.kernel_size == (1, 1)]) == 3
