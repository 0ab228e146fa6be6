"""Files of weights, ``.pth`` or ``.safetensors``, both with what they say of themselves.

A ``.safetensors`` file has tensors only; the entry is json in its header, under ``psis_d2``. The
content is the same in both: {"model": {name: tensor}, "psis_d2": {...}}.
"""

import importlib
import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

from psis_d2.errors import UserError
from psis_d2.files import written_at_once
from psis_d2.model_zoo.download import cache_folder

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".pth", ".safetensors")
KEY = "psis_d2"


def read_weights(path: str | Path) -> dict:
    """Read a file without running code that it may hold; tensors are on the CPU.

    Raises:
        UserError: it is neither of the two kinds, cannot be read, or would run code.
    """
    import torch

    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            with _safetensors().safe_open(str(path), framework="pt") as file:
                model = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                entry = json.loads((file.metadata() or {}).get(KEY, "{}"))
            return {"model": model, KEY: entry}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than weights, which is not read, as it may run code; give a "
            "checkpoint of psis_d2."
        ) from error
    except OSError as error:
        raise UserError(f"Cannot read {path} ({error.strerror or error}).") from error
    except Exception as error:  # of torch's and safetensors' own making
        if isinstance(error, UserError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is no file of weights ({reason}).") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"{path} holds no model; give a checkpoint of psis_d2.")
    return content


def write_weights(path: str | Path, content: dict) -> None:
    """Write a file whose name says of which kind it is, as a whole or not at all.

    Args:
        path: ends in ``.pth`` or ``.safetensors``.
        content: "model" and, optionally, "psis_d2".

    Raises:
        UserError: the name ends otherwise, or the file cannot be written.
    """
    import torch

    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} ends in neither {' nor '.join(SUFFIXES)}; rename it.")
    entry = content.get(KEY, {})
    try:
        with written_at_once(str(path), binary=True) as file:
            if path.suffix == ".safetensors":
                metadata = {"format": "pt", KEY: json.dumps(entry)}
                serialize = _safetensors("safetensors.torch").save
                file.write(serialize(_separate(content["model"]), metadata=metadata))
            else:  # to a file, not a name, on which the content would depend
                torch.save(content, file)
    except OSError as error:
        raise UserError(
            f"Cannot write {path} ({error.strerror or error}); choose another folder."
        ) from error


def as_pth(path: Path) -> Path:
    """A file that Detectron2's own checkpointer reads: `path`, or a copy of it in the cache.

    Args:
        path: ``.safetensors`` files are converted, at every call: nobody vouches for an older copy.

    Raises:
        UserError: it cannot be read, or the copy cannot be written.
    """
    if path.suffix != ".safetensors":
        return path
    copy = cache_folder() / "converted" / f"{path.stem}.pth"
    write_weights(copy, read_weights(path))
    return copy


def _separate(model: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Tensors without shared memory, which safetensors refuses."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in model.items()}


def _safetensors(module: str = "safetensors"):
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            "Files in .safetensors need the package safetensors, which is not installed; run: pip "
            "install safetensors"
        ) from error
