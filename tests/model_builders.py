"""Small models and batches for tests: a config of two seconds, and images with partial masks."""

import tempfile
from pathlib import Path

import psis_d2.modeling  # noqa: F401  (registers heads)
from psis_d2.config import add_psis_config
from psis_d2.data.cropped_masks import CroppedMasks
from psis_d2.data.shape_priors import ShapePriors, save_shape_priors

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import BitMasks, Boxes, Instances

CONFIGS = Path(__file__).parents[1] / "configs"
SHAPEPROP = ("MODEL.ROI_MASK_HEAD.NAME", "ShapePropMaskHead")
CPMASK = (
    *("MODEL.ROI_MASK_HEAD.NAME", "CPMaskHead"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", 32),  # GN's groups
)
MLP = ("PSIS.MLP_BRANCH", True, "PSIS.MLP_BRANCH_DIM", 4)
MASKX = ("MODEL.ROI_MASK_HEAD.NAME", "MaskXMaskHead", *MLP)
HOURGLASS = (
    *("MODEL.ROI_MASK_HEAD.NAME", "HourglassMaskHead", "MODEL.ROI_MASK_HEAD.NORM", "GN"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", 32),  # GN's groups
    *("PSIS.HOURGLASS.CHANNELS", [32, 32], "PSIS.HOURGLASS.BLOCKS", [1, 1]),
)
TEACHER_STUDENT = ("MODEL.ROI_MASK_HEAD.NAME", "TeacherStudentMaskHead")

CONTRASTMASK = (
    *("MODEL.ROI_MASK_HEAD.NAME", "ContrastMaskHead"),
    *("MODEL.ROI_BOX_HEAD.NAME", "PooledConvBoxHead", "MODEL.ROI_BOX_HEAD.NUM_CONV", 2),
    *("MODEL.ROI_BOX_HEAD.CONV_DIM", 32, "PSIS.CONTRASTMASK.ENCODER_CONVS", 2),
    *("PSIS.CONTRASTMASK.ENCODER_DIM", 16, "PSIS.CONTRASTMASK.MASK_MIN_IOU", 0.0),
)
CONDINST = (
    *("MODEL.META_ARCHITECTURE", "CondInst", "MODEL.PROPOSAL_GENERATOR.NAME", "FCOS"),
    *("PSIS.FCOS.IN_FEATURES", ["p3", "p4"], "PSIS.FCOS.REGRESSION_LIMITS", [32]),
    *("PSIS.FCOS.TOWER_CONVS", 1, "PSIS.CONDINST.BRANCH_DIM", 16),
    *("PSIS.CONDINST.SUPERVISION", "mixed", "PSIS.CONDINST.INSTANCES_AT_A_TIME", 8),
)
OPMASK = (
    *("MODEL.ROI_MASK_HEAD.NAME", "OPMaskHead", "MODEL.ROI_MASK_HEAD.NUM_CONV", 2),
    *("MODEL.ROI_BOX_HEAD.NAME", "PooledConvBoxHead", "MODEL.ROI_BOX_HEAD.NUM_CONV", 2),
    *("MODEL.ROI_BOX_HEAD.CONV_DIM", 32),
)

_FOLDER = tempfile.TemporaryDirectory()


def write_priors(path: str, *shape: int) -> str:
    """A file of random shape priors, [K] or [classes, K] of them; returns its path."""
    priors = np.random.default_rng(0).random((*shape, 32, 32), dtype=np.float32)
    made = {"format": "psis_d2 shape priors 1", "num_priors": shape[-1], "masks_of_class": {}}
    save_shape_priors(path, ShapePriors(priors, made | {"class_specific": len(shape) > 1}))
    return path


SHAPEMASK = (
    *("MODEL.ROI_MASK_HEAD.NAME", "ShapeMaskHead", "MODEL.ROI_MASK_HEAD.NUM_CONV", 1),
    *("PSIS.SHAPEMASK.NUM_PRIORS", 3, "PSIS.SHAPEMASK.UPSAMPLING", 2),
    *("PSIS.SHAPEMASK.PRIORS", write_priors(f"{_FOLDER.name}/priors.npz", 3)),
)


def tiny_config(*overrides, config: str = "quick/Base-shapes.yaml") -> CfgNode:
    """A config of `configs/` on the CPU, narrow enough for a unit test.

    Args:
        *overrides: KEY, VALUE, KEY, VALUE, ... as on the command line.
        config: the file, relative to `configs/`.
    """
    cfg = get_cfg()
    add_psis_config(cfg)
    cfg.merge_from_file(str(CONFIGS / config))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", 16])
    cfg.merge_from_list(["MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 32])
    cfg.merge_from_list(["PSIS.SHAPEPROP.TOWER_DIM", 16, "PSIS.SHAPEPROP.EMBED_DIM", 8])
    cfg.merge_from_list(["PSIS.SHAPEPROP.TOWER_CONVS", 2, "PSIS.SHAPEPROP.EMBED_CONVS", 2])
    cfg.merge_from_list(["PSIS.SHAPEPROP.LATENT_DIM", 8, "PSIS.CPMASK.BOUNDARY_CONVS", 2])
    cfg.merge_from_list(["PSIS.FCOS.TOWER_DIM", 16])
    cfg.merge_from_list(list(overrides))
    return cfg


def tiny_model(
    *overrides, seed: int = 0, config: str = "quick/Base-shapes.yaml"
) -> torch.nn.Module:
    """A randomly initialized model of :func:`tiny_config`, in training mode."""
    torch.manual_seed(seed)
    return build_model(tiny_config(*overrides, config=config))


def partial_batch(
    has_mask: list[list[bool]], seed: int = 0, size: int = 64, garbage_seed: int | None = None
) -> list[dict]:
    """Images with random rectangles as objects, some of them mask-annotated.

    Args:
        has_mask: one list an image, one entry an object.
        seed: of images, boxes, classes and masks.
        size: image side in pixels.
        garbage_seed: fill the masks that training must not see with noise of this seed; None
            leaves them empty, as the data loader does.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for index, flags in enumerate(has_mask):
        n = len(flags)
        corner = torch.rand(n, 2, generator=generator) * size * 0.5
        side = size * (0.25 + 0.25 * torch.rand(n, 2, generator=generator))
        boxes = Boxes(torch.cat([corner, corner + side], dim=1))
        masks = torch.zeros(n, size, size, dtype=torch.bool)
        for k, (x0, y0, x1, y1) in enumerate(boxes.tensor.round().int().tolist()):
            if flags[k]:
                masks[k, y0 : (y0 + y1) // 2, x0:x1] = True  # the upper half of the box
            elif garbage_seed is not None:
                noise = torch.Generator().manual_seed(garbage_seed + k)
                masks[k] = torch.rand(size, size, generator=noise) > 0.5
        instances = Instances((size, size))
        instances.gt_boxes = boxes
        instances.gt_classes = torch.randint(0, 20, (n,), generator=generator)
        instances.gt_masks = BitMasks(masks)
        instances.gt_has_mask = torch.tensor(flags, dtype=torch.bool)
        image = torch.randint(0, 256, (3, size, size), generator=generator).to(torch.uint8)
        batch.append(
            {"image": image, "height": size, "width": size, "image_id": index}
            | {"instances": instances}
        )
    return batch


def flip_masks(batch: list[dict]) -> list[dict]:
    """The batch with the masks that training may see inverted, in place."""
    for item in batch:
        instances = item["instances"]
        instances.gt_masks.tensor[instances.gt_has_mask] ^= True
    return batch


def as_rectangles(batch: list[dict]) -> list[dict]:
    """The batch with its masks as the data loader keeps them, in place."""
    for item in batch:
        instances = item["instances"]
        instances.gt_masks = CroppedMasks.from_dense(instances.gt_masks.tensor)
    return batch


def move_masks(batch: list[dict]) -> list[dict]:
    """The batch with all masks elsewhere, contours included, in place."""
    for item in batch:
        masks = item["instances"].gt_masks
        masks.tensor = masks.tensor.roll((5, 9), (1, 2))
    return batch


def as_foreign(batch: list[dict], weights: list[list[float | None]]) -> list[dict]:
    """The batch as the data loader gives it where foreign masks are in use, in place.

    Args:
        batch: of :func:`partial_batch`.
        weights: one list an image, one entry an object: the weight of its mask, which is then no
            true one, or None for an object that stays what it is.
    """
    for item, of_image in zip(batch, weights, strict=True):
        instances = item["instances"]
        own = instances.gt_has_mask.tolist()
        chosen = [float(has) if w is None else w for has, w in zip(own, of_image, strict=True)]
        instances.gt_mask_weight = torch.tensor(chosen, dtype=torch.float32)
        true = [has and w is None for has, w in zip(own, of_image, strict=True)]
        instances.gt_has_mask = torch.tensor(true, dtype=torch.bool)
    return batch


def box_predictor(num_classes: int, features: int):
    """A random one; its bias is not zero, as Detectron2 starts it."""
    torch.manual_seed(0)
    predictor = FastRCNNOutputLayers(
        ShapeSpec(channels=features),
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        num_classes=num_classes,
    )
    torch.nn.init.normal_(predictor.cls_score.weight)
    torch.nn.init.normal_(predictor.cls_score.bias)
    return predictor


def annotated_boxes(batch: list[dict]) -> list[Instances]:
    """The batch's annotated boxes and classes as detections."""
    return [
        Instances(
            truth.image_size,
            pred_boxes=truth.gt_boxes,
            pred_classes=truth.gt_classes,
            scores=torch.ones(len(truth)),
        )
        for truth in (item["instances"] for item in batch)
    ]


def training_losses(model: torch.nn.Module, batch: list[dict], seed: int = 0) -> dict:
    """The losses of one training forward with every random choice fixed."""
    from detectron2.utils.events import EventStorage

    model.train()
    torch.manual_seed(seed)
    with EventStorage():
        return model(batch)


def training_context(model: torch.nn.Module, batch: list[dict]):
    """The context that the mask head is trained on, by a spy in the head's place."""
    seen = []
    head = model.roi_heads.mask_head
    original = head.losses
    head.losses = lambda context: (seen.append(context), original(context))[1]
    training_losses(model, batch)
    head.losses = original
    return seen[0]


def condinst_model(config: str = "boxinst_mixed", *options, seed: int = 0) -> torch.nn.Module:
    """A tiny model of a CondInst quick config.

    Options are KEY, VALUE, ... of PSIS.CONDINST; other keys are given in full.

    The pairwise loss has its full weight from the first iteration on.
    """
    keys = [
        f"PSIS.CONDINST.{x}" if i % 2 == 0 and "." not in x else x for i, x in enumerate(options)
    ]
    narrow = ("PSIS.CONDINST.BRANCH_DIM", 16, "PSIS.CONDINST.PAIRWISE_WARMUP", 0)
    return tiny_model(*narrow, *keys, config=f"quick/{config}_shapes.yaml", seed=seed)


def dynamic_queries(n: int, images: int = 2, seed: int = 0):
    """Places of `n` masks on maps of 32 x 32 and 16 x 16 cells, of three classes."""
    from psis_d2.modeling.condinst.dynamic_filters import Queries

    generator = torch.Generator().manual_seed(seed)
    return Queries(
        images=torch.randint(0, images, (n,), generator=generator).sort().values,
        locations=torch.randint(0, 1280, (n,), generator=generator),
        centers=40 * torch.rand(n, 2, generator=generator),
        sizes=torch.tensor([32.0, 64.0])[torch.randint(0, 2, (n,), generator=generator)],
        classes=torch.randint(0, 3, (n,), generator=generator),
    )


def literal_upsample(maps: torch.Tensor, factor: int) -> torch.Tensor:
    """AdelaiDet's: one more value, corners aligned, then moved by half the factor and cut."""
    height, width = maps.shape[-2:]
    longer = F.pad(maps, (0, 1, 0, 1), mode="replicate")
    size = (factor * height + 1, factor * width + 1)
    large = F.interpolate(longer, size=size, mode="bilinear", align_corners=True)
    moved = F.pad(large, (factor // 2, 0, factor // 2, 0), mode="replicate")
    return moved[:, :, : factor * height, : factor * width]
