"""ContrastMask: cells of objects against cells around them (Wang et al., CVPR 2022).

Beside the mask branch there is a *contrastive head*: an encoder whose features enter the mask
branch, and a projector behind it that training alone uses. In the projector's space, foreground
cells are drawn to a foreground query and away from background cells, and the other way around. A
region's cells are parted by its mask where training sees one, and by the class activation map of
its own class where it does not, so that objects of both kinds train the encoder. Both queries are
means over all regions of the batch, whatever their class: what they tell apart is foreground from
background, for any category.

Choices are those of the released code, which its authors say the numbers come from; the method's
page lists them. The features are pooled once, with P cells a side, for the contrastive head; the
mask branch reads the means of 2 x 2 cells. With one sample a cell these are the features that Mask
R-CNN pools with P / 2 cells and four samples.
"""

from dataclasses import dataclass

from psis_d2.errors import UserError, check_choice
from psis_d2.modeling.class_maps import class_activation_maps, normalize_maps, resize_maps
from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.losses import zero_loss
from psis_d2.modeling.mask_heads.base import Needs, RegionMaskHead
from psis_d2.modeling.mask_heads.blocks import UpsamplePredictor, conv_tower
from psis_d2.modeling.mask_targets import boundary_targets

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, cat, get_norm
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.structures.boxes import matched_pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

FUSIONS = ("add", "concat", "none")
LOSSES = ("released", "infonce")


# ------------------------------------------------------------------------------ which cells


@dataclass(frozen=True)
class Partition:
    """Which cells of R regions are foreground and background, and which of them may be keys."""

    foreground: Tensor
    """bool [R, N], the cells whose mean is a region's foreground query."""
    background: Tensor
    """bool [R, N], the same for the background query."""
    keys: tuple[tuple[Tensor, Tensor], ...]
    """(foreground, background) bool [R, N] of each kind of keys: easy ones, then hard ones."""

    def smallest(self) -> Tensor:
        """int64 [R]: how many cells the smallest of a region's sets of keys has."""
        return torch.stack([x.sum(dim=1) for pair in self.keys for x in pair]).amin(dim=0)

    def rows(self, index: Tensor) -> "Partition":
        """The partition of some of the regions."""
        keys = tuple((a[index], b[index]) for a, b in self.keys)
        return Partition(self.foreground[index], self.background[index], keys)


def part_by_masks(masks: Tensor, hard_width: int, hard_gap: int) -> Partition:
    """Parts of regions by their masks.

    Keys near the contour are hard, those far from it easy. Cells right at the contour are no keys:
    which side they are on is a question of the grid.

    Args:
        masks: float [A, S, S] of 0 and 1.
        hard_width: keys up to so many cells from the contour are hard, see
            :func:`~psis_d2.modeling.mask_targets.boundary_targets`; 0: there is one kind of keys.
        hard_gap: cells on each side of the contour that are no keys, less than `hard_width`.
    """
    inside = masks.flatten(1).bool()
    at_contour = torch.zeros_like(inside)
    if hard_gap:
        at_contour = boundary_targets(masks, hard_gap).flatten(1).bool()
    near = at_contour
    if hard_width:
        near = boundary_targets(masks, hard_width).flatten(1).bool()
    keys = ((inside & ~near, ~inside & ~near),)
    if hard_width:
        near = near & ~at_contour
        keys += ((inside & near, ~inside & near),)
    return Partition(inside, ~inside, keys)


def part_by_maps(maps: Tensor, threshold: float, kinds: int) -> Partition:
    """Parts of regions by their class activation maps: foreground where they are high.

    Args:
        maps: float [U, S, S] in [0, 1].
        threshold: cells above 1 - threshold are foreground, those below threshold background.
        kinds: of keys; all of them are the same cells.
    """
    maps = maps.flatten(1)
    high, low = maps > 1 - threshold, maps < threshold
    return Partition(high, low, ((high, low),) * kinds)


