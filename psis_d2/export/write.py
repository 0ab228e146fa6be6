"""From a trained model to a TorchScript or ONNX file that was compared with it."""

from __future__ import annotations

import inspect
import io
import json
import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import psis_d2
from psis_d2.engine.export import has_teacher
from psis_d2.errors import UserError, check_choice
from psis_d2.export.exported import METADATA, ExportedModel, differences, resize
from psis_d2.export.support import FORMATS, support_of
from psis_d2.export.trace import TraceableModel, tracing_conditions
from psis_d2.files import written_at_once
from psis_d2.inference.predictor import Predictor
from psis_d2.optional import require

import numpy as np
import torch
import torchvision
from torch import Tensor

OPSET = 17
"""Of ONNX. From 16 on RoIAlign is Detectron2's, and 17 is what runtimes of 2022 read."""

TOLERANCES = {
    "torchscript": {"boxes": 1e-2, "classes": 0, "scores": 1e-4, "masks": 1e-3, "mask_boxes": 1e-2},
    "onnx": {"boxes": 5e-2, "classes": 0, "scores": 1e-3, "masks": 5e-3, "mask_boxes": 5e-2},
}
"""How far outputs may be from the model's: boxes in pixels, scores and masks in probability.

A TorchScript file runs PyTorch's own operators, with our ops in another order of additions; ONNX
Runtime has its own convolutions.
"""

_OUTPUTS = {
    "boxes": "float32 [N, 4], XYXY in pixels of the input",
    "classes": "int64 [N], by decreasing score",
    "scores": "float32 [N]",
    "masks": "float32 [N, M, M], probabilities",
    "mask_boxes": "float32 [N, 4], what the masks cover, XYXY in pixels of the input",
}


@dataclass(frozen=True)
class Exported:
    """What :func:`export_model` did."""

    path: str
    metadata: dict
    """What is in the file beside the graph."""
    differences: dict[str, float]
    """Largest differences from the model's own outputs, see :data:`TOLERANCES`."""


def load_for_export(
    weights: str, *, config=None, opts: Sequence[str] = (), device: str = "cpu"
) -> Predictor:
    """A trained model, without the teacher that it does not predict with.

    Args:
        weights, config, opts, device: see :class:`psis_d2.Predictor`.
    """
    predictor = Predictor(weights, config=config, opts=opts, device=device)
    if has_teacher(predictor.cfg) and predictor.cfg.PSIS.TEACHER_STUDENT.PREDICT_WITH == "student":
        opts = [*opts, "PSIS.TEACHER_STUDENT.STUDENT_ONLY", "True"]
        predictor = Predictor(weights, config=config, opts=opts, device=device)
    return predictor


def export_model(
    predictor: Predictor,
    output: str,
    file_format: str = "torchscript",
    image: np.ndarray | None = None,
) -> Exported:
    """Write a model as a graph that needs nothing of this project.

    The graph is traced on an image, and holds for images of any size and number of objects. Before
    the file gets its name, it is compared with the model: on that image, and on it turned by 90
    degrees and smaller.

    Args:
        predictor: the model, on the device that a TorchScript file will run on.
        output: path of the file.
        file_format: one of :data:`FORMATS`.
        image: uint8 [H, W, 3] BGR, in which the model finds objects; None = noise, in which a
            trained model may find none.

    Raises:
        UserError: the model cannot be exported, the image shows no object, a library is missing, or
            the graph gives something else than the model.
    """
    check_choice("The format", file_format, tuple(FORMATS))
    row = support_of(predictor.cfg)
    if row is not None and (why := row.reason(file_format)):
        raise UserError(
            f"A model such as {row.config} cannot be exported as {FORMATS[file_format]}: {why}."
        )
    if file_format == "onnx":
        require("onnx")
        require("onnxruntime")  # to compare
    sample = _sample(predictor, image)
    model = TraceableModel(predictor.model).eval()
    with torch.no_grad():
        model(sample)  # now it knows its outputs
    metadata = _metadata(predictor, model, file_format)
    writer = {"torchscript": _torchscript, "onnx": _onnx}[file_format]
    content = writer(model, sample, metadata)
    gaps = _compare(model, ExportedModel(content), sample, TOLERANCES[file_format])
    with written_at_once(output, binary=True) as file:
        file.write(content)
    return Exported(output, metadata, gaps)


