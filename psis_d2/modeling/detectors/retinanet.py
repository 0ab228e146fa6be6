"""RetinaNet (Lin et al., ICCV 2017), with RetinaMask's self-adjusting smooth L1 as a choice.

Towers, anchors, matching and box coding are Detectron2's and read its ``MODEL.RETINANET``.
"""

import math

from psis_d2.config_rules import check_keys
from psis_d2.errors import UserError
from psis_d2.modeling.detectors.dense import (
    BOX_LOSSES,
    DenseDetector,
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
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn


class SelfAdjustingSmoothL1(nn.Module):
    """Smooth L1 whose turning point follows the errors (Fu et al., "RetinaMask", 2019, sec. 3.2).

    For each of the four box coordinates beta is the running mean of the absolute error minus its
    running variance, clipped. As in the released code the mean starts at the upper bound, the
    variance at 0, and a batch without a variance (fewer than two rows) changes nothing.

    In a distributed run every process keeps its own statistics, as released.

    Args:
        momentum: share of the new batch in the running statistics.
        bounds: least and largest beta.
    """

    def __init__(self, momentum: float, bounds: tuple[float, float]):
        super().__init__()
        self.momentum = momentum
        self.bounds = bounds
        self.register_buffer("mean", torch.full((4,), float(bounds[1])))
        self.register_buffer("variance", torch.zeros(4))

    @property
    def beta(self) -> Tensor:
        """float [4], the present turning point of each coordinate."""
        return (self.mean - self.variance).clamp(*self.bounds)

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Loss [P, 4] of box deltas [P, 4], after updating the statistics with this batch."""
        errors = (predicted - target).abs()
        if len(errors) > 1:
            with torch.no_grad():
                variance, mean = torch.var_mean(errors, dim=0)
                self.mean.lerp_(mean, self.momentum)
                self.variance.lerp_(variance, self.momentum)
        # F.smooth_l1_loss takes one beta for all coordinates.
        beta = self.beta
        return torch.where(errors < beta, 0.5 * errors**2 / beta, errors - 0.5 * beta)


@PROPOSAL_GENERATOR_REGISTRY.register()
class RetinaNet(DenseDetector):
    """RetinaNet as a proposal generator.

    Losses are ``loss_cls`` (focal) and ``loss_box_reg`` (of the positive anchors).

    Unlike Detectron2's, the normalizer is the number of positives of the batch and not its running
    mean, which no checkpoint holds: a resumed run would not give the losses of an uninterrupted
    one.

    Args:
        anchor_matcher: Detectron2's; label 0 is background, -1 is ignored.
        box_loss: the name of a loss.
        smooth_l1_beta: of "smooth_l1".
        self_adjusting: of "self_adjusting": momentum and bounds.
        box_loss_weight: weight of ``loss_box_reg``.
        cls_normalizer: what the focal loss is divided by, "positives" or "positives_and_images".
        **kwargs: see :class:`DenseDetector`.
    """

    @configurable
    def __init__(
        self,
        *,
        anchor_matcher: Matcher,
        box_loss: str,
        smooth_l1_beta: float,
        self_adjusting: tuple[float, tuple[float, float]],
        box_loss_weight: float,
        cls_normalizer: str,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.anchor_matcher = anchor_matcher
        self.box_loss = box_loss
        self.smooth_l1_beta = smooth_l1_beta
        self.box_loss_weight = box_loss_weight
        self.cls_normalizer = cls_normalizer
        if box_loss == "self_adjusting":
            self.self_adjusting_loss = SelfAdjustingSmoothL1(*self_adjusting)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        check_keys(cfg, "PSIS.RETINANET")
        check_keys(cfg, "MODEL.RETINANET")
        node, extra = cfg.MODEL.RETINANET, cfg.PSIS.RETINANET
        shapes = [input_shape[name] for name in node.IN_FEATURES]
        anchor_generator = build_anchor_generator(cfg, shapes)
        anchors_a_cell = set(anchor_generator.num_cell_anchors)
        if len(anchors_a_cell) != 1:
            raise UserError(
                f"MODEL.ANCHOR_GENERATOR gives {sorted(anchors_a_cell)} anchors a cell; RetinaNet "
                "needs the same number of sizes and ratios on every level."
            )
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        return {
            "head": RetinaNetHead(
                input_shape=shapes,
                num_classes=num_classes,
                num_anchors=anchors_a_cell.pop(),
                conv_dims=[shapes[0].channels] * node.NUM_CONVS,
                norm=tower_norm(node.NORM),
                prior_prob=node.PRIOR_PROB,
            ),
            "in_features": node.IN_FEATURES,
            "anchor_generator": anchor_generator,
            "box2box_transform": Box2BoxTransform(weights=node.BBOX_REG_WEIGHTS),
            "num_classes": num_classes,
            "focal_alpha": node.FOCAL_LOSS_ALPHA,
            "focal_gamma": node.FOCAL_LOSS_GAMMA,
            "tower_init": extra.TOWER_INIT,
            "train_selection": ProposalSelection(
                # Nothing but a mask branch needs proposals in training.
                extra.SCORE_THRESH_TRAIN if cfg.MODEL.MASK_ON else math.inf,
                node.TOPK_CANDIDATES_TEST,
                node.NMS_THRESH_TEST,
                extra.DETECTIONS_PER_IMAGE_TRAIN,
            ),
            "test_selection": ProposalSelection(
                node.SCORE_THRESH_TEST,
                node.TOPK_CANDIDATES_TEST,
                node.NMS_THRESH_TEST,
                cfg.TEST.DETECTIONS_PER_IMAGE,
            ),
            "anchor_matcher": Matcher(
                node.IOU_THRESHOLDS, node.IOU_LABELS, allow_low_quality_matches=True
            ),
            "box_loss": node.BBOX_REG_LOSS_TYPE,
            "smooth_l1_beta": node.SMOOTH_L1_LOSS_BETA,
            "self_adjusting": (extra.SELF_ADJUST_MOMENTUM, tuple(extra.SELF_ADJUST_BETA)),
            "box_loss_weight": extra.BOX_LOSS_WEIGHT,
            "cls_normalizer": extra.CLS_NORMALIZER,
        }

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], targets: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        """Class and box that every anchor has to predict.

        Returns:
            int64 [N, R] in [0, K], K = background, or -1 = ignored; float [N, R, 4], of no meaning
            where there is no class.
        """
        anchors = Boxes.cat(anchors)
        labels, boxes = [], []
        for target in targets:
            index, kind = self.anchor_matcher(pairwise_iou(target.gt_boxes, anchors))
            if len(target) == 0:
                labels.append(torch.full_like(index, self.num_classes))
                boxes.append(anchors.tensor)
                continue
            of_image = target.gt_classes[index]
            of_image[kind == 0] = self.num_classes
            of_image[kind == -1] = -1
            labels.append(of_image)
            boxes.append(target.gt_boxes.tensor[index])
        return torch.stack(labels), torch.stack(boxes)

    def losses(
        self, anchors: list[Boxes], predictions: DensePredictions, targets: list[Instances]
    ) -> dict[str, Tensor]:
        """See the class."""
        labels, boxes = self.label_anchors(anchors, targets)
        valid, positive = labels >= 0, (labels >= 0) & (labels < self.num_classes)
        logits = torch.cat(predictions.logits, dim=1)[valid]
        deltas = torch.cat(predictions.deltas, dim=1)[positive]
        of_positive = cat([x.tensor for x in anchors]).expand_as(boxes)[positive]

        count = mean_over_processes(positive.sum())
        images = len(targets) if self.cls_normalizer == "positives_and_images" else 0
        loss_cls = focal_loss(logits, labels[valid], self.focal_alpha, self.focal_gamma)
        loss_box = self._box_loss(deltas, of_positive, boxes[positive]) * self.box_loss_weight
        return {
            "loss_cls": loss_cls / (count + images).clamp(min=1),
            "loss_box_reg": loss_box / count.clamp(min=1),
        }

    def _box_loss(self, deltas: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
        """The box loss summed over P positive anchors; all arguments are float [P, 4]."""
        if self.box_loss in BOX_LOSSES:
            decoded = self.box2box_transform.apply_deltas(deltas, anchors)
            return BOX_LOSSES[self.box_loss](decoded, boxes, reduction="sum")
        targets = self.box2box_transform.get_deltas(anchors, boxes)
        if self.box_loss == "self_adjusting":
            # The mean over the coordinates, as released; Detectron2's smooth L1 is their sum.
            return self.self_adjusting_loss(deltas, targets).mean(dim=1).sum()
        return F.smooth_l1_loss(deltas, targets, beta=self.smooth_l1_beta, reduction="sum")
