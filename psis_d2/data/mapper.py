"""From a dataset dict to what a model eats, with masks decided per instance."""

from __future__ import annotations

from collections.abc import Sequence

from psis_d2.data.drawing import draw_masks
from psis_d2.data.images import read_image
from psis_d2.data.points import add_points

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances

# Narrower boxes (pixels) are dropped: a crop can leave nothing of an object.
_MIN_BOX_SIDE = 1e-5


class PartialMaskMapper:
    """Read and augment one image whose instances may or may not have masks.

    Detectron2's mapper looks at the first annotation of an image to learn whether the image has
    masks; this one looks at each. Masks are always bit masks, whatever ``INPUT.MASK_FORMAT`` says:
    polygons, RLEs and missing masks may then be mixed in one image. Boxes are the annotated ones
    after the augmentation and are never recomputed from masks, since that would let a mask that
    training may not see move a box.

    Call it with a standard dataset dict (see :func:`psis_d2.data.get_dataset_dicts`), which is
    not modified. It returns a dict with

    * ``image``: uint8 tensor (C, H, W) in ``INPUT.FORMAT``, H x W after the augmentation;
    * ``height``, ``width``, ``file_name``, ``image_id`` of the original image;
    * ``instances``, only when training or with ``with_boxes``, crowd regions left out:

      * ``gt_boxes`` (N boxes, pixels of ``image``) and ``gt_classes`` (int64, N), always;
      * when training a model with masks, ``gt_masks`` (N x H x W as
        :class:`~psis_d2.data.cropped_masks.CroppedMasks`, empty where there is no mask) and
        ``gt_has_mask`` (bool, N), whether it is an annotated one. With
        ``foreign_masks`` there is ``gt_mask_weight`` (float32, N), too: 1 for an annotated mask,
        its weight for a foreign one, 0 for none. Instances whose box is empty are left out; one
        whose mask is empty after a crop stays, without a mask;
      * with ``use_points``, ``gt_points`` and ``gt_point_labels``, see
        :func:`~psis_d2.data.points.add_points`;
      * when training on images of which some are annotated for a part of the classes only,
        ``gt_exhaustive`` (bool, N, the same for all N): whether this one has them all;
      * with ``with_boxes``, ``gt_ids`` (int64, N): the annotation ids.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation],
        image_format: str,
        use_masks: bool = True,
        with_boxes: bool = False,
        foreign_masks: bool = False,
        use_points: bool = False,
        pixel_range: Sequence[float] = (),
    ):
        """Make a mapper from parts; ``PartialMaskMapper(cfg, is_train)`` reads them from a config.

        Args:
            is_train: whether instances with masks are made.
            augmentations: applied in this order.
            image_format: as Detectron2's ``read_image`` knows it, such as ``BGR``.
            use_masks: whether training instances get ``gt_masks`` and ``gt_has_mask``.
            with_boxes: whether, outside training, instances with boxes and ids are made.
            foreign_masks: whether masks that are no annotations are used, see
                :func:`~psis_d2.data.supervision.add_foreign_masks`.
            use_points: whether training instances get their annotated points.
            pixel_range: see :func:`~psis_d2.data.images.read_pixels`.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_masks = use_masks
        self.with_boxes = with_boxes
        self.foreign_masks = foreign_masks
        self.use_points = use_points
        self.pixel_range = pixel_range

    @classmethod
    def from_config(cls, cfg, is_train: bool = True, with_boxes: bool = False) -> dict:
        augmentations = detection_utils.build_augmentation(cfg, is_train)
        if is_train and cfg.INPUT.CROP.ENABLED:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "use_masks": cfg.MODEL.MASK_ON,
            "with_boxes": with_boxes,
            "foreign_masks": cfg.PSIS.MISSING_MASKS != "none",
            "use_points": cfg.MODEL.MASK_ON and cfg.PSIS.POINTS,
            "pixel_range": cfg.PSIS.PIXEL_RANGE,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Map one dataset dict.

        Raises:
            UserError: the image cannot be read or is not as large as the dict says.
        """
        image = read_image(dataset_dict, self.image_format, self.pixel_range)
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        image = np.array(augmented.image.transpose(2, 0, 1), order="C")
        output = {key: dataset_dict[key] for key in ("height", "width", "file_name", "image_id")}
        output["image"] = torch.from_numpy(image)
        if self.is_train or self.with_boxes:
            annotations = [
                annotation
                for annotation in dataset_dict.get("annotations", ())
                if not annotation.get("iscrowd", 0)
            ]
            output["instances"] = self._instances(
                annotations, transforms, image.shape[1:], dataset_dict.get("exhaustive")
            )
        return output

    def _instances(
        self,
        annotations: Sequence[dict],
        transforms: T.TransformList,
        size: tuple[int, int],
        exhaustive: bool | None,
    ) -> Instances:
        """Annotations of one image as ``Instances`` of the augmented image of ``size`` (H, W)."""
        boxes = np.array(
            [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations],
            dtype=np.float64,
        ).reshape(-1, 4)
        if len(boxes):
            boxes = transforms.apply_box(boxes)
        instances = Instances(tuple(size))
        instances.gt_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32))
        instances.gt_boxes.clip(instances.image_size)
        instances.gt_classes = torch.tensor(
            [a["category_id"] for a in annotations], dtype=torch.int64
        )
        if not self.is_train:
            instances.gt_ids = torch.tensor([a["id"] for a in annotations], dtype=torch.int64)
            return instances
        # The boxes decide before any mask is drawn, so that a mask cannot decide.
        keep = instances.gt_boxes.nonempty(threshold=_MIN_BOX_SIDE)
        instances = instances[keep]
        if exhaustive is not None:
            instances.gt_exhaustive = torch.full((len(instances),), exhaustive, dtype=torch.bool)
        kept = [a for a, stays in zip(annotations, keep.tolist(), strict=True) if stays]
        if self.use_points:
            add_points(instances, kept, transforms)
        if self.use_masks:
            true = [annotation.get("segmentation") for annotation in kept]
            drawn = true
            if self.foreign_masks:
                foreign = (annotation.get("foreign_segmentation") for annotation in kept)
                drawn = [
                    one if one is not None else other
                    for one, other in zip(true, foreign, strict=True)
                ]
            masks = draw_masks(drawn, transforms, size)
            annotated = torch.tensor([one is not None for one in true], dtype=torch.bool)
            instances.gt_masks = masks
            instances.gt_has_mask = masks.nonempty() & annotated
            if self.foreign_masks:
                weights = torch.tensor(
                    [
                        1.0 if one is not None else annotation.get("foreign_weight", 0.0)
                        for one, annotation in zip(true, kept, strict=True)
                    ]
                )
                instances.gt_mask_weight = weights * masks.nonempty()
        return instances
