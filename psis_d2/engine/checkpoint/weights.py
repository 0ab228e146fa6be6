"""Weights by their names, out of whatever a file holds them in."""

from collections.abc import Mapping
from typing import Any

from psis_d2.engine.checkpoint.entry import KEY, check_entry, verify
from psis_d2.engine.checkpoint.reading import read_file
from psis_d2.errors import UserError

import numpy as np
import torch


def read_checkpoint(path: str, trust: bool = False) -> dict:
    """Read a file of weights: psis_d2's, Detectron2's, its model zoo's, a bare ``state_dict``.

    Args:
        path: a local file.
        trust: run what code the file holds, if it cannot be read without.

    Returns:
        A dict with the weights, tensors on the CPU by their names, at "model", and with whatever
        else is in the file. "matching_heuristics" says that the names are another library's.

    Raises:
        DamagedCheckpoint: the file is empty, cut off or altered.
        UserError: it is no file of weights, holds code, or numbers that are not finite.
    """
    content = read_file(path, trust)
    check_entry(content.get(KEY), path)
    verify(content, path)
    content = _with_model(content, path)
    content["model"] = _tensors(content["model"], path)
    return content


def _with_model(content: dict, path: str) -> dict:
    """The file's content with its weights at "model"."""
    if "model" in content:
        return content
    if "model_state" in content:  # pycls
        weights = content["model_state"]
        author = "pycls"
    elif path.endswith(".pkl") and not _are_tensors(
        content
    ):  # Detectron and Caffe2; detection models have "blobs"
        weights = content.get("blobs", content)
        author = "Caffe2"
    elif isinstance(content.get("state_dict"), Mapping):
        return {"model": content["state_dict"]}
    else:
        return {"model": content}
    if isinstance(weights, Mapping):
        left_out = ("num_batches_tracked", "_momentum")
        weights = {k: v for k, v in weights.items() if not str(k).endswith(left_out)}
    return {"model": weights, "__author__": author, "matching_heuristics": True}


def _are_tensors(content: Mapping) -> bool:
    return all(isinstance(value, torch.Tensor) for value in content.values())


def _tensors(weights: Any, path: str) -> dict[str, torch.Tensor]:
    """The weights as tensors; anything else is refused."""
    if not isinstance(weights, Mapping):
        raise _no_weights(path, f"a {type(weights).__name__} where weights by their names belong")
    if not weights:
        raise _no_weights(path, "no weights")
    for name, value in weights.items():
        if not isinstance(name, str):
            raise _no_weights(path, f"a weight whose name is {name!r}")
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            value = weights[name] = torch.from_numpy(value)
        if not isinstance(value, torch.Tensor):
            raise _no_weights(path, f"a {type(value).__name__} as the weight {name}")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise _no_weights(path, f"a sparse, quantized or empty tensor as the weight {name}")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(
                f"The checkpoint {path} has numbers that are not finite in {name}: its training "
                "has diverged; give an earlier one."
            )
    return weights


def _no_weights(path: str, what: str) -> UserError:
    return UserError(
        f"The checkpoint {path} holds {what}; give a file of weights, a state_dict() or a "
        "checkpoint of Detectron2."
    )
