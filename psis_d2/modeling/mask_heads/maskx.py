"""MaskX R-CNN: predict a class's mask kernel from its box head (Hu et al., CVPR 2018).

The last layer of a class-specific mask head is not learned but computed, class by class:
w_seg = T(w_det) (paper sec. 3.1), where w_det are the class's rows in the detector's box predictor
and T is a small network that all classes share. T learns from the classes with masks and works for
all. ``PSIS.MLP_BRANCH`` adds a class-agnostic MLP (sec. 3.4), as in the paper's full model.

As in the released code, biases of the box predictor are not used, the predicted 1x1 kernel has no
bias, T's hidden layers are as wide as the mask trunk, and the LeakyReLU's slope is 0.1. Only the
kernels of classes that occur among the regions are predicted, and every region meets its own
alone, so that the cost does not grow with the number of classes.
"""

import os

from psis_d2.config_rules import check_keys
from psis_d2.data.catalog import get_class_names
from psis_d2.data.word_vectors import read_class_vectors
from psis_d2.errors import UserError
from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.mask_heads.base import Needs, RegionMaskHead
from psis_d2.modeling.mask_heads.blocks import MaskMLP, conv_tower, upsample_layers

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY, build_box_head
from torch import Tensor, nn

DETECTION_WEIGHTS = ("cls", "box", "cls+box")
_RANDN_DIM = 300  # released code: as long as the word vectors whose control it is
_ACTIVATIONS = {"ReLU": nn.ReLU, "LeakyReLU": lambda: nn.LeakyReLU(0.1)}


def detection_weights(box_predictor: nn.Module, classes: Tensor, source: str) -> Tensor:
    """The classes' rows of a box predictor, w_det in the paper.

    Args:
        box_predictor: Detectron2's ``FastRCNNOutputLayers`` for K classes on D features:
            ``cls_score`` has K + 1 rows, background last, and ``bbox_pred`` 4 K rows, a class's
            four together. "box" needs class-specific regression.
        classes: int64 [U] in [0, K).
        source: "cls", "box" or "cls+box".

    Returns:
        float [U, E], E = D, 4 D or 5 D, with a gradient path to the predictor.
    """
    parts = source.split("+")
    rows = []
    if "cls" in parts:
        rows.append(box_predictor.cls_score.weight[classes])
    if "box" in parts:
        num_classes = len(box_predictor.cls_score.weight) - 1
        rows.append(box_predictor.bbox_pred.weight.view(num_classes, -1)[classes])
    return torch.cat(rows, dim=1)


def transfer_function(in_dim: int, dim: int, num_layers: int, activation: str) -> nn.Sequential:
    """T: fully connected layers to `dim`, the activation between but not after them.

    [U, in_dim] to [U, dim], MSRA-initialized, biases zero.
    """
    layers: list[nn.Module] = []
    for k in range(num_layers):
        fc = nn.Linear(in_dim if k == 0 else dim, dim)
        weight_init.c2_msra_fill(fc)
        layers += [fc] if k == 0 else [_ACTIVATIONS[activation](), fc]
    return nn.Sequential(*layers)


