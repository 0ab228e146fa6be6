"""Run an exported file, and compare what it gives."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

from psis_d2.errors import UserError
from psis_d2.modeling.framed_masks import FramedMasks
from psis_d2.modeling.image_masks import ImageMasks
from psis_d2.optional import require

import numpy as np
import torch
import torchvision  # noqa: F401  (registers the operators that TorchScript files call)
from detectron2.data import transforms as T
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances, ROIMasks
from torch import Tensor

METADATA = "psis_d2.json"
"""Name of the entry in the file that describes the model, a json."""


class ExportedModel:
    """A file of ``psis-d2 export``: images in, tensors or objects out.

    It needs neither the config nor the classes of the model. A program without this project loads
    the file itself, with ``torch.jit.load`` or ONNX Runtime.

    Attributes:
        metadata: what the file says of the model, see ``docs/export.md``.
        class_names: names of the classes, by number.

    Args:
        source: the file's path, or its content. TorchScript runs on the device that it was exported
            on, ONNX on the CPU.

    Raises:
        UserError: there is no such file, or it is not one of ``psis-d2 export``.
    """

    def __init__(self, source: str | os.PathLike | bytes):
        name = "The content" if isinstance(source, bytes) else str(source)
        if not isinstance(source, bytes):
            if not Path(source).is_file():
                raise UserError(f"There is no file {name}; name one that psis-d2 export wrote.")
            source = Path(source).read_bytes()
        try:
            if source[:2] == b"PK":
                entries = {METADATA: ""}
                module = torch.jit.load(io.BytesIO(source), _extra_files=entries)
                self._run = _torchscript_runner(module)
                text = entries[METADATA]
            else:
                self._run, text = _onnx_runner(source)
            self.metadata = json.loads(text)
        except (RuntimeError, ValueError) as error:  # PyTorch's, and json's of nothing
            raise UserError(f"{name} is not a file of psis-d2 export; export the model.") from error
        self.class_names: list[str] = self.metadata["class_names"]

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """The tensors that the file gives, by name.

        Args:
            image: uint8 [3, H, W], resized and in the order of channels that the metadata say.
        """
        outputs = self._run(image)
        return dict(zip(self.metadata["outputs"], outputs, strict=True))

    def predict(self, image: np.ndarray, *, color_order: str = "BGR") -> Instances:
        """The objects of one image, in its pixels, as ``psis_d2.Predictor`` gives them.

        Args:
            image: uint8 [H, W, 3].
            color_order: of the image, "BGR" or "RGB".

        Returns:
            ``pred_boxes``, ``pred_classes``, ``scores`` and, if the model has masks,
            ``pred_masks``, bool [N, H, W].
        """
        if color_order != self.metadata["input"]["color_order"]:
            image = image[:, :, ::-1]
        pixels = resize(
            image, self.metadata["input"]["shortest_edge"], self.metadata["input"]["longest_edge"]
        )
        found = self(pixels)
        size = tuple(pixels.shape[1:])
        objects = Instances(
            size,
            pred_boxes=Boxes(found["boxes"]),
            pred_classes=found["classes"],
            scores=found["scores"],
        )
        grid = self.metadata["mask_grid"]
        if grid == "boxes":
            objects.pred_masks = ROIMasks(found["masks"])
        elif grid == "mask_boxes":
            objects.pred_masks = FramedMasks(found["masks"], found["mask_boxes"], size)
        elif grid == "image":
            objects.pred_masks = ImageMasks(found["masks"], self.metadata["mask_stride"], size)
        return detector_postprocess(objects, *image.shape[:2])


def resize(image: np.ndarray, shortest: int, longest: int) -> Tensor:
    """uint8 [H, W, 3] to uint8 [3, h, w], as images are resized at test time.

    Args:
        image: the picture.
        shortest: wanted length of the shortest edge in pixels, 0 for no resizing.
        longest: what the longest edge has at most.
    """
    transform = T.ResizeShortestEdge([shortest] * 2, longest).get_transform(image)
    resized = transform.apply_image(np.ascontiguousarray(image))
    return torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))


def differences(expected: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, float]:
    """The largest absolute difference of each output; infinite where shapes differ.

    Two outputs without an object are equal; only the size of the masks that they do not have may
    differ: 1 x 1 of the model.

    Args:
        expected, found: tensors by name.
    """
    result = {}
    for name, tensor in expected.items():
        other = found[name]
        if len(tensor) == len(other) == 0:
            result[name] = 0.0
        elif tensor.shape != other.shape:
            result[name] = float("inf")
        else:
            result[name] = (tensor.double() - other.double()).abs().max().item()
    return result


def _torchscript_runner(module: torch.jit.ScriptModule):
    @torch.no_grad()
    def run(image: Tensor) -> Sequence[Tensor]:
        return module(image)

    return run


def _onnx_runner(content: bytes):
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # not its advice on how graphs are written
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own classes, which it does not export
        raise ValueError(str(error)) from error

    def run(image: Tensor) -> Sequence[Tensor]:
        arrays = session.run(None, {"image": np.ascontiguousarray(image.cpu().numpy())})
        return [torch.from_numpy(x) for x in arrays]

    return run, session.get_modelmeta().custom_metadata_map.get(METADATA, "")