def merge(seen: Partition, unseen: Partition, which: tuple[Tensor, Tensor]) -> Partition:
    """One partition of R regions from those of the regions with and without a mask.

    Args:
        seen, unseen: of A and R - A regions.
        which: int64 [A] and int64 [R - A], their places among the R regions.
    """

    def rows(one: Tensor, other: Tensor) -> Tensor:
        result = one.new_zeros(sum(map(len, which)), one.shape[1])
        result[which[0]], result[which[1]] = one, other
        return result

    pairs = zip(seen.keys, unseen.keys, strict=True)
    return Partition(
        rows(seen.foreground, unseen.foreground),
        rows(seen.background, unseen.background),
        tuple((rows(a, c), rows(b, d)) for (a, b), (c, d) in pairs),
    )


def sample_cells(candidates: Tensor, share: float) -> Tensor:
    """A share of each region's candidates, drawn at random, at least one.

    Args:
        candidates: bool [R, N].
        share: in (0, 1]; n candidates give n * share, rounded up.

    Returns:
        bool [R, N].
    """
    wanted = (candidates.sum(dim=1, keepdim=True) * share - 1e-4).ceil()
    draw = torch.rand(candidates.shape, device=candidates.device).masked_fill(~candidates, 2)
    return candidates & (draw.argsort(dim=1).argsort(dim=1) < wanted)


# ------------------------------------------------------------------------------ the loss


def mean_of_cells(features: Tensor, cells: Tensor) -> Tensor:
    """The mean of each region's features over some of its cells, at least one.

    Args:
        features: float [R, D, N].
        cells: bool [R, N].

    Returns:
        float [R, D].
    """
    weights = cells.to(features.dtype)
    return torch.einsum("rdn,rn->rd", features, weights) / weights.sum(dim=1, keepdim=True)


def cosines(query: Tensor, keys: Tensor, less_query: bool) -> Tensor:
    """Cosines of the angles between queries and the keys of all cells.

    Args:
        query: float [R, D] or, one for all regions, [1, D].
        keys: float [R, D, N].
        less_query: take each key's difference from the query in place of the key.

    Returns:
        float [R, N] in [-1, 1]; 0 where a vector is zero.
    """
    eps = 1e-8
    square = query.square().sum(dim=1, keepdim=True)
    products = torch.einsum("rd,rdn->rn", query.expand(len(keys), -1), keys)
    lengths = keys.square().sum(dim=1)
    if less_query:
        lengths = lengths - 2 * products + square
        products = products - square
    norms = (square.clamp(min=eps) * lengths.clamp(min=eps)).sqrt()
    return (products / norms).clamp(-1, 1)


def contrast(
    similarity: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    temperature: float,
    shared: bool,
    released: bool,
    weights: Tensor | None = None,
) -> Tensor:
    """InfoNCE of one query: each positive key against all negative ones.

    -log exp(p / t) / (exp(p / t) + sum of exp(n / t) over negative keys), averaged over the
    positive keys. The released code has no temperature in the denominator's first term.

    Args:
        similarity: float [R, N], R > 0, of the query and all cells.
        positive, negative: bool [R, N], the keys; every region has some of both.
        temperature: t.
        shared: keys of all regions meet in one loss; else each region has a loss of its own with
            its own keys, and the result is their mean.
        released: the released code's denominator.
        weights: float [R], factors of the positive keys' losses, which their mean leaves out.

    Returns:
        float scalar.
    """
    logits = similarity / temperature
    others = logits.masked_fill(~negative, -torch.inf)
    others = others.flatten().logsumexp(dim=0) if shared else others.logsumexp(dim=1, keepdim=True)
    losses = torch.logaddexp(similarity if released else logits, others) - logits
    if weights is not None:
        losses = losses * weights[:, None]
    losses = losses * positive
    if shared:
        return losses.sum() / positive.sum()
    return (losses.sum(dim=1) / positive.sum(dim=1)).mean()


# ------------------------------------------------------------------------------ the layers


def projector(in_channels: int, dim: int, num_layers: int, norm: str) -> nn.Sequential:
    """Cells [R, in_channels, S, S] to [R, dim, S, S]: 1x1 layers, norm and ReLU between them."""
    layers: list[nn.Module] = []
    for k in range(num_layers):
        last = k == num_layers - 1
        conv = Conv2d(
            in_channels if k == 0 else dim,
            dim,
            kernel_size=1,
            bias=last or not norm,
            norm=None if last else get_norm(norm, dim),
            activation=None if last else nn.ReLU(),
        )
        weight_init.c2_msra_fill(conv)
        layers.append(conv)
    return nn.Sequential(*layers)


