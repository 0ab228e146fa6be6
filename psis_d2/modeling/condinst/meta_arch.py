"""The meta-architecture: FCOS, and masks from filters that are predicted where it finds objects."""

import math

from psis_d2.data.cropped_masks import full_masks
from psis_d2.errors import UserError
from psis_d2.modeling import released_grids
from psis_d2.modeling.box_supervision import box_cells, lab_image, similar_neighbors
from psis_d2.modeling.condinst.box_grids import edges_of
from psis_d2.modeling.condinst.dynamic_filters import Queries
from psis_d2.modeling.condinst.mask_head import DynamicMaskHead, MaskTargets
from psis_d2.modeling.condinst.sampling import sample_locations
from psis_d2.modeling.context import learnable
from psis_d2.modeling.detectors.dense import DensePass
from psis_d2.modeling.detectors.fcos import FCOS
from psis_d2.modeling.image_masks import ImageMasks
from psis_d2.modeling.mask_targets import crop_images, shrink_masks

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_proposal_generator
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn


@torch.no_grad()
def mask_middles(target: Instances) -> Tensor:
    """The centers of mass of an image's masks, and of its boxes where there is no mask.

    Args:
        target: G annotated objects with ``gt_boxes``, ``gt_masks`` and ``gt_has_mask``.

    Returns:
        float [G, 2], x and y in pixels; a pixel's mass is in its middle.
    """
    middles = target.gt_boxes.get_centers().clone()
    annotated = target.gt_has_mask
    masks = full_masks(target.gt_masks, annotated)
    for axis, mass in enumerate((masks.sum(dim=1), masks.sum(dim=2))):
        places = torch.arange(mass.shape[1], device=mass.device) + 0.5
        total = mass.sum(dim=1)
        mean = (mass * places).sum(dim=1) / total.clamp(min=1)
        middles[annotated, axis] = torch.where(total > 0, mean, middles[annotated, axis])
    return middles


