"""What a checkpoint says of itself: categories, split, config, versions, and a digest of it all."""

import hashlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psis_d2
from psis_d2.engine.checkpoint.reading import DamagedCheckpoint, local_file, read_file
from psis_d2.errors import UserError

import detectron2
import numpy as np
import torch

KEY = "psis_d2"
"""Key of the entry in a checkpoint file."""
FORMAT = 1
"""Version of the entry. A reader refuses those of a later program."""

_LISTS = {"class_names": str, "seen_names": str, "seen_ids": int}


def make_entry(
    class_names: Sequence[str], seen_ids: Sequence[int] | None, config: str, split: str
) -> dict:
    """The entry of a file that is about to be written.

    Args:
        class_names: names of the model's categories, by contiguous id; empty if unknown.
        seen_ids: contiguous ids of the seen categories; None if unknown.
        config: the whole config as YAML text.
        split: the value of ``PSIS.SEEN_CLASSES``.

    Returns:
        A dict of plain values: ``format``, ``class_names``, ``seen_ids``, ``seen_names``,
        ``split``, ``config``, ``versions``.
    """
    seen = {}
    if seen_ids is not None:
        seen = {"seen_ids": list(seen_ids)}
        seen["seen_names"] = [class_names[i] for i in seen_ids] if class_names else []
    return {
        "format": FORMAT,
        "class_names": list(class_names),
        **seen,
        "split": split,
        "config": config,
        "versions": {
            "psis_d2": psis_d2.__version__,
            "detectron2": str(detectron2.__version__),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def read_entry(path: str) -> dict:
    """What a checkpoint says of itself, without its tensors; {} for files that say nothing.

    Args:
        path: a file or an address.

    Raises:
        UserError: the file is not there, is no checkpoint or its entry is of the wrong types.
    """
    return check_entry(read_file(local_file(path), lazy=True).get(KEY), path)


def check_entry(entry: Any, path: str) -> dict:
    """The entry of a file that was read, or {} if it has none.

    Files of earlier versions have the class names and the ids of the seen ones alone.

    Raises:
        UserError: it is of the wrong types or of a later version.
    """
    if entry is None:
        return {}
    if not isinstance(entry, dict):
        raise _wrong(path, f"is a {type(entry).__name__}")
    version = entry.get("format", 0)
    if not isinstance(version, int):
        raise _wrong(path, "has a format that is no number")
    if version > FORMAT:
        raise UserError(
            f"The checkpoint {path} was written by a later psis_d2 (format {version}, this one "
            f"reads up to {FORMAT}); update psis_d2."
        )
    for key, kind in _LISTS.items():
        value = entry.get(key, [])
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            raise _wrong(path, f"has {key} that are no list of {kind.__name__}")
    for key in ("config", "split"):
        if not isinstance(entry.get(key, ""), str):
            raise _wrong(path, f"has a {key} that is no text")
    names = entry.get("class_names", [])
    if len(set(names)) != len(names):
        raise _wrong(path, "names a class twice")
    if names and not all(0 <= i < len(names) for i in entry.get("seen_ids", [])):
        raise _wrong(path, "has seen_ids that are no ids of its classes")
    return entry


def seen_names(entry: Mapping) -> list[str] | None:
    """Names of the categories whose masks a checkpoint was trained with; None if it says nothing.

    They are in the order of the checkpoint's classes.
    """
    if "seen_ids" not in entry or not entry.get("class_names"):
        return None
    return [entry["class_names"][i] for i in entry["seen_ids"]]


def _wrong(path: str, what: str) -> UserError:
    return UserError(
        f"The checkpoint {path} has an entry '{KEY}' that psis_d2 did not write (it {what}); give "
        "another file, or one without that key."
    )


# ---------------------------------------------------------------------------------- digests


def seal(data: dict) -> None:
    """Store the digests of everything in a checkpoint in its entry, in place."""
    data[KEY]["digests"] = digests(data)


def verify(data: dict, path: str) -> None:
    """Compare a checkpoint with the digests in its entry, if it has them.

    Raises:
        DamagedCheckpoint: they differ, so that the file is not what was written.
    """
    entry = data.get(KEY)
    if not isinstance(entry, dict) or "digests" not in entry:
        return
    stored = entry["digests"]
    actual = digests(data)
    if stored != actual:
        stored = stored if isinstance(stored, dict) else {}
        wrong = [name for name in actual if stored.get(name) != actual[name]] or ["its digests"]
        more = f" and {len(wrong) - 1} more" * (len(wrong) > 1)
        raise DamagedCheckpoint(
            f"The checkpoint {path} is damaged: {wrong[0]}{more} is not what was written; give "
            "another file or an intact copy."
        )


def digests(data: Mapping) -> dict[str, str]:
    """SHA-256 of every tensor, by its place in nested containers, and one of all the rest.

    The place is the keys on the way to it, joined by slashes. A tensor's digest covers dtype,
    shape and values, in this machine's byte order. Digests that are stored in the data are left
    out.
    """
    result = {}
    rest = hashlib.sha256()
    for place, value in _leaves(data, ()):
        if isinstance(value, torch.Tensor):
            result["/".join(place)] = _digest(value)
            value = "tensor"
        rest.update(f"{place!r}={value!r}\n".encode())
    result["everything else"] = rest.hexdigest()
    return result


def _leaves(value: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Tensors and plain values with their places; containers give their kind and size."""
    if isinstance(value, Mapping):
        items = [(key if isinstance(key, str) else f"<{key!r}>", x) for key, x in value.items()]
        if place == (KEY,):
            items = [(key, item) for key, item in items if key != "digests"]
        yield place, f"{len(items)} keys"
        for key, item in items:
            yield from _leaves(item, (*place, key))
    elif isinstance(value, (list, tuple)):
        yield place, f"{type(value).__name__} of {len(value)}"
        for i, item in enumerate(value):
            yield from _leaves(item, (*place, str(i)))
    elif value is None or isinstance(value, (bool, int, float, str, bytes, torch.Tensor)):
        yield place, value
    else:  # its repr may be an address
        yield place, type(value).__name__


def _digest(tensor: torch.Tensor) -> str:
    tensor = tensor.detach().cpu()
    result = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    if tensor.numel():
        result.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return result.hexdigest()
