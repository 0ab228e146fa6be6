"""Masks from a promptable model (Segment Anything), one box a prompt.

Such masks are another way to get from boxes to masks: a file of them can be compared with the
models of this project, or train them.
"""

from __future__ import annotations

import hashlib
import os

from psis_d2.errors import UserError

import numpy as np
import torch
from detectron2.structures import Boxes, Instances


class PromptedPredictor:
    """A promptable model with the interface that ``autolabel`` asks of a predictor.

    Args:
        model: an object as ``segment_anything.SamPredictor`` and ``sam2``'s
            ``SAM2ImagePredictor`` are: ``set_image(rgb)`` and ``predict(box=..., multimask_output=
            False)``, which returns masks [1, H, W], their scores [1] and low-resolution logits.
        source: what annotations name as the source of their masks.
        fingerprint: a digest of the model's weights.
    """

    class_names = ()
    class_agnostic = True
    draws_masks = True

    def __init__(self, model, source: str, fingerprint: str):
        self.model = model
        self.source = source
        self.fingerprint = fingerprint

    @torch.no_grad()
    def __call__(self, image: np.ndarray, boxes=None, classes=None) -> Instances:
        """The masks of boxes, see :meth:`psis_d2.Predictor.__call__`; the image is BGR."""
        if boxes is None:
            raise UserError(f"{self.source} draws masks in boxes only; give a file with boxes.")
        boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
        masks = np.zeros((len(boxes), *image.shape[:2]), dtype=bool)
        scores = np.zeros(len(boxes), dtype=np.float32)
        self.model.set_image(np.ascontiguousarray(image[:, :, ::-1]))
        for row, box in enumerate(boxes):
            drawn, quality, _ = self.model.predict(box=box, multimask_output=False)
            masks[row] = np.asarray(drawn)[0] > 0
            # The predicted IoU of some models exceeds 1 by a little.
            scores[row] = min(max(float(np.asarray(quality).ravel()[0]), 0.0), 1.0)
        return Instances(
            image.shape[:2],
            pred_boxes=Boxes(torch.from_numpy(boxes)),
            pred_classes=torch.as_tensor(np.asarray(classes, dtype=np.int64)),
            scores=torch.ones(len(boxes)),
            pred_masks=torch.from_numpy(masks),
            mask_scores=torch.from_numpy(scores),
        )


def load_sam(kind: str, checkpoint: str, device: str) -> PromptedPredictor:
    """A Segment Anything model.

    Args:
        kind: ``vit_b``, ``vit_l`` or ``vit_h`` (Kirillov et al., ICCV 2023), or a config of SAM 2
            such as ``configs/sam2.1/sam2.1_hiera_b+.yaml`` (Ravi et al., 2024).
        checkpoint: the file of its weights.
        device: such as "cpu" or "cuda".

    Raises:
        UserError: the package is not installed, or there is no such file or kind.
    """
    if not os.path.isfile(checkpoint):
        raise UserError(
            f"The weights {checkpoint} do not exist; download a checkpoint of Segment Anything."
        )
    package = "sam2" if kind.endswith(".yaml") else "segment-anything"
    try:
        if package == "sam2":
            from sam2.build_sam import build_sam2
            from sam2.sam2_image_predictor import SAM2ImagePredictor

            model = SAM2ImagePredictor(build_sam2(kind, checkpoint, device=device))
        else:
            from segment_anything import SamPredictor, sam_model_registry

            if kind not in sam_model_registry:
                kinds = ", ".join(sam_model_registry)
                raise UserError(f"--kind is '{kind}'; choose one of {kinds}, or a yaml of sam2.")
            model = SamPredictor(sam_model_registry[kind](checkpoint=checkpoint).to(device))
    except ImportError as error:
        raise UserError(
            f"{package} is not installed ({error}); run pip install {package}."
        ) from error
    digest = hashlib.sha256(kind.encode())
    with open(checkpoint, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return PromptedPredictor(model, package, digest.hexdigest())