@META_ARCH_REGISTRY.register()
class CondInst(nn.Module):
    """CondInst (Tian et al., ECCV 2020) and BoxInst (Tian et al., CVPR 2021) on FCOS.

    Inputs, outputs and :meth:`inference` are those of Detectron2's ``GeneralizedRCNN``; masks may
    reach outside of boxes. A mask that is not :func:`~psis_d2.modeling.context.learnable` is never
    read.

    For a box that is given, not detected, filters are taken from the location that would have
    detected it: :meth:`~psis_d2.modeling.detectors.fcos.FCOS.locations_for`.

    Args:
        backbone: Detectron2's.
        proposal_generator: the detector.
        mask_head: see there.
        mask_in_features: names of the feature maps that the mask branch reads.
        locations_per_image, max_instances: see :func:`sample_locations`.
        center_of: what training locations lie around the center of, where training sees a mask:
            "mask", its center of mass, or "box".
        color_threshold: see :func:`similar_neighbors`.
        bottom_pixels: number of rows of the original image that take no part in pairs of like
            color.
        crf_side: side of a box in cells for the student's CRF.
        pixel_mean, pixel_std, input_format: of the images, as in Detectron2.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        proposal_generator: FCOS,
        mask_head: DynamicMaskHead,
        mask_in_features: list[str],
        locations_per_image: int,
        max_instances: int,
        center_of: str,
        color_threshold: float,
        bottom_pixels: int,
        crf_side: int,
        pixel_mean: list[float],
        pixel_std: list[float],
        input_format: str,
    ):
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.mask_head = mask_head
        self.mask_in_features = mask_in_features
        self.locations_per_image = locations_per_image
        self.max_instances = max_instances
        self.center_of = center_of
        self.color_threshold = color_threshold
        self.bottom_pixels = bottom_pixels
        self.crf_side = crf_side
        self.input_format = input_format
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg):
        node = cfg.PSIS.CONDINST
        name = cfg.MODEL.PROPOSAL_GENERATOR.NAME
        if name != "FCOS":
            raise UserError(
                f"MODEL.PROPOSAL_GENERATOR.NAME is {name}; MODEL.META_ARCHITECTURE CondInst needs "
                "FCOS, whose box tower its filters are predicted from."
            )
        if not cfg.MODEL.MASK_ON:
            raise UserError(
                "MODEL.MASK_ON is False, and MODEL.META_ARCHITECTURE CondInst is about masks; use "
                "GeneralizedRCNN for a detector alone."
            )
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, shapes),
            "mask_head": DynamicMaskHead(
                cfg, [shapes[name] for name in node.IN_FEATURES], cfg.PSIS.FCOS.TOWER_DIM
            ),
            "mask_in_features": node.IN_FEATURES,
            "locations_per_image": node.LOCATIONS_PER_IMAGE,
            "max_instances": node.MAX_INSTANCES,
            "center_of": node.CENTER_OF,
            "color_threshold": node.COLOR_THRESHOLD,
            "bottom_pixels": node.BOTTOM_PIXELS,
            "crf_side": node.CRF_SIDE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training, else :meth:`inference`."""
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        targets = [item["instances"].to(self.device) for item in batched_inputs]
        if self.center_of == "mask" and self.mask_head.supervision != "boxes":
            for target in targets:
                target.gt_middles = mask_middles(target)
        features = self.backbone(images.tensor)
        found = self.proposal_generator.detect(features, targets)
        queries, objects = self._sample(found, targets)
        mask_losses = self.mask_head.losses(
            [features[name] for name in self.mask_in_features],
            found.predictions.tower,
            queries,
            self._mask_targets(batched_inputs, images, targets, queries, objects),
        )
        return found.losses | mask_losses

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict] | list[Instances]:
        """See Detectron2's ``GeneralizedRCNN.inference``; same arguments and results."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        detector = self.proposal_generator
        found = detector.detect(features)
        if detected_instances is None:
            proposals = detector.propose(
                found.anchors, found.predictions, images.image_sizes, detector.test_selection
            )
            locations = [x.anchor_rows for x in proposals]
            instances = [
                Instances(
                    x.image_size,
                    pred_boxes=x.proposal_boxes,
                    scores=x.scores,
                    pred_classes=x.pred_classes,
                )
                for x in proposals
            ]
        else:
            instances = [x.to(self.device) for x in detected_instances]
            locations = detector.locations_for(
                found, [x.pred_boxes for x in instances], [x.pred_classes for x in instances]
            )
        queries = self._queries(found, locations, [x.pred_classes for x in instances])
        maps = [features[name] for name in self.mask_in_features]
        masks = self.mask_head(maps, found.predictions.tower, queries)
        for of_image, part in zip(instances, masks.split([len(x) for x in instances]), strict=True):
            head = self.mask_head
            of_image.pred_masks = ImageMasks(
                part, head.mask_stride, of_image.image_size, head.released_grids
            )
        if not do_postprocess:
            return instances
        return [
            {
                "instances": detector_postprocess(
                    x, item.get("height", x.image_size[0]), item.get("width", x.image_size[1])
                )
            }
            for item, x in zip(batched_inputs, instances, strict=True)
        ]

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalized images, padded to one size."""
        images = [item["image"].to(self.device) for item in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def _queries(self, found: DensePass, locations: list[Tensor], classes: list[Tensor]) -> Queries:
        """Of locations and classes of each image."""
        places = self.proposal_generator.locations(found.anchors)
        rows = torch.cat(locations)
        images = [torch.full_like(x, index) for index, x in enumerate(locations)]
        # Farthest sides up to the level's limit belong to it; the last level, which has none, gets
        # twice the one before's, a single one what is usual at stride 8.
        low, high = places.ranges[rows].unbind(dim=1)
        no_limit = torch.where(low > 0, 2 * low, 8 * places.strides[rows])
        return Queries(
            images=torch.cat(images),
            locations=rows,
            centers=places.centers[rows],
            sizes=torch.where(high == math.inf, no_limit, high),
            classes=torch.cat(classes),
        )

    @torch.no_grad()
    def _sample(self, found: DensePass, targets: list[Instances]) -> tuple[Queries, Tensor]:
        """Locations that train masks, and the rows of their objects in their image's target."""
        objects = self.proposal_generator.match_locations(found.anchors, targets)
        if not self.mask_head.learns_without_masks:
            for of_image, target in zip(objects, targets, strict=True):
                taught = torch.cat([learnable(target), target.gt_has_mask.new_zeros(1)])
                of_image[~taught[of_image]] = -1
        predictions = found.predictions
        probability = torch.cat([x.amax(dim=2) for x in predictions.logits], dim=1).sigmoid()
        quality = probability * torch.cat(predictions.centerness, dim=1).sigmoid()
        images, rows = sample_locations(
            objects, quality, self.locations_per_image, self.max_instances
        )
        objects = objects[images, rows]
        of_image = [images == index for index in range(len(targets))]
        classes = [
            target.gt_classes[objects[own]] for target, own in zip(targets, of_image, strict=True)
        ]
        return self._queries(found, [rows[own] for own in of_image], classes), objects

    @torch.no_grad()
    def _mask_targets(
        self,
        batched_inputs: list[dict],
        images: ImageList,
        targets: list[Instances],
        queries: Queries,
        objects: Tensor,
    ) -> MaskTargets:
        head = self.mask_head
        stride = head.mask_stride
        size = tuple(side // stride for side in images.tensor.shape[-2:])
        cells, has_mask, truth_rows, truth, seen, weights = [], [], [], [], [], []
        first = 0
        for index, target in enumerate(targets):
            own = objects[queries.images == index]
            cells.append(box_cells(target.gt_boxes.tensor[own], stride, size))
            annotated = learnable(target) & (head.supervision != "boxes")
            has_mask.append(annotated[own])
            if target.has("gt_mask_weight"):
                weights.append(target.gt_mask_weight[own])
            rows = annotated.cumsum(0) - 1
            truth_rows.append(first + rows[own])
            shrink = released_grids.pick if head.released_grids else shrink_masks
            masks = shrink(full_masks(target.gt_masks, annotated), stride, size)
            truth.append(masks)
            seen.append((masks >= 0.5).any(dim=0))
            first += len(masks)
        cells = torch.cat(cells)
        similar, colors = None, None
        if head.uses_boxes:
            similar = torch.stack([self._similar(item, size) for item in batched_inputs])
        if head.uses_colors:
            boxes = stride * edges_of(cells)
            of_image = [Boxes(boxes[queries.images == index]) for index in range(len(targets))]
            colors = crop_images(images.tensor, of_image, self.crf_side) * self.pixel_std
        return MaskTargets(
            cells=cells,
            has_mask=torch.cat(has_mask),
            truth_rows=torch.cat(truth_rows),
            truth=torch.cat(truth),
            seen=torch.stack(seen),
            similar=similar,
            colors=colors,
            weights=torch.cat(weights) if weights else None,
        )

    def _similar(self, item: dict, size: tuple[int, int]) -> Tensor:
        stride = self.mask_head.mask_stride
        image = item["image"].to(self.device, non_blocking=True)
        height = image.shape[1]
        removed = int(self.bottom_pixels * height / item.get("height", height))
        # Rows of cells whose center is above what is removed.
        rows = max(math.ceil((height - removed) / stride - 0.5), 0)
        colors = lab_image(image, self.input_format, stride)
        return similar_neighbors(colors, size, rows, self.mask_head.dilation, self.color_threshold)
