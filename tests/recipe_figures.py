"""What a config resolves to, by the names that recipes have for it."""

import functools
import re

import psis_d2.modeling  # noqa: F401  (before detectron2)
from psis_d2.engine.solver import build_optimizer
from psis_d2.modeling.condinst.mask_head import DynamicMaskHead

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.mask_head import build_mask_head
from detectron2.solver import build_lr_scheduler
from registry_lines import of_file
from torch import nn

FPN_CHANNELS = 256
_NORMS = {"BatchNorm2d": "BN", "NaiveSyncBatchNorm": "SyncBN", "SyncBatchNorm": "SyncBN"}
_NORMS |= {"GroupNorm": "GN", "MapGroupNorm": "GN", "FrozenBatchNorm2d": "FrozenBN"}
_NORMS |= {"RegionSyncBatchNorm": "SyncBN"}


class Figures:
    """A config, its solver, its model without values, and its mask head with those it starts from.

    Args:
        name: of the config.
    """

    def __init__(self, name: str):
        self.cfg: CfgNode = of_file(name).clone()
        self.cfg.MODEL.DEVICE = "meta"
        # No figure is of the bottom-up backbone, and a deep one is slow to build.
        self.cfg.MODEL.RESNETS.DEPTH, self.cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64

    @functools.cached_property
    def model(self) -> nn.Module:
        with torch.device("meta"):
            return build_model(self.cfg)

    @property
    def detector(self) -> nn.Module:
        return self.model.proposal_generator

    @property
    def roi_heads(self) -> nn.Module:
        return self.model.roi_heads

    @property
    def mask_head(self) -> nn.Module:
        return self.roi_heads.mask_head

    @functools.cached_property
    def started(self) -> nn.Module:
        """The mask head with weights, for regions of few cells: one of MaskX's layers is huge."""
        torch.manual_seed(0)
        if self.cfg.MODEL.META_ARCHITECTURE == "CondInst":
            shapes = [ShapeSpec(channels=FPN_CHANNELS, stride=2**k) for k in (3, 4, 5)]
            return DynamicMaskHead(self.cfg, shapes, self.cfg.PSIS.FCOS.TOWER_DIM)
        return build_mask_head(self.cfg, ShapeSpec(channels=FPN_CHANNELS, height=8, width=8))

    @functools.cached_property
    def groups(self) -> tuple[dict, dict, "torch.optim.lr_scheduler.LRScheduler"]:
        """The optimizer's groups of a weight and a bias, and the schedule of the former."""
        conv = nn.Conv2d(1, 1, 1)
        optimizer = build_optimizer(self.cfg, conv)
        groups = {id(p): g for g in optimizer.param_groups for p in g["params"]}
        return (
            groups[id(conv.weight)],
            groups[id(conv.bias)],
            build_lr_scheduler(self.cfg, optimizer),
        )

    def rate_at(self, iteration: int) -> float:
        """Of a weight."""
        weight, _, scheduler = self.groups
        scheduler.last_epoch = iteration
        return scheduler.get_lr()[scheduler.optimizer.param_groups.index(weight)]


def deviation(module: nn.Module) -> float:
    """Of a layer's weights."""
    return float(module.weight.detach().std(correction=0))


@functools.cache
def figures_of(name: str) -> Figures:
    """Those of a config, made once."""
    return Figures(name)


def norm_of(module: nn.Module) -> str:
    """The name of the one norm that there is in a module, "" for none."""
    kinds = {type(m).__name__ for m in module.modules()}
    found = {_NORMS[kind] for kind in kinds if kind in _NORMS}
    (name,) = found or {""}
    return name


def drops(figures: Figures) -> list[int]:
    """Iterations at which the rate falls to a tenth, looked for around those of the config."""
    found = []
    for step in figures.cfg.SOLVER.STEPS:
        before, after = figures.rate_at(step - 1), figures.rate_at(step)
        found += [step] * (abs(after / before - 0.1) < 1e-6)
    return found


def warmup_iterations(figures: Figures) -> int:
    """The first iteration at the full rate."""
    last, rate = figures.cfg.SOLVER.WARMUP_ITERS, figures.groups[0]["initial_lr"]
    assert figures.rate_at(last - 1) < rate * (1 - 1e-6)
    return last if abs(figures.rate_at(last) / rate - 1) < 1e-6 else -1


def suppression(figures: Figures) -> float:
    if figures.cfg.MODEL.PROPOSAL_GENERATOR.NAME in ("FCOS", "RetinaNet"):
        return figures.detector.test_selection.nms_thresh
    return figures.roi_heads.box_predictor.test_nms_thresh


def least_score(figures: Figures) -> float:
    if figures.cfg.MODEL.PROPOSAL_GENERATOR.NAME in ("FCOS", "RetinaNet"):
        return figures.detector.test_selection.score_thresh
    return figures.roi_heads.box_predictor.test_score_thresh


