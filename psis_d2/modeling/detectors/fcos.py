"""FCOS (Tian et al., ICCV 2019): every cell of a feature map predicts a class and its box's sides.

A cell is Detectron2's anchor of one stride: its center is the location, its side the stride. The
defaults are those of AdelaiDet's FCOS, which CPMask's released code stands on.
"""

import math
from typing import NamedTuple

from psis_d2.config_rules import check_keys
from psis_d2.errors import UserError
from psis_d2.modeling.detectors.dense import (
    BOX_LOSSES,
    DenseDetector,
    DensePass,
    DensePredictions,
    ProposalSelection,
    focal_loss,
    mean_over_processes,
)
from psis_d2.modeling.norms import tower_norm

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn


def box_sides(centers: Tensor, boxes: Tensor) -> Tensor:
    """Distances from points to the left, top, right and bottom side of boxes.

    Args:
        centers: float [..., 2], x and y.
        boxes: float [..., 4], XYXY, broadcast against `centers`.

    Returns:
        float [..., 4]; all are positive for a point inside.
    """
    return torch.cat([centers - boxes[..., :2], boxes[..., 2:] - centers], dim=-1)


class Locations(NamedTuple):
    """All locations of an image, by their anchors' rows."""

    centers: Tensor
    """float [R, 2], pixels, x and y."""
    strides: Tensor
    """float [R]."""
    ranges: Tensor
    """float [R, 2], least and largest distance to the farthest side, both included."""


def locations_in_boxes(
    centers: Tensor,
    strides: Tensor,
    ranges: Tensor,
    boxes: Tensor,
    radius: float,
    middles: Tensor | None = None,
) -> Tensor:
    """Whether a location may predict a box.

    It may if it lies inside the box and, with center sampling, less than `radius` strides from the
    object's middle in x and in y; and if the farthest side of the box is within the regression
    range of the location's level.

    Args:
        centers, strides, ranges: see :class:`Locations`.
        boxes: float [G, 4], XYXY.
        radius: of center sampling, in strides; 0 for none.
        middles: float [G, 2], x and y; None for the boxes' centers.

    Returns:
        bool [R, G].
    """
    sides = box_sides(centers[:, None], boxes[None])
    belongs = sides.amin(dim=2) > 0
    if radius > 0:
        if middles is None:
            middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        offset = (centers[:, None] - middles).abs().amax(dim=2)
        belongs &= offset < radius * strides[:, None]
    farthest = sides.amax(dim=2)
    return belongs & (farthest >= ranges[:, :1]) & (farthest <= ranges[:, 1:])


def assign_locations(
    centers: Tensor,
    strides: Tensor,
    ranges: Tensor,
    boxes: Tensor,
    radius: float,
    middles: Tensor | None = None,
) -> Tensor:
    """The object that each location has to predict: the smallest that :func:`locations_in_boxes`
    lets it predict, whose arguments are the same.

    Returns:
        int64 [R], rows of `boxes`; -1 for background.
    """
    if len(boxes) == 0:
        return torch.full((len(centers),), -1, dtype=torch.int64, device=centers.device)
    belongs = locations_in_boxes(centers, strides, ranges, boxes, radius, middles)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    smallest, index = areas.expand(len(centers), -1).masked_fill(~belongs, math.inf).min(dim=1)
    return index.masked_fill(smallest.isinf(), -1)


def centerness_targets(sides: Tensor) -> Tensor:
    """How central locations are in their boxes (paper Eq. 3): float [P, 4] sides to [P] in [0, 1].

    1 at the center, 0 on a side.
    """
    x, y = sides[:, 0::2], sides[:, 1::2]
    return (x.amin(1) / x.amax(1) * (y.amin(1) / y.amax(1))).sqrt()