def attend(x: Tensor) -> Tensor:
    """Each cell as a mean over all cells of its region, those of like features weighing more.

    The weights are the softmax over cells of the cosine between features (released code); it has no
    parameters.

    Args:
        x: float [R, C, S, S].

    Returns:
        float [R, C, S, S].
    """
    flat = x.flatten(2)
    unit = F.normalize(flat, dim=1)
    weights = torch.einsum("rcn,rcm->rnm", unit, unit).softmax(dim=2)
    return torch.einsum("rnm,rcm->rcn", weights, flat).view_as(x)


@ROI_MASK_HEAD_REGISTRY.register()
class ContrastMaskHead(RegionMaskHead):
    """Mask R-CNN's head on RoI features, a contrastive head's features, and class maps.

    Args:
        input_shape: shape of the RoI features (channels, P, P); P is even (released code: 28).
        num_outputs: 1 for class-agnostic, else the number of classes.
        conv_dim, num_convs, norm: the mask trunk (released code: 256, 4, none).
        encoder_dim, encoder_convs: of the contrastive head's encoder.
        projector_layers, projector_norm: of its projector, as wide as the encoder.
        fusion: how the encoder's features enter the mask branch, "add" or "concat", through a 1x1
            convolution; "none": they do not.
        attention: whether they pass :func:`attend` before.
        class_map: whether the class activation map is added to what the trunk reads.
        detach: keep the contrastive head's gradients from the RoI features.
        contrast_weight: of ``loss_contrast``; 0: there is none.
        contrast_start, contrast_warmup: the weight's factor in iteration i is the larger of
            `contrast_start` and i / `contrast_warmup`, at the most 1; 0: it is 1 from the start.
        contrast_loss: "released" or "infonce", see :func:`contrast` and :func:`cosines`.
        unseen: whether regions without a mask take part in the contrast.
        shared_query: one query for all regions, or one for each.
        map_threshold: see :func:`part_by_maps`.
        hard_width, hard_gap: see :func:`part_by_masks`.
        key_share: the share of all possible keys that are drawn, see :func:`sample_cells`.
        min_keys: regions with less possible keys of any kind are left out of the contrast.
        easy_temperature, hard_temperature: of the two kinds of keys.
        mask_min_iou: the mask loss is of regions alone that overlap their object's annotated box by
            this IoU; 1: of annotated boxes.
        **kwargs: see :class:`RegionMaskHead`.
    """

    trains_on = "foreground"
    needs = Needs(box_predictor=True, box_features=True)
    has_shape_prior = True

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_outputs: int,
        conv_dim: int,
        num_convs: int,
        norm: str = "",
        encoder_dim: int = 256,
        encoder_convs: int = 8,
        projector_layers: int = 3,
        projector_norm: str = "BN",
        fusion: str = "add",
        attention: bool = True,
        class_map: bool = True,
        detach: bool = True,
        contrast_weight: float = 0.1,
        contrast_start: float = 0.25,
        contrast_warmup: int = 0,
        contrast_loss: str = "released",
        unseen: bool = True,
        shared_query: bool = True,
        map_threshold: float = 0.1,
        hard_width: int = 2,
        hard_gap: int = 1,
        key_share: float = 0.3,
        min_keys: int = 5,
        easy_temperature: float = 0.3,
        hard_temperature: float = 0.7,
        mask_min_iou: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_choice("PSIS.CONTRASTMASK.FUSION", fusion, FUSIONS)
        check_choice("PSIS.CONTRASTMASK.LOSS", contrast_loss, LOSSES)
        channels, side = input_shape.channels, input_shape.height
        if side % 2:
            raise UserError(
                f"MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION is {side}; ContrastMaskHead halves it for "
                "its mask branch, so give an even one, such as 28."
            )
        if hard_width and hard_gap >= hard_width:
            raise UserError(
                f"PSIS.CONTRASTMASK.HARD_GAP is {hard_gap} and HARD_WIDTH {hard_width}, which "
                "leaves no hard key; make the gap smaller."
            )
        self.attention = attention
        self.class_map = class_map
        self.detach = detach
        self.contrast_weight = contrast_weight
        self.contrast_start = contrast_start
        self.contrast_warmup = contrast_warmup
        self.released_loss = contrast_loss == "released"
        self.unseen = unseen
        self.shared_query = shared_query
        self.map_threshold = map_threshold
        self.hard_width = hard_width
        self.hard_gap = hard_gap
        self.key_share = key_share
        self.min_keys = min_keys
        self.temperatures = (easy_temperature, hard_temperature)
        self.mask_min_iou = mask_min_iou

        self.encoder = self.projector = self.fuse = None
        contrasts = contrast_weight > 0
        width = encoder_dim if encoder_convs else channels
        if contrasts or fusion != "none":
            self.encoder = conv_tower(channels, encoder_dim, encoder_convs)
        if contrasts:
            self.projector = projector(width, encoder_dim, projector_layers, projector_norm)
        self.concatenates = fusion == "concat"
        if fusion != "none":
            self.fuse = Conv2d(width, channels, kernel_size=1)
            weight_init.c2_msra_fill(self.fuse)
        trunk_input = 2 * channels if self.concatenates else channels
        self.trunk = conv_tower(trunk_input, conv_dim, num_convs, norm)
        self.predictor = UpsamplePredictor(
            conv_dim if num_convs else trunk_input, conv_dim, num_outputs
        )

    @classmethod
    def from_config(cls, cfg, input_shape):
        head, node = cfg.MODEL.ROI_MASK_HEAD, cfg.PSIS.CONTRASTMASK
        if node.MASK_MIN_IOU == 1 and cfg.PSIS.MASK_TRAIN_BOXES == "jittered_gt":
            raise UserError(
                "PSIS.CONTRASTMASK.MASK_MIN_IOU is 1.0, which no jittered box reaches; set it to "
                "0.0, or PSIS.MASK_TRAIN_BOXES to proposals or gt."
            )
        arguments = {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "num_outputs": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dim": head.CONV_DIM,
            "num_convs": head.NUM_CONV,
            "norm": head.NORM,
            "encoder_dim": node.ENCODER_DIM,
            "encoder_convs": node.ENCODER_CONVS,
            "fusion": node.FUSION,
            "attention": node.ATTENTION,
            "class_map": node.CLASS_MAP,
            "detach": node.DETACH,
            "contrast_weight": node.WEIGHT,
            "mask_min_iou": node.MASK_MIN_IOU,
        }
        if node.WEIGHT > 0:  # else these keys are not read, and setting one is known to be in vain
            arguments |= {
                "projector_layers": node.PROJECTOR_LAYERS,
                "projector_norm": node.PROJECTOR_NORM,
                "contrast_start": node.START,
                "contrast_warmup": node.WARMUP,
                "contrast_loss": node.LOSS,
                "unseen": node.UNSEEN,
                "shared_query": node.SHARED_QUERY,
                "map_threshold": node.MAP_THRESHOLD,
                "hard_width": node.HARD_WIDTH,
                "hard_gap": node.HARD_GAP,
                "key_share": node.KEY_SHARE,
                "min_keys": node.MIN_KEYS,
                "easy_temperature": node.EASY_TEMPERATURE,
                "hard_temperature": node.HARD_TEMPERATURE,
            }
        return arguments

    def class_maps(self, context: RegionContext, side: int) -> Tensor:
        """The map of each region's own class in [0, 1], float32 [R, side, side]."""
        maps = class_activation_maps(context.box_features, context.box_predictor, context.classes)
        return normalize_maps(resize_maps(maps, side))

    def encode(self, context: RegionContext) -> Tensor | None:
        """The encoder's features, float [R, D, P, P]; None if there is no encoder."""
        if self.encoder is None:
            return None
        features = context.features
        return self.encoder(features.detach() if self.detach else features)

    def predict(self, context: RegionContext) -> Tensor:
        """Mask logits [R, num_outputs, P, P]."""
        return self._masks(context, None if self.fuse is None else self.encode(context))

    def _masks(self, context: RegionContext, encoded: Tensor | None) -> Tensor:
        x = F.avg_pool2d(self.regularize(context.features), 2)
        if self.fuse is not None:
            if self.attention:
                encoded = attend(encoded)
            fused = self.fuse(F.avg_pool2d(encoded, 2))
            x = torch.cat([x, fused], dim=1) if self.concatenates else x + fused
        if self.class_map:
            x = x + self.class_maps(context, x.shape[-1])[:, None].to(x.dtype)
        return self.predictor(self.trunk(x))

    def losses(self, context: RegionContext) -> dict[str, Tensor]:
        """``loss_mask`` and ``loss_contrast``, see :meth:`contrast_loss`."""
        losses = {}
        if len(context) == 0:
            losses["loss_mask"] = zero_loss(self) + self.take_part(context)
            if self.projector is not None:
                losses["loss_contrast"] = zero_loss(self.projector)
            return losses
        encoded = self.encode(context)
        logits = self._masks(context, encoded)
        seen, kept = context, logits
        if self.mask_min_iou > 0:
            keep = self._well_framed(context)
            seen, kept = context.select(keep), logits[keep]
        losses["loss_mask"] = self.mask_loss(seen, kept)
        if self.projector is not None:
            losses["loss_contrast"] = self.contrast_loss(context, encoded)
        return losses

    def _well_framed(self, context: RegionContext) -> Tensor:
        """bool [R]: whose box is near enough to the annotated one."""
        pairs = zip(context.boxes, context.object_boxes, strict=True)
        return cat([matched_pairwise_iou(*pair) for pair in pairs]) >= self.mask_min_iou

    @torch.no_grad()
    def partition(self, context: RegionContext, side: int) -> Partition:
        """The cells of R > 0 regions by their masks, or their class activation maps."""
        masks = context.annotated.mask_targets(side)
        return merge(
            part_by_masks(masks, self.hard_width, self.hard_gap),
            part_by_maps(
                self.class_maps(context, side)[context.maskless_rows],
                self.map_threshold,
                kinds=2 if self.hard_width else 1,
            ),
            (context.annotated_rows, context.maskless_rows),
        )

    def contrast_loss(self, context: RegionContext, encoded: Tensor) -> Tensor:
        """The weighted contrast of R > 0 regions, with the encoder's features of them.

        The sum over both queries and all kinds of keys of :func:`contrast`. A region with a foreign
        mask counts with its weight, the others with 1. Regions with few keys are left out; without
        a region left it is a zero that is connected to the projector.
        """
        parts = self.partition(context, encoded.shape[-1])
        keep, has_mask = parts.smallest() >= self.min_keys, context.has_mask
        if not self.unseen:
            keep = keep & has_mask
        rows = keep.nonzero()[:, 0]
        if len(rows) == 0:
            return zero_loss(self.projector)
        parts = parts.rows(rows)
        keys = self.projector(encoded[rows]).flatten(2).float()
        weights = context.mask_weights
        if weights is not None:
            weights = torch.where(has_mask, weights, 1)[rows]
        drawn = [tuple(sample_cells(x, self.key_share) for x in pair) for pair in parts.keys]
        total = keys.new_zeros(())
        for cells, own in ((parts.foreground, 0), (parts.background, 1)):
            query = mean_of_cells(keys, cells)
            if self.shared_query:
                query = query.mean(dim=0, keepdim=True)
            similarity = cosines(query, keys, less_query=self.released_loss)
            for pair, temperature in zip(drawn, self.temperatures, strict=False):
                total = total + contrast(
                    similarity,
                    pair[own],
                    pair[1 - own],
                    temperature=temperature,
                    shared=self.shared_query,
                    released=self.released_loss,
                    weights=weights,
                )
        return self.contrast_weight * self._growth() * total

    def _growth(self) -> float:
        if self.contrast_warmup == 0:
            return 1.0
        share = get_event_storage().iter / self.contrast_warmup
        return min(max(self.contrast_start, share), 1.0)

    def heat_maps(self, context: RegionContext) -> dict[str, Tensor]:
        """The class activation map that is added to what the mask branch reads, [R, P/2, P/2]."""
        if not self.class_map:
            return {}
        return {"class activation": self.class_maps(context, context.features.shape[-1] // 2)}