def detections(figures: Figures) -> int:
    if figures.cfg.MODEL.PROPOSAL_GENERATOR.NAME in ("FCOS", "RetinaNet"):
        return figures.detector.test_selection.post_nms_topk
    return figures.roi_heads.box_predictor.test_topk_per_image


def levels(figures: Figures) -> list[str]:
    """Of mask features; the pooler has as many."""
    names = list(figures.roi_heads.mask_in_features)
    pooler = figures.roi_heads.mask_pooler
    assert len(names) == len(pooler.level_poolers) == pooler.max_level - pooler.min_level + 1
    return names


def samples(pooler: nn.Module) -> int:
    (ratio,) = {level.sampling_ratio for level in pooler.level_poolers}
    return ratio


def outputs(head: nn.Module) -> int:
    """Masks of a region."""
    last = [m for m in head.predictor.modules() if isinstance(m, nn.Conv2d)][-1]
    return last.out_channels


def last_conv(predictor: nn.Module) -> nn.Module:
    return [m for m in predictor.modules() if isinstance(m, nn.Conv2d)][-1]


def convolutions(tower: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d) for m in tower.modules())


def matcher_bounds(figures: Figures) -> list[float]:
    """The overlaps between the labels of anchors, without the infinite ones."""
    thresholds = figures.detector.anchor_matcher.thresholds
    return [x for x in thresholds if abs(x) < float("inf")]


def overlap_of_negatives(figures: Figures) -> float:
    return min(x for x in matcher_bounds(figures) if x > 0)


def branch_channels(figures: Figures) -> int:
    if figures.cfg.MODEL.META_ARCHITECTURE == "CondInst":
        return figures.model.mask_head.branch.project.out_channels
    return figures.mask_head.reduce.out_channels


def slope(figures: Figures) -> float:
    (found,) = {m.negative_slope for m in figures.mask_head.transfer if isinstance(m, nn.LeakyReLU)}
    return found


def linears(figures: Figures) -> list[nn.Linear]:
    return [m for m in figures.mask_head.transfer.modules() if isinstance(m, nn.Linear)]


def clipping(figures: Figures) -> list:
    node = figures.cfg.SOLVER.CLIP_GRADIENTS
    return [node.CLIP_TYPE, node.CLIP_VALUE] if node.ENABLED else []


def first_probability(figures: Figures) -> float:
    head = figures.started
    biases = [last_conv(x).bias for x in (head.coarse_predictor, head.predictor)]
    (value,) = {round(x, 6) for bias in biases for x in bias.detach().sigmoid().tolist()}
    return value


def same_deviation(*modules: nn.Module) -> float:
    """The mean of layers that start alike."""
    found = [deviation(m) for m in modules]
    assert max(found) < 1.3 * min(found)
    return sum(found) / len(found)


def tower_convs(tower: nn.Module) -> list[nn.Module]:
    return [m for m in tower.modules() if isinstance(m, nn.Conv2d)]


def priors_of(figures: Figures) -> list[int]:
    """Categories and priors of each; 1 category if they share theirs."""
    shape = list(figures.mask_head.shape.priors.shape)
    return shape[:2] if len(shape) == 4 else [1, shape[0]]


def short_sides(figures: Figures) -> list[int]:
    assert figures.cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "choice"
    return list(figures.cfg.INPUT.MIN_SIZE_TRAIN)


def norm_of_towers(figures: Figures) -> str:
    head = figures.detector.head
    (name,) = {norm_of(head.cls_subnet), norm_of(head.bbox_subnet)}
    return name


def cells_of_masks(figures: Figures) -> int:
    """A transposed convolution doubles the cells of the features."""
    (up,) = (m for m in figures.mask_head.upsample.modules() if isinstance(m, nn.ConvTranspose2d))
    (size,) = set(figures.roi_heads.mask_pooler.output_size)
    return size * up.stride[0]


