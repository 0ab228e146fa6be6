"""ShapeProp on Mask R-CNN (ucbdrive/ShapeProp, on maskrcnn-benchmark).

The names of ShapeProp's own modules were read in its code, those of maskrcnn-benchmark's detector
are from memory. Background is that code's first class and our last. Its frozen norms add nothing to
the variance, Detectron2's do. Boxes there are a pixel larger than their sides say, so that results
are near its own, not equal.
"""

import re

from psis_d2.converters.rules import Rule, Source, background_last

from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor

_BODY = "backbone.bottom_up"
_HEAD = "roi_heads.mask_head"
# What the parts of ShapeProp and of its mask head are called here.
_SHAPEPROP = {
    "propagation_weight_regressor.reg": "shape_activation.weights",
    "encoder.encoder": "shape_activation.encoder",
    "decoder.decoder": "shape_activation.decoder",
}
_TOWERS = {"activating": "saliency_tower", "propagating": "shape_activation.tower"}
_MASK = {"conv5_mask": "predictor.0", "mask_fcn_logits": "predictor.2"}
_RPN = {"conv": "conv", "cls_logits": "objectness_logits", "bbox_pred": "anchor_deltas"}


def _without_eps(variance: Tensor) -> Tensor:
    return variance - FrozenBatchNorm2d(1).eps


def _body(match: re.Match) -> str:
    """A layer of the ResNet: stem, res2 to res5."""
    stage, block, layer, what = match.groups()
    kind, number = re.fullmatch(r"(conv|bn|downsample\.)(\d)", layer).groups()
    if kind == "downsample.":
        place = "shortcut.norm" if number == "1" else "shortcut"
    else:
        place = f"conv{number}.norm" if kind == "bn" else f"conv{number}"
    where = "stem" if stage == "stem" else f"res{int(stage[-1]) + 1}.{block}"
    return f"{_BODY}.{where}.{place}.{what}"


def _of(table: dict[str, str], where: str):
    return lambda match: f"{where}.{table[match[1]]}.{match[2]}"


_LAYER = r"backbone\.body\.(stem|layer[1-4])(?:\.(\d+))?\.(conv\d|bn\d|downsample\.\d)"
_CLASSES = r"roi_heads\.box\.predictor\.cls_score\.(weight|bias)"

SHAPEPROP = Source(
    rules=(
        Rule(rf"{_LAYER}\.(running_var)", _body, _without_eps),
        Rule(rf"{_LAYER}\.(\w+)", _body),
        Rule(
            r"backbone\.fpn\.fpn_(inner|layer)([1-4])\.(\w+)",
            lambda match: (
                f"backbone.fpn_{'lateral' if match[1] == 'inner' else 'output'}"
                f"{int(match[2]) + 1}.{match[3]}"
            ),
        ),
        Rule(r"rpn\.anchor_generator\..*", None),
        Rule(
            r"rpn\.head\.(conv|cls_logits|bbox_pred)\.(\w+)",
            _of(_RPN, "proposal_generator.rpn_head"),
        ),
        Rule(
            r"roi_heads\.box\.feature_extractor\.fc([67])\.(\w+)",
            lambda match: f"roi_heads.box_head.fc{int(match[1]) - 5}.{match[2]}",
        ),
        Rule(_CLASSES, r"roi_heads.box_predictor.cls_score.\1", background_last),
        Rule(
            r"roi_heads\.box\.predictor\.bbox_pred\.(weight|bias)",
            r"roi_heads.box_predictor.bbox_pred.\1",
            lambda sides: sides[4:],  # background's are never used
        ),
        Rule(
            r"roi_heads\.shapeprop\.feature_extractor_(\w+)\.shapeprop_feature(\d+)\.(\w+)",
            lambda match: f"{_HEAD}.{_TOWERS[match[1]]}.{int(match[2]) - 1}.{match[3]}",
        ),
        Rule(
            r"roi_heads\.shapeprop\.predictor\.cls\.(weight|bias)",
            rf"{_HEAD}.saliency_classifier.\1",
            background_last,
        ),
        Rule(
            rf"roi_heads\.shapeprop\.({'|'.join(map(re.escape, _SHAPEPROP))})\.(.*)",
            _of(_SHAPEPROP, _HEAD),
        ),
        Rule(r"roi_heads\.mask\.feature_extractor\.encoder\.(.*)", rf"{_HEAD}.embedding.convs.\1"),
        Rule(
            r"roi_heads\.mask\.feature_extractor\.mask_fcn(\d+)\.(\w+)",
            lambda match: f"{_HEAD}.trunk.{int(match[1]) - 1}.{match[2]}",
        ),
        Rule(r"roi_heads\.mask\.predictor\.(conv5_mask|mask_fcn_logits)\.(\w+)", _of(_MASK, _HEAD)),
    ),
    # RoIAlign without its half cell, and the means of Caffe's ImageNet.
    options=(
        *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign"),
        *("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlign"),
        *("MODEL.PIXEL_MEAN", "[102.9801, 115.9465, 122.7717]"),
    ),
)