def released_giou_loss(predicted: Tensor, boxes: Tensor, units: Tensor) -> Tensor:
    """The GIoU loss of the released code, which adds 1 to both areas of the IoU.

    The 1 is an area in the units of the regression: nothing to a large box, much to one of a few
    strides, whose loss it weakens.

    Args:
        predicted, boxes: float [P, 4], XYXY pixels.
        units: float [P], pixels of a unit of length.

    Returns:
        float [P].
    """
    predicted, boxes = predicted / units[:, None], boxes / units[:, None]
    inner = predicted[:, 2:].minimum(boxes[:, 2:]) - predicted[:, :2].maximum(boxes[:, :2])
    outer = predicted[:, 2:].maximum(boxes[:, 2:]) - predicted[:, :2].minimum(boxes[:, :2])
    common, hull = inner.clamp(min=0).prod(dim=1), outer.prod(dim=1)
    areas = [(x[:, 2:] - x[:, :2]).prod(dim=1) for x in (predicted, boxes)]
    union = areas[0] + areas[1] - common
    return 1 - (common + 1) / (union + 1) + (hull - union) / hull


class FCOSHead(RetinaNetHead):
    """Detectron2's two towers, with centerness and a scale of the regression a level.

    Args:
        input_shape: shapes of the feature maps.
        num_classes, conv_dims, norm, prior_prob: see Detectron2's ``RetinaNetHead``.
        centerness_on: "regression" or "classification", the tower that centerness is read from.
        level_scales: whether each level multiplies the regression by a learned scalar.
        exponential: whether the regression is exponentiated, so that it is positive.
    """

    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        conv_dims: list[int],
        norm,
        prior_prob: float,
        centerness_on: str,
        level_scales: bool,
        exponential: bool,
    ):
        super().__init__(
            input_shape=input_shape,
            num_classes=num_classes,
            num_anchors=1,
            conv_dims=conv_dims,
            norm=norm,
            prior_prob=prior_prob,
        )
        self.centerness_on = centerness_on
        self.exponential = exponential
        self.centerness = nn.Conv2d(conv_dims[-1], 1, kernel_size=3, padding=1)
        nn.init.normal_(self.centerness.weight, std=0.01)
        nn.init.zeros_(self.centerness.bias)
        self.scales = nn.Parameter(torch.ones(len(input_shape)), requires_grad=level_scales)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], ...]:
        """Logits [N, K, H, W], regression [N, 4, H, W], centerness [N, 1, H, W] of each level.

        A fourth list is the regression tower's output, [N, D, H, W].
        """
        logits, sides, centerness, tower = [], [], [], []
        for scale, feature in zip(self.scales, features, strict=True):
            towers = {
                "classification": self.cls_subnet(feature),
                "regression": self.bbox_subnet(feature),
            }
            logits.append(self.cls_score(towers["classification"]))
            regression = self.bbox_pred(towers["regression"]) * scale
            sides.append(regression.exp() if self.exponential else regression)
            centerness.append(self.centerness(towers[self.centerness_on]))
            tower.append(towers["regression"])
        return logits, sides, centerness, tower


