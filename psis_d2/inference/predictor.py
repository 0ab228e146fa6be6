"""One trained model, and the masks that it draws in pictures."""

from __future__ import annotations

from collections.abc import Sequence

import psis_d2.modeling  # noqa: F401  (registers detectors and heads)
from psis_d2.errors import UserError
from psis_d2.inference.saved_model import SavedModel

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances, ROIMasks
from torch import Tensor

# Masks of an image's size that are in memory at a time while they are thresholded.
_PASTED_AT_A_TIME = 50


class Predictor:
    """A trained model of psis_d2: images in, objects with masks out.

    ``Predictor("model.pth")(image)`` finds objects; with boxes, the model draws the masks of the
    objects in them. Everything the model needs (its config, the names of its classes) is in the
    file; older files and files of other projects need ``config``.

    Attributes:
        class_names: names of the model's classes, by number.
        seen_ids: numbers of the classes that had masks in training.
        cfg: the model's config.
        fingerprint: a digest of weights and config: equal for models that predict the same.

    Args:
        weights: a checkpoint: a path, or an address that iopath knows.
        config: a config or the path of one; needed where the file holds none.
        opts: ``KEY VALUE`` pairs that change the config.
        device: such as "cpu" or "cuda:1"; None = a GPU if there is one.

    Raises:
        UserError: the file or the config cannot be used.
    """

    def __init__(
        self,
        weights: str,
        *,
        config=None,
        opts: Sequence[str] = (),
        device: str | None = None,
    ):
        saved = SavedModel(weights, config=config, opts=opts, device=device)
        self.cfg = saved.cfg
        self.class_names = saved.class_names
        self.seen_ids = frozenset(saved.seen_ids)
        self.fingerprint = saved.fingerprint
        self.model = saved.build()
        sides = [self.cfg.INPUT.MIN_SIZE_TEST] * 2
        self._resize = T.ResizeShortestEdge(sides, self.cfg.INPUT.MAX_SIZE_TEST)

    source = "psis_d2"
    """What annotations name as the source of masks that it drew."""

    @property
    def draws_masks(self) -> bool:
        """Whether the model has masks at all."""
        return bool(self.cfg.MODEL.MASK_ON)

    @property
    def class_agnostic(self) -> bool:
        """Whether the masks of given boxes do not depend on their classes."""
        head = getattr(getattr(self.model, "roi_heads", None), "mask_head", None)
        return not getattr(head, "reads_classes", True)  # CondInst has no such head

    def __call__(
        self, image: np.ndarray, boxes=None, classes=None, *, color_order: str = "BGR"
    ) -> Instances:
        """The objects of one image, see :meth:`predict_batch`."""
        given = {} if boxes is None else {"boxes": [boxes], "classes": [classes]}
        return self.predict_batch([image], **given, color_order=color_order)[0]

    @torch.no_grad()
    def predict_batch(
        self,
        images: Sequence[np.ndarray],
        boxes: Sequence | None = None,
        classes: Sequence | None = None,
        *,
        color_order: str = "BGR",
    ) -> list[Instances]:
        """The objects of several images at once.

        Args:
            images: uint8 [H, W, 3] each, of any sizes.
            boxes: for each image N boxes, XYXY pixels, whose masks are wanted; None: the model
                finds the objects itself.
            classes: for each image the classes of its boxes, int [N]; needed with boxes, unless
                the model has one class.
            color_order: of the images, "BGR" (OpenCV, and Detectron2's ``DefaultPredictor``) or
                "RGB" (Pillow).

        Returns:
            For each image, in its pixels and on the CPU: ``pred_boxes``, ``pred_classes``,
            ``scores`` (1 for given boxes) and, if the model draws masks, ``pred_masks`` (bool
            [N, H, W]) and ``mask_scores`` (float [N], the mean probability of the mask's cells, 0
            for an empty mask). Given boxes come back as they are and in their order.
        """
        inputs = [self._input(image, color_order) for image in images]
        if boxes is None:
            found = self.model.inference(inputs, do_postprocess=False)
            return [self._finish(x, item) for x, item in zip(found, inputs, strict=True)]
        if classes is None:
            classes = [None] * len(inputs)
        given = [
            self._given(item, of_image, kinds)
            for item, of_image, kinds in zip(inputs, boxes, classes, strict=True)
        ]
        drawn = self.model.inference(
            inputs, [self._resized(x, item) for x, item in zip(given, inputs, strict=True)], False
        )
        return [
            self._put_back(self._finish(x, item), original)
            for x, item, original in zip(drawn, inputs, given, strict=True)
        ]

    def _input(self, image: np.ndarray, color_order: str) -> dict:
        """What Detectron2's models read of an image."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(
                f"An image is an array of {image.dtype} {list(image.shape)}; give uint8 [H, W, 3]."
            )
        if color_order not in ("BGR", "RGB"):
            raise UserError(f"color_order is '{color_order}'; choose one of BGR, RGB.")
        if color_order != self.cfg.INPUT.FORMAT:
            image = image[:, :, ::-1]
        height, width = image.shape[:2]
        resized = self._resize.get_transform(image).apply_image(np.ascontiguousarray(image))
        pixels = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        return {"image": pixels, "height": height, "width": width}

    def _given(self, item: dict, boxes, classes) -> Instances:
        """Boxes and classes of the caller as instances in pixels of the image."""
        boxes = torch.as_tensor(np.asarray(boxes, dtype=np.float32)).reshape(-1, 4)
        if classes is None and len(self.class_names) == 1:
            classes = np.zeros(len(boxes), dtype=np.int64)
        if classes is None:
            raise UserError("Boxes are given without classes; give the class of every box.")
        classes = torch.as_tensor(np.asarray(classes, dtype=np.int64)).reshape(-1)
        if len(classes) != len(boxes):
            raise UserError(f"{len(boxes)} boxes have {len(classes)} classes; give one for each.")
        num_classes = self.cfg.MODEL.ROI_HEADS.NUM_CLASSES
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
            raise UserError(f"A class is outside of 0 to {num_classes - 1}, the model's classes.")
        return Instances(
            (item["height"], item["width"]),
            pred_boxes=Boxes(boxes),
            pred_classes=classes,
            scores=torch.ones(len(boxes)),
        )

    def _resized(self, given: Instances, item: dict) -> Instances:
        """The same in pixels of the model's input, each with its number."""
        height, width = item["image"].shape[1:]
        boxes = given.pred_boxes.clone()
        boxes.scale(width / item["width"], height / item["height"])
        return Instances(
            (height, width),
            pred_boxes=boxes,
            pred_classes=given.pred_classes,
            scores=given.scores,
            row=torch.arange(len(given)),
        )

    def _finish(self, found: Instances, item: dict) -> Instances:
        """Detections in pixels of the image, their masks thresholded a few at a time."""
        if found.has("pred_masks"):
            found.mask_scores = mask_scores(found.pred_masks)
        size = item["height"], item["width"]
        parts = [
            detector_postprocess(found[first : first + _PASTED_AT_A_TIME], *size).to("cpu")
            for first in range(0, max(len(found), 1), _PASTED_AT_A_TIME)
        ]
        return Instances.cat(parts)

    @staticmethod
    def _put_back(drawn: Instances, given: Instances) -> Instances:
        """What was drawn beside the boxes as given; zeros (empty masks) for those without area."""
        for name, drawn_values in drawn.get_fields().items():
            if name != "row" and not given.has(name):
                values = drawn_values.new_zeros(len(given), *drawn_values.shape[1:])
                values[drawn.row] = drawn_values
                given.set(name, values)
        return given


def mask_scores(masks: Tensor | ROIMasks) -> Tensor:
    """How sure a model is of its masks: the mean probability of the cells that it marks.

    Args:
        masks: probabilities, [N, 1, M, M] or Detectron2's ``ROIMasks`` of [N, M, M].

    Returns:
        float [N]; 0 for a mask that marks nothing.
    """
    cells = (masks.tensor if isinstance(masks, ROIMasks) else masks).flatten(1).float()
    marked = cells >= 0.5
    return (cells * marked).sum(dim=1) / marked.sum(dim=1).clamp(min=1)
