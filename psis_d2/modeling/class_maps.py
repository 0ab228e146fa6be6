"""Class activation maps of a box head (Zhou et al., CVPR 2016), which several mask heads read.

A classifier that reads the mean of a feature map applies to every cell of the map as well, and
shows where the evidence for a class is. It is trained on all classes, so that there is such a map
for those without masks, too. The map's gradient reaches the features, not the classifier's weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def class_activation_maps(
    box_features: Tensor, box_predictor: nn.Module, classes: Tensor, bias: bool = False
) -> Tensor:
    """The classifier of a box predictor, applied to every cell of maps instead of their mean.

    With `bias`, the mean over a map is the classifier's logit.

    Args:
        box_features: float [R, D, S, S].
        box_predictor: Detectron2's ``FastRCNNOutputLayers`` on D features.
        classes: int64 [R], whose map each region gets.
        bias: whether the classifier's bias is added.

    Returns:
        float32 [R, S, S], with a gradient path to the features but not to the predictor.
    """
    classifier = box_predictor.cls_score
    weights = classifier.weight.detach()[classes]
    maps = torch.einsum("rd,rdhw->rhw", weights.float(), box_features.float())
    return maps + classifier.bias.detach()[classes, None, None] if bias else maps


def normalize_maps(maps: Tensor) -> Tensor:
    """Each of the maps [R, S, S] from its least to its largest value, [0, 1]; a constant one is 0.

    OPMask's and ContrastMask's released codes divide a constant map by 0.
    """
    low, high = (f(maps, dim=(1, 2), keepdim=True) for f in (torch.amin, torch.amax))
    span = high - low
    return (maps - low) / torch.where(span > 0, span, 1)


def resize_maps(maps: Tensor, side: int) -> Tensor:
    """Maps [R, S, S] at [R, side, side], bilinear between the centers of cells."""
    size = (side, side)
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