@PROPOSAL_GENERATOR_REGISTRY.register()
class FCOS(DenseDetector):
    """FCOS as a proposal generator.

    Losses are ``loss_cls`` (focal, over the number of positive locations), ``loss_box_reg`` (of
    decoded boxes, weighted by the centerness target and divided by its sum) and
    ``loss_centerness`` (binary cross-entropy over the positive locations).

    Args:
        regression_limits: float [levels - 1], largest distance to the farthest side of a box of
            each level but the last; increasing.
        center_radius: see :func:`locations_in_boxes`.
        box_loss: "released_giou" (:func:`released_giou_loss`), "giou", "diou" or "ciou".
        regresses_strides: whether a unit of the regression is the level's stride, not a pixel.
        centerness_in_ranking: whether the score is sqrt(class probability * centerness) instead of
            the class probability.
        centerness_in_threshold: whether the score threshold is on class probability * centerness
            instead of the class probability.
        **kwargs: see :class:`DenseDetector`.
    """

    @configurable
    def __init__(
        self,
        *,
        regression_limits: list[float],
        center_radius: float,
        box_loss: str,
        regresses_strides: bool,
        centerness_in_ranking: bool,
        centerness_in_threshold: bool,
        **kwargs,
    ):
        super().__init__(**kwargs)
        bounds = [0.0, *regression_limits, math.inf]
        self.level_ranges = list(zip(bounds[:-1], bounds[1:], strict=True))
        self.center_radius = center_radius
        self.box_loss = box_loss
        self.regresses_strides = regresses_strides
        self.centerness_in_ranking = centerness_in_ranking
        self.centerness_in_threshold = centerness_in_threshold

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        check_keys(cfg, "PSIS.FCOS")
        node = cfg.PSIS.FCOS
        limits = list(node.REGRESSION_LIMITS)
        if len(limits) != len(node.IN_FEATURES) - 1 or limits != sorted(limits):
            raise UserError(
                f"PSIS.FCOS.REGRESSION_LIMITS is {limits}; give {len(node.IN_FEATURES) - 1} "
                "increasing numbers, one for each of PSIS.FCOS.IN_FEATURES but the last."
            )
        shapes = [input_shape[name] for name in node.IN_FEATURES]
        strides = [shape.stride for shape in shapes]
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        return {
            "head": FCOSHead(
                input_shape=shapes,
                num_classes=num_classes,
                conv_dims=[node.TOWER_DIM] * node.TOWER_CONVS,
                norm=tower_norm(node.NORM),
                prior_prob=node.PRIOR_PROB,
                centerness_on=node.CENTERNESS_ON,
                level_scales=node.LEVEL_SCALES,
                exponential=not node.NORM_REG_TARGETS,
            ),
            "in_features": node.IN_FEATURES,
            "anchor_generator": DefaultAnchorGenerator(
                sizes=[[stride] for stride in strides],
                aspect_ratios=[1.0],
                strides=strides,
                offset=0.5,
            ),
            "box2box_transform": Box2BoxTransformLinear(normalize_by_size=node.NORM_REG_TARGETS),
            "num_classes": num_classes,
            "focal_alpha": node.FOCAL_LOSS_ALPHA,
            "focal_gamma": node.FOCAL_LOSS_GAMMA,
            "tower_init": node.TOWER_INIT,
            "train_selection": ProposalSelection(
                # Nothing but a mask branch needs proposals in training.
                node.SCORE_THRESH_TRAIN if cfg.MODEL.MASK_ON else math.inf,
                node.PRE_NMS_TOPK_TRAIN,
                node.NMS_THRESH,
                node.POST_NMS_TOPK_TRAIN,
            ),
            "test_selection": ProposalSelection(
                node.SCORE_THRESH_TEST,
                node.PRE_NMS_TOPK_TEST,
                node.NMS_THRESH,
                cfg.TEST.DETECTIONS_PER_IMAGE,
            ),
            "regression_limits": limits,
            "center_radius": node.CENTER_RADIUS,
            "box_loss": node.BBOX_REG_LOSS_TYPE,
            "regresses_strides": node.NORM_REG_TARGETS,
            "centerness_in_ranking": node.CENTERNESS_IN_RANKING,
            "centerness_in_threshold": node.CENTERNESS_IN_THRESHOLD,
        }

    def locations(self, anchors: list[Boxes]) -> Locations:
        """The locations whose cells are `anchors`."""
        cells = cat([x.tensor for x in anchors])
        # Filled, not copied from the host, which a GPU would wait for level by level.
        ranges = [
            torch.stack([x.tensor.new_full((len(x),), float(bound)) for bound in bounds], dim=1)
            for x, bounds in zip(anchors, self.level_ranges, strict=True)
        ]
        centers = (cells[:, :2] + cells[:, 2:]) / 2
        return Locations(centers, cells[:, 2] - cells[:, 0], cat(ranges))

    @torch.no_grad()
    def match_locations(self, anchors: list[Boxes], targets: list[Instances]) -> Tensor:
        """The object of its image that every location has to predict, int64 [N, R]; -1 = none.

        Targets with ``gt_middles``, float [G, 2], have these in place of their boxes' centers.
        """
        locations = self.locations(anchors)
        rows = []
        for target in targets:
            middles = target.gt_middles if target.has("gt_middles") else None
            boxes = target.gt_boxes.tensor
            rows.append(assign_locations(*locations, boxes, self.center_radius, middles))
        return torch.stack(rows)

    @torch.no_grad()
    def label_locations(
        self, anchors: list[Boxes], targets: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        """Class and box that every location has to predict.

        Returns:
            int64 [N, R] in [0, K], K = background; float [N, R, 4], of no meaning for background.
        """
        labels, boxes = [], []
        for index, target in zip(self.match_locations(anchors, targets), targets, strict=True):
            # One row more than objects: index -1 is background.
            none = target.gt_classes.new_full((1,), self.num_classes)
            labels.append(torch.cat([target.gt_classes, none])[index])
            boxes.append(torch.cat([target.gt_boxes.tensor, anchors[0].tensor[:1]])[index])
        return torch.stack(labels), torch.stack(boxes)

    @torch.no_grad()
    def locations_for(
        self, found: DensePass, boxes: list[Boxes], classes: list[Tensor]
    ) -> list[Tensor]:
        """The location that knows most of each given box, as if it had been detected there.

        Of the locations that may predict the box (:func:`locations_in_boxes`) it is the one with
        the largest product of the class's probability, centerness, and the IoU of its predicted
        box with the given one. A box that no location may predict gets the location nearest to its
        center, on the level of its size.

        Args:
            found: of :meth:`detect`.
            boxes: given boxes of each image, XYXY pixels of the input.
            classes: int64 [G] of each image.

        Returns:
            int64 [G] rows of each image.
        """
        locations = self.locations(found.anchors)
        cells = cat([x.tensor for x in found.anchors])
        deltas, logits, centerness = (
            cat(x, dim=1)
            for x in (
                found.predictions.deltas,
                found.predictions.logits,
                found.predictions.centerness,
            )
        )
        rows = []
        for index, (given, labels) in enumerate(zip(boxes, classes, strict=True)):
            tensor = given.tensor
            belongs = locations_in_boxes(*locations, tensor, self.center_radius)
            predicted = Boxes(self.box2box_transform.apply_deltas(deltas[index], cells))
            quality = logits[index][:, labels].sigmoid() * centerness[index].sigmoid()[:, None]
            quality = quality * pairwise_iou(predicted, given)
            # Below any of these: how far from the center a location of the right level is.
            center = given.get_centers()
            reach = (tensor[:, 2:] - tensor[:, :2]).amax(dim=1) / 2
            low, high = locations.ranges[:, :1], locations.ranges[:, 1:]
            offset = (locations.centers[:, None] - center).norm(dim=2)
            offset = offset.masked_fill((reach < low) | (reach > high), math.inf)
            rows.append(torch.where(belongs, quality, -1 - offset).argmax(dim=0))
        return rows

    def losses(
        self, anchors: list[Boxes], predictions: DensePredictions, targets: list[Instances]
    ) -> dict[str, Tensor]:
        """See the class."""
        labels, boxes = self.label_locations(anchors, targets)
        positive = labels < self.num_classes
        cells = cat([x.tensor for x in anchors]).expand_as(boxes)[positive]
        boxes = boxes[positive]
        logits = torch.cat(predictions.logits, dim=1)
        deltas = torch.cat(predictions.deltas, dim=1)[positive]
        centerness = torch.cat(predictions.centerness, dim=1)[positive]

        count = mean_over_processes(positive.sum()).clamp(min=1)
        central = centerness_targets(box_sides((cells[:, :2] + cells[:, 2:]) / 2, boxes))
        decoded = self.box2box_transform.apply_deltas(deltas, cells)
        if self.box_loss == "released_giou":
            strides = cells[:, 2] - cells[:, 0]
            units = strides if self.regresses_strides else torch.ones_like(strides)
            box_losses = released_giou_loss(decoded, boxes, units)
        else:
            box_losses = BOX_LOSSES[self.box_loss](decoded, boxes)
        total_central = mean_over_processes(central.sum()).clamp(min=1e-6)
        return {
            "loss_cls": focal_loss(logits, labels, self.focal_alpha, self.focal_gamma) / count,
            "loss_box_reg": (box_losses * central).sum() / total_central,
            "loss_centerness": F.binary_cross_entropy_with_logits(
                centerness, central, reduction="sum"
            )
            / count,
        }

    def scores(self, predictions: DensePredictions, threshold: float) -> list[Tensor]:
        """Class probabilities, with centerness where it is configured; 0 below the threshold."""
        scores = []
        for logits, centerness in zip(predictions.logits, predictions.centerness, strict=True):
            probability = logits.sigmoid()
            product = probability * centerness.sigmoid()[..., None]
            compared = product if self.centerness_in_threshold else probability
            ranked = product.sqrt() if self.centerness_in_ranking else probability
            scores.append(ranked * (compared > threshold))
        return scores