READERS = {
    "images a batch": lambda f: f.cfg.SOLVER.IMS_PER_BATCH,
    "rate": lambda f: f.groups[0]["initial_lr"],
    "rate drops at": drops,
    "iterations": lambda f: f.cfg.SOLVER.MAX_ITER,
    "warm-up iterations": warmup_iterations,
    "warm-up from": lambda f: f.rate_at(0) / f.groups[0]["initial_lr"],
    "method of warm-up": lambda f: (
        "constant" if f.rate_at(0) == f.rate_at(f.cfg.SOLVER.WARMUP_ITERS - 1) else "linear"
    ),
    "rate of biases": lambda f: f.groups[1]["initial_lr"] / f.groups[0]["initial_lr"],
    "decay of biases": lambda f: f.groups[1]["weight_decay"],
    "decay of weights": lambda f: f.groups[0]["weight_decay"],
    "gradient clipping": clipping,
    "regions an image": lambda f: f.roi_heads.batch_size_per_image,
    "short sides": short_sides,
    "longest side": lambda f: f.cfg.INPUT.MAX_SIZE_TRAIN,
    "non-maximum suppression": suppression,
    "least score": least_score,
    "detections an image": detections,
    "proposals an image at test": lambda f: f.detector.post_nms_topk[False],
    "layers of the transfer function": lambda f: len(linears(f)),
    "slope of its LeakyReLU": slope,
    "width of its hidden layer": lambda f: linears(f)[0].out_features,
    "width of its input": lambda f: linears(f)[0].in_features,
    "first deviation of the MLP": lambda f: deviation(f.started.mlp.fc),
    "cells a side of mask features": lambda f: f.roi_heads.mask_pooler.output_size[0],
    "samples a cell of mask features": lambda f: samples(f.roi_heads.mask_pooler),
    "samples a cell of box features": lambda f: samples(f.roi_heads.box_pooler),
    "cells a side of masks": cells_of_masks,
    "mask regions": lambda f: f.roi_heads.mask_train_boxes,
    "mask regions an image": lambda f: f.roi_heads.mask_boxes_per_image,
    "masks of a region": lambda f: outputs(f.mask_head),
    "share of images whose annotated masks are used": lambda f: f.cfg.PSIS.MASK_IMAGE_FRACTION,
    "norm of the FPN": lambda f: norm_of(
        nn.ModuleList(m for n, m in f.model.backbone.named_children() if n != "bottom_up")
    ),
    "norm of the detector's towers": norm_of_towers,
    "norm of the mask branch": lambda f: norm_of(f.mask_head),
    "norm of the mask head": lambda f: norm_of(f.mask_head),
    "P6 is made from": lambda f: f.model.backbone.top_block.in_feature,
    "alpha, gamma of the focal loss": lambda f: [f.detector.focal_alpha, f.detector.focal_gamma],
    "overlap of positive anchors": lambda f: max(matcher_bounds(f)),
    "overlap of negative anchors": overlap_of_negatives,
    "jitter of boxes": lambda f: f.roi_heads.box_jitter_std,
    "levels of mask features": levels,
    "scale of the outer box": lambda f: f.mask_head.outer_box_scale,
    "upsampling of the fine mask": lambda f: f.mask_head.predictor[0].stride[0],
    "weights of the mask losses": lambda f: [
        f.mask_head.prior_weight,
        f.mask_head.coarse_weight,
        f.mask_head.loss_weight,
    ],
    "weight of the box loss": lambda f: f.detector.box_loss_weight,
    "first deviation of the predictors": lambda f: same_deviation(
        last_conv(f.started.coarse_predictor), last_conv(f.started.predictor)
    ),
    "first probability of a mask": first_probability,
    "channels of the mask branch": branch_channels,
    "first deviation of prior's and coarse mask's embedding": lambda f: same_deviation(
        f.started.embed_prior, f.started.embed_coarse
    ),
    "shape priors": priors_of,
    "channels of messages": lambda f: f.mask_head.shape_activation.encoder[-1].out_channels,
    "convolutions of its towers": lambda f: convolutions(f.mask_head.saliency_tower),
    "weights of its losses": lambda f: [
        f.mask_head.activating_weight,
        f.mask_head.propagating_weight,
    ],
    "first deviation of the predictor": lambda f: deviation(last_conv(f.started.predictor)),
    "convolutions of the boundary module": lambda f: convolutions(f.mask_head.boundary_tower),
    "weights of boundary and affinity": lambda f: [
        f.mask_head.boundary_weight,
        f.mask_head.affinity_weight,
    ],
    "terms of the affinity loss": lambda f: f.mask_head.affinity_terms,
    "epsilon of the affinity's norm": lambda f: f.mask_head.affinity.norm.eps,
    "variance of embeddings": lambda f: "unbiased" if f.mask_head.affinity.unbiased else "biased",
    "channels of the student that learn": lambda f: f.mask_head.channels,
    "weights of teacher and student": lambda f: [
        f.mask_head.teacher_weight,
        f.mask_head.loss_weight,
    ],
    "least probability of a pseudo mask": lambda f: f.mask_head.pseudo_masks.threshold,
    "pseudo masks are made by": lambda f: f.cfg.PSIS.TEACHER_STUDENT.POSTPROCESS,
    "convolutions of the mask head": lambda f: convolutions(f.mask_head.trunk),
    "box loss": lambda f: f.detector.box_loss,
    "center of training locations": lambda f: f.model.center_of,
    "first deviation of the controller": lambda f: deviation(f.started.controller.conv),
    "first deviation of the branch's first convolutions": lambda f: same_deviation(
        *(conv for level in f.started.branch.refine for conv in tower_convs(level))
    ),
    "first deviation of the branch's tower": lambda f: same_deviation(
        *tower_convs(f.started.branch.tower)
    ),
    "first deviation of the branch's projection": lambda f: deviation(f.started.branch.project),
    "mask locations an image": lambda f: f.model.locations_per_image,
    "least similarity of a pair": lambda f: f.model.color_threshold,
    "iterations of the pairs' warm-up": lambda f: f.cfg.PSIS.CONDINST.PAIRWISE_WARMUP,
}
SAMPLED = re.compile("^first deviation")
"""Choices that are estimated from random weights."""
