"""What RetinaNet and FCOS share: from dense predictions to scored proposals, and the focal loss.

Legend: N images, A anchors a cell, R anchors of an image over all levels, K classes. An anchor's
row, in [0, R), counts through the levels from high to low resolution.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import batched_nms, cat
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn
from torchvision.ops import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)

# Losses on decoded boxes, by the names of Detectron2's BBOX_REG_LOSS_TYPE.
BOX_LOSSES = {
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
}


def init_towers(head: RetinaNetHead, kind: str) -> None:
    """Initialize the convolutions of both towers, in place.

    Under a norm their scale changes no prediction, but the pace of an optimizer whose steps do not
    shrink with the weights: AdamW at 0.001 turns weights of sd 0.01 by a tenth a step.

    Args:
        head: of Detectron2's layout, with ``cls_subnet`` and ``bbox_subnet``.
        kind: "normal" leaves Detectron2's, sd 0.01, which is the papers'; "msra" is He et al.'s.
    """
    if kind == "msra":
        for tower in (head.cls_subnet, head.bbox_subnet):
            for layer in tower.modules():
                if isinstance(layer, nn.Conv2d):
                    weight_init.c2_msra_fill(layer)


@dataclass(frozen=True)
class DensePredictions:
    """A dense head's outputs, one tensor a level, float32."""

    logits: list[Tensor]
    """[N, H * W * A, K]."""
    deltas: list[Tensor]
    """[N, H * W * A, 4], as the detector's box transform reads them."""
    centerness: list[Tensor] | None = None
    """[N, H * W * A] logits, for detectors that have it."""
    tower: list[Tensor] | None = None
    """[N, D, H, W], what the boxes are predicted from, for detectors that hand it out; of the
    head's own type. Whoever predicts more of a place than its box and class reads it there."""


@dataclass(frozen=True)
class DensePass:
    """All that a detector computed for a batch, for those who read more than its proposals."""

    anchors: list[Boxes]
    """H * W * A boxes of each level."""
    predictions: DensePredictions
    losses: dict[str, Tensor]
    """Empty at test time."""


