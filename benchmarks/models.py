"""Whole models for benchmarks: Detectron2's Mask R-CNN and every method, batches, steps.

Random weights, random images with rectangles as objects, of which every other has a mask. The last
layers of detectors are set so that proposals are anchors: there are as many, and as many overlap an
object, as in the middle of a training. Training is a step of SGD that hardly moves; inference takes
the best boxes, whatever their score.
"""

import math
from collections.abc import Callable
from pathlib import Path

import psis_d2.modeling  # noqa: F401  (registers heads)
from psis_d2.config import add_psis_config
from psis_d2.data.shape_priors import (
    SIDE,
    ShapePriors,
    num_priors,
    save_shape_priors,
)
from psis_d2.engine.solver import build_optimizer

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from measure import ROOT

CONFIGS = ROOT / "configs"
PLAIN = "Mask R-CNN"  # Detectron2's own heads
DETECTRON2_HEADS = ["MODEL.ROI_HEADS.NAME", "StandardROIHeads"]
DETECTRON2_HEADS += ["MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"]
DETECTRON2_HEADS += ["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False]
DETECTRON2_HEADS += ["MODEL.PROPOSAL_GENERATOR.NAME", "RPN"]
ANY_SCORE = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "PSIS.FCOS.SCORE_THRESH_TEST", 0.0]
ANY_SCORE += ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
# What an image has so many of; and how many FCOS's sides are of a location's stride.
NUMBERS = ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "TEST.DETECTIONS_PER_IMAGE")
NUMBERS += ("MODEL.RPN.POST_NMS_TOPK_TRAIN", "MODEL.RPN.POST_NMS_TOPK_TEST")
NUMBERS += ("PSIS.FCOS.POST_NMS_TOPK_TRAIN", "PSIS.RETINANET.DETECTIONS_PER_IMAGE_TRAIN")
NUMBERS += ("PSIS.CONDINST.LOCATIONS_PER_IMAGE",)
FCOS_SIDES = 4.0


def make_config(
    name: str, device: str, scratch: Path, classes: int = 0, share: float = 1.0
) -> CfgNode:
    """A method's config for `device`; PLAIN is the base config with Detectron2's heads.

    Args:
        name: in configs/, without .yaml.
        device: "cpu" or "cuda".
        scratch: a folder for what the config needs in files.
        classes: number of classes, 0 for the config's.
        share: of the config's numbers of proposals, sampled regions and detections of an image.
    """
    cfg = get_cfg()
    add_psis_config(cfg)
    base = "Base-RCNN-FPN" if name == PLAIN else name
    cfg.merge_from_file(str(CONFIGS / f"{base}.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", device, *ANY_SCORE])
    cfg.merge_from_list(DETECTRON2_HEADS if name == PLAIN else [])
    for key in NUMBERS:
        *path, last = key.split(".")
        node = cfg
        for part in path:
            node = node[part]
        if last in node:
            node[last] = math.ceil(share * node[last])
    if classes:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    if cfg.MODEL.ROI_MASK_HEAD.NAME == "ShapeMaskHead":
        cfg.PSIS.SHAPEMASK.PRIORS = write_random_priors(cfg, scratch)
    return cfg


@torch.no_grad()
def settle(model: torch.nn.Module) -> None:
    """Give random weights of a detector the numbers of trained ones, in place.

    Residual blocks add little, so that features do not grow from block to block, and predicted
    boxes are anchors.
    """
    for module in model.backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.fill_(1.0)
    for block in model.backbone.modules():
        if isinstance(block, BottleneckBlock) and isinstance(block.conv3.norm, FrozenBatchNorm2d):
            block.conv3.norm.weight.fill_(0.2)
    fcos = type(model.proposal_generator).__name__ == "FCOS"
    for name, parameter in model.named_parameters():
        layer = name.rpartition(".")[0].rpartition(".")[2]
        if layer in ("anchor_deltas", "bbox_pred") and "mask_head" not in name:
            sides = fcos and name.endswith("bias")
            parameter.fill_(FCOS_SIDES if sides else 0.0)


def write_random_priors(cfg: CfgNode, folder: Path) -> str:
    """A file of as many shape priors as a config wants: training would make them from masks."""
    agnostic = cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK
    shape = () if agnostic else (cfg.MODEL.ROI_HEADS.NUM_CLASSES,)
    priors = np.random.default_rng(0).random((*shape, num_priors(cfg), SIDE, SIDE), np.float32)
    path = str(folder / "priors.npz")
    made = {"format": "psis_d2 shape priors 1", "num_priors": len(priors[0] if shape else priors)}
    made |= {"class_specific": not agnostic, "masks_of_class": {}}
    save_shape_priors(path, ShapePriors(priors, made))
    return path


def make_batch(
    images: int,
    size: int,
    classes: int,
    objects: int = 8,
    plain: bool = False,
    points: bool = False,
) -> list[dict]:
    """Images of size x 5/3 size; half of the objects have a mask that training may see.

    Args:
        images: a batch.
        size: shorter side in pixels.
        classes: of the objects.
        objects: an image.
        plain: as Detectron2's mapper makes it, all objects with masks.
        points: ten annotated points an object, too.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = size, size * 5 // 3
    scale = torch.tensor([width, height, width, height])
    batch = []
    for index in range(images):
        corners = 0.6 * torch.rand(objects, 2, generator=generator)
        sides = 0.1 + 0.3 * torch.rand(objects, 2, generator=generator)
        boxes = (torch.cat([corners, corners + sides], dim=1) * scale).round()
        masks = torch.zeros(objects, height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.randint(classes, (objects,), generator=generator)
        has_mask = torch.arange(objects) % 2 == 0
        instances.gt_masks = BitMasks(masks if plain else masks & has_mask[:, None, None])
        if not plain:
            instances.gt_has_mask = has_mask
        if points:
            places = torch.rand(objects, 10, 2, generator=generator)
            instances.gt_points = (
                boxes[:, None, :2] + places * (boxes[:, 2:] - boxes[:, :2])[:, None]
            )
            instances.gt_point_labels = (places.sum(dim=2) < 1).long()
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        batch.append(
            {"image": image, "height": height, "width": width, "image_id": index}
            | {"instances": instances}
        )
    return batch


def training_step(
    cfg: CfgNode, model: torch.nn.Module, batch: list[dict], amp: bool = False
) -> Callable[[], None]:
    """Forward, backward, and a step that hardly moves: random weights would diverge."""
    cfg = cfg.clone()
    cfg.SOLVER.BASE_LR = 1e-8
    optimizer = build_optimizer(cfg, model)

    def step():
        model.train()
        torch.manual_seed(0)  # the same proposals are sampled
        with EventStorage(), _autocast(model, amp):
            losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return step


def inference(model: torch.nn.Module, batch: list[dict], amp: bool = False) -> Callable[[], list]:
    """A forward of the same images; returns what the model does."""

    def step():
        model.eval()
        with torch.no_grad(), _autocast(model, amp):
            return model(batch)

    return step


def _autocast(model: torch.nn.Module, amp: bool):
    device = next(model.parameters()).device.type
    return torch.autocast(device if amp else "cpu", dtype=torch.bfloat16, enabled=amp)