@ROI_MASK_HEAD_REGISTRY.register()
class MaskXMaskHead(RegionMaskHead):
    """Mask R-CNN's head with a predicted last layer; one mask a region, that of its class.

    Args:
        input_shape: shape of the RoI features (channels, P, P).
        conv_dim, num_convs, norm: the mask trunk, as in the fully convolutional head.
        source: what T reads: one of ``DETECTION_WEIGHTS``, or "" for `embeddings`.
        embeddings: float [K, E], fixed vectors in place of the detection weights.
        embedding_dim: E.
        num_layers, activation: of T, see :func:`transfer_function`.
        stop_gradient: the mask loss does not reach the detection weights (paper sec. 3.2).
        mlp_branch: add a class-agnostic MLP's logits.
        mlp_dim: see :class:`MaskMLP`.
        **kwargs: see :class:`RegionMaskHead`.
    """

    can_fuse_mlp = True

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        conv_dim: int,
        num_convs: int,
        norm: str = "",
        source: str,
        embeddings: Tensor | None = None,
        embedding_dim: int,
        num_layers: int = 2,
        activation: str = "LeakyReLU",
        stop_gradient: bool = True,
        mlp_branch: bool = False,
        mlp_dim: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        channels = input_shape.channels
        self.source = source
        self.needs = Needs(box_predictor=source != "")
        self.stop_gradient = stop_gradient
        self.register_buffer("embeddings", embeddings)
        self.trunk = conv_tower(channels, conv_dim, num_convs, norm)
        self.upsample = upsample_layers(conv_dim if num_convs else channels, conv_dim)
        self.transfer = transfer_function(embedding_dim, conv_dim, num_layers, activation)
        self.mlp = MaskMLP(conv_dim, 2 * input_shape.width, mlp_dim) if mlp_branch else None

    @classmethod
    def from_config(cls, cfg, input_shape):
        check_keys(cfg, "PSIS.MASKX")
        head, node = cfg.MODEL.ROI_MASK_HEAD, cfg.PSIS.MASKX
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "conv_dim": head.CONV_DIM,
            "num_convs": head.NUM_CONV,
            "norm": head.NORM,
            **_embedding_arguments(cfg, input_shape),
            "num_layers": node.LAYERS,
            "activation": node.ACTIVATION,
            "stop_gradient": node.STOP_GRADIENT,
            "mlp_branch": cfg.PSIS.MLP_BRANCH,
            "mlp_dim": cfg.PSIS.MLP_BRANCH_DIM,
        }

    def class_kernels(self, box_predictor: nn.Module | None, classes: Tensor) -> Tensor:
        """w_seg of classes int64 [U], as float [U, conv_dim]."""
        if self.source == "":
            return self.transfer(self.embeddings[classes])
        weights = detection_weights(box_predictor, classes, self.source)
        return self.transfer(weights.detach() if self.stop_gradient else weights)

    def predict(self, context: RegionContext) -> Tensor:
        """Mask logits [R, 1, 2P, 2P] of each region's own class."""
        x = self.upsample(self.trunk(self.regularize(context.features)))
        classes, rows = context.classes.unique(return_inverse=True)
        kernels = self.class_kernels(context.box_predictor, classes)
        logits = torch.einsum("rc,rchw->rhw", kernels[rows], x)[:, None]
        return logits if self.mlp is None else logits + self.mlp(x)


def _embedding_arguments(cfg, input_shape: ShapeSpec) -> dict:
    """What ``PSIS.MASKX.INPUT`` says, as arguments of the head."""
    source = cfg.PSIS.MASKX.INPUT
    if source in DETECTION_WEIGHTS:
        if "box" in source and cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
            raise UserError(
                f"PSIS.MASKX.INPUT '{source}' needs box regression weights of each class; set "
                "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG False, or PSIS.MASKX.INPUT cls."
            )
        width = _box_feature_dim(cfg, input_shape.channels)
        return {
            "source": source,
            "embedding_dim": {"cls": 1, "box": 4, "cls+box": 5}[source] * width,
        }
    if source == "randn":
        # A generator of its own: all processes and runs have to agree on these vectors.
        generator = torch.Generator().manual_seed(0)
        embeddings = torch.randn(
            cfg.MODEL.ROI_HEADS.NUM_CLASSES, _RANDN_DIM, generator=generator, device="cpu"
        )
    elif os.path.isfile(source):
        names = get_class_names((cfg.DATASETS.TRAIN or cfg.DATASETS.TEST)[0])
        embeddings = read_class_vectors(source, names)
    else:
        raise UserError(
            f"PSIS.MASKX.INPUT is '{source}'; choose one of {', '.join(DETECTION_WEIGHTS)}, randn, "
            "or give an existing text file with a line `name number number ...` for every class."
        )
    return {"source": "", "embeddings": embeddings, "embedding_dim": embeddings.shape[1]}


def _box_feature_dim(cfg, channels: int) -> int:
    """D, the number of features that the box predictor of a config reads."""
    side = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
    with torch.device("meta"):  # for its output shape: no memory, no random numbers
        head = build_box_head(cfg, ShapeSpec(channels=channels, height=side, width=side))
    shape = head.output_shape
    return shape.channels * (shape.height or 1) * (shape.width or 1)