@dataclass(frozen=True)
class ProposalSelection:
    """Which predictions become proposals."""

    score_thresh: float
    """Candidates have to be larger than this; infinity for no proposals at all."""
    pre_nms_topk: int
    """Highest-scored predictions of a level that enter non-maximum suppression."""
    nms_thresh: float
    """IoU above which the lower-scored of two boxes of a class is dropped."""
    post_nms_topk: int
    """Proposals of an image that are left in the end."""


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a scalar over all processes of a distributed run, float32, without gradient.

    A loss that every process divides by its own count weighs an object by where it happened to be.
    """
    value = value.detach().to(torch.float32)
    if comm.get_world_size() > 1:
        value = value.clone()
        torch.distributed.all_reduce(value)
        value = value / comm.get_world_size()
    return value


def focal_loss(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """Summed focal loss (Lin et al., ICCV 2017, Eq. 5) of K independent classifiers.

    Args:
        logits: float [..., K].
        labels: int64 [...] in [0, K]; K = background.
        alpha, gamma: balance and focus.

    Returns:
        float scalar.
    """
    num_classes = logits.shape[-1]
    targets = F.one_hot(labels, num_classes + 1)[..., :num_classes].to(logits.dtype)
    return sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma, reduction="sum")


def select_proposals(
    boxes_of, scores: list[Tensor], image_size: tuple[int, int], selection: ProposalSelection
) -> Instances:
    """Top k of each level, non-maximum suppression of each class, top k of the image.

    Args:
        boxes_of: (level, int64 [k] rows of the level) to the XYXY boxes [k, 4] of these rows; only
            the few rows that are candidates get decoded.
        scores: float [H * W * A, K] of each level; only what is larger than 0 is a candidate.
        image_size: (height, width) that boxes are clipped to.
        selection: the limits; its score threshold has been applied to `scores` before.

    Returns:
        ``proposal_boxes``, ``scores``, ``pred_classes`` and ``anchor_rows`` (int64, the rows of the
        anchors that they were predicted from), by decreasing score.
    """
    boxes, values, classes, rows = [], [], [], []
    first = 0
    for level, of_level in enumerate(scores):
        flat = of_level.flatten()
        candidates = (flat > 0).nonzero()[:, 0]
        top, order = flat[candidates].topk(min(selection.pre_nms_topk, len(candidates)))
        chosen = candidates[order]
        boxes.append(boxes_of(level, chosen // of_level.shape[1]))
        values.append(top)
        classes.append(chosen % of_level.shape[1])
        rows.append(first + chosen // of_level.shape[1])
        first += len(of_level)
    proposals = Instances(
        image_size,
        proposal_boxes=Boxes(cat(boxes)),
        scores=cat(values),
        pred_classes=cat(classes),
        anchor_rows=cat(rows),
    )
    proposals.proposal_boxes.clip(image_size)
    proposals = proposals[proposals.proposal_boxes.nonempty()]
    keep = batched_nms(
        proposals.proposal_boxes.tensor,
        proposals.scores,
        proposals.pred_classes,
        selection.nms_thresh,
    )
    return proposals[keep[: selection.post_nms_topk]]


class DenseDetector(nn.Module, ABC):
    """A one-stage detector in the place of a proposal generator.

    Subclasses define :meth:`losses`, and :meth:`scores` if theirs is not the class probability.

    Args:
        head: feature maps to lists, one entry a level, of logits [N, A * K, H, W], box deltas
            [N, A * 4, H, W] and, if it has them, centerness logits [N, A, H, W] and the maps
            [N, D, H, W] that boxes are predicted from.
        in_features: names of the feature maps, from high to low resolution.
        anchor_generator, box2box_transform: Detectron2's.
        num_classes: K.
        focal_alpha, focal_gamma: see :func:`focal_loss`.
        tower_init: see :func:`init_towers`.
        train_selection, test_selection: proposals in training and at test time.
    """

    def __init__(
        self,
        *,
        head: nn.Module,
        in_features: list[str],
        anchor_generator: nn.Module,
        box2box_transform,
        num_classes: int,
        focal_alpha: float,
        focal_gamma: float,
        train_selection: ProposalSelection,
        test_selection: ProposalSelection,
        tower_init: str = "normal",
    ):
        super().__init__()
        init_towers(head, tower_init)
        self.head = head
        self.in_features = in_features
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.num_classes = num_classes
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.train_selection = train_selection
        self.test_selection = test_selection

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Detect.

        Args:
            images: for their sizes.
            features: the backbone's feature maps.
            gt_instances: ``gt_boxes`` and ``gt_classes`` of each image (training).

        Returns:
            Proposals (:func:`select_proposals`) of each image, and the losses (training).
        """
        found = self.detect(features, gt_instances)
        selection = self.train_selection if self.training else self.test_selection
        proposals = self.propose(found.anchors, found.predictions, images.image_sizes, selection)
        return proposals, found.losses

    def detect(
        self, features: dict[str, Tensor], gt_instances: list[Instances] | None = None
    ) -> DensePass:
        """Predict, and compute the losses in training; arguments as in :meth:`forward`."""
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        predictions = self._predict(maps)
        losses = self.losses(anchors, predictions, gt_instances) if self.training else {}
        if self.training:
            # Maps that only the mask branch pools from have to get a gradient, be it zero, from a
            # batch without masks: distributed training would wait for it.
            losses["loss_cls"] = losses["loss_cls"] + sum(x[:, :0].sum() for x in features.values())
        return DensePass(anchors, predictions, losses)

    @abstractmethod
    def losses(
        self, anchors: list[Boxes], predictions: DensePredictions, targets: list[Instances]
    ) -> dict[str, Tensor]:
        """Losses by name; with no object in the batch they are still connected to the head."""

    def scores(self, predictions: DensePredictions, threshold: float) -> list[Tensor]:
        """Scores [N, H * W * A, K] of each level, by which proposals are ranked.

        Args:
            predictions: the head's.
            threshold: what is not above it is no candidate and gets 0.
        """
        probabilities = [logits.sigmoid() for logits in predictions.logits]
        return [p * (p > threshold) for p in probabilities]

    @torch.no_grad()
    def propose(
        self,
        anchors: list[Boxes],
        predictions: DensePredictions,
        image_sizes: list[tuple[int, int]],
        selection: ProposalSelection,
    ) -> list[Instances]:
        """Proposals of each image, see :func:`select_proposals`."""
        scores = self.scores(predictions, selection.score_thresh)
        proposals = []
        for index, image_size in enumerate(image_sizes):

            def boxes_of(level, rows, index=index):
                return self.box2box_transform.apply_deltas(
                    predictions.deltas[level][index, rows], anchors[level].tensor[rows]
                )

            of_image = [x[index] for x in scores]
            proposals.append(select_proposals(boxes_of, of_image, image_size, selection))
        return proposals

    def _predict(self, maps: list[Tensor]) -> DensePredictions:
        logits, deltas, *more = self.head(maps)
        centerness, tower = more or (None, None)
        return DensePredictions(
            [permute_to_N_HWA_K(x, self.num_classes).float() for x in logits],
            [permute_to_N_HWA_K(x, 4).float() for x in deltas],
            centerness and [permute_to_N_HWA_K(x, 1)[..., 0].float() for x in centerness],
            tower,
        )