def _sample(predictor: Predictor, image: np.ndarray | None) -> Tensor:
    """An input of the model, uint8 [3, H, W] on its device."""
    node = predictor.cfg.INPUT
    shortest = node.MIN_SIZE_TEST
    if image is None:
        sides = (shortest or 480, 4 * (shortest or 480) // 3, 3)
        image = np.random.default_rng(0).integers(0, 256, sides, dtype=np.uint8)
    if node.FORMAT != "BGR":
        image = image[:, :, ::-1]
    return resize(image, shortest, node.MAX_SIZE_TEST).to(predictor.model.device)


def _metadata(predictor: Predictor, model: TraceableModel, file_format: str) -> dict:
    cfg = predictor.cfg
    return {
        "format": "psis_d2 export 1",
        "class_names": predictor.class_names,
        "seen_ids": sorted(predictor.seen_ids),
        "input": {
            "name": "image",
            "shape": "[3, height, width], any size",
            "dtype": "uint8" if file_format == "onnx" else "uint8 or float32, 0 to 255",
            "color_order": cfg.INPUT.FORMAT,
            "shortest_edge": cfg.INPUT.MIN_SIZE_TEST,
            "longest_edge": cfg.INPUT.MAX_SIZE_TEST,
            "resizing": "bilinear, to shortest_edge, at most to longest_edge, before the graph",
        },
        "outputs": {name: _OUTPUTS[name] for name in model.output_names},
        "mask_grid": model.mask_grid,
        "mask_stride": model.mask_stride,
        "fingerprint": predictor.fingerprint,
        "config": cfg.dump(),
        "versions": {
            "psis_d2": psis_d2.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
        },
    }


def _torchscript(model: TraceableModel, sample: Tensor, metadata: dict) -> bytes:
    with tracing_conditions(model.model):
        traced = torch.jit.trace(model, sample, check_trace=False)  # we check, on more than it
    file = io.BytesIO()
    torch.jit.save(traced, file, _extra_files={METADATA: json.dumps(metadata)})
    return file.getvalue()


def _onnx(model: TraceableModel, sample: Tensor, metadata: dict) -> bytes:
    onnx = require("onnx")
    names = list(model.output_names)
    axes = {name: {0: "objects"} for name in names} | {"image": {1: "height", 2: "width"}}
    if model.mask_grid == "image":
        axes["masks"] |= {1: "mask_height", 2: "mask_width"}
    # The exporter of TorchScript graphs: Detectron2 is written to be traced, and the newer one
    # wants to know the number of objects. What PyTorch calls it has changed.
    options = {}
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        options["dynamo"] = False
    torch.onnx.register_custom_op_symbolic("aten::exp2", _exp2, OPSET)
    file = io.BytesIO()
    level = logging.getLogger("torch.onnx").level
    with tracing_conditions(model.model):
        torch.onnx.export(
            model,
            (sample,),
            file,
            opset_version=OPSET,
            input_names=["image"],
            output_names=names,
            dynamic_axes=axes,
            **options,
        )
    logging.getLogger("torch.onnx").setLevel(level)
    graph = onnx.load_model_from_string(file.getvalue())
    onnx.helper.set_model_props(graph, {METADATA: json.dumps(metadata)})
    return graph.SerializeToString()


def _exp2(graph, x):
    """2 to the power of x, which PyTorch's exporter lacks."""
    return graph.op("Pow", graph.op("Constant", value_t=torch.tensor(2.0)), x)


def _compare(
    model: TraceableModel, exported: ExportedModel, sample: Tensor, tolerances: dict[str, float]
) -> dict[str, float]:
    """Largest differences on three images of different sizes.

    Raises:
        UserError: one of them is beyond its tolerance.
    """
    turned = sample.transpose(1, 2).contiguous()
    smaller = sample[:, : 3 * sample.shape[1] // 4].contiguous()
    largest = dict.fromkeys(model.output_names, 0.0)
    for image in (sample, turned, smaller):
        with torch.no_grad():
            expected = dict(zip(model.output_names, model(image), strict=True))
        found = {name: x.to(image.device) for name, x in exported(image).items()}
        for name, gap in differences(expected, found).items():
            largest[name] = max(largest[name], gap)
    for name, gap in largest.items():
        if not gap <= tolerances[name]:
            raise UserError(
                f"The exported graph is not equal to the model: {name} differ by {gap:.2g}, "
                f"more than {tolerances[name]:g}; export it on another image, or tell us."
            )
    return largest
