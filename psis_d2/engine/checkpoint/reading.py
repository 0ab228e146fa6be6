"""Any file into the content of a checkpoint, or one sentence that says what the file is.

Nothing in a file is run: PyTorch's files are read with ``weights_only``, other pickles by
`unpickling`, unless the user trusts them.
"""

import contextlib
import json
import os
import pickle
import re
import warnings
import zipfile
from typing import Any

from psis_d2.engine.checkpoint.unpickling import ForeignCode, read_pickle
from psis_d2.errors import UserError

import numpy as np
import torch
from detectron2.utils.file_io import PathManager

TRUST_FLAG = "--trust-checkpoint"

_WAY_OUT = "give a .pth file that psis_d2 or Detectron2 wrote, or a .pkl of Detectron2's model zoo"
# The number that PyTorch's files before version 1.6 begin with, as a pickle.
_OLD_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
# How files begin that people take for weights.
_OTHER_KINDS = {
    b"version https://git-lfs": "a git LFS pointer, not the file (git lfs pull fetches it)",
    b"\x89HDF": "an HDF5 file, as Keras writes them",
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
    b"\x93NUMPY": "a single NumPy array",
    b"GGUF": "a GGUF file",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"%PDF": "a PDF document",
    b"\x7fELF": "a program",
    b"#!": "a script",
}


class DamagedCheckpoint(UserError):
    """A file is not what was written: cut off, empty or altered. Another one may be whole."""


def read_file(path: str, trust: bool = False, lazy: bool = False) -> dict:
    """The content of a file of weights, of whatever kind, as it is in there.

    Args:
        path: a local file.
        trust: run what code the file holds, if it cannot be read without.
        lazy: leave tensors on the disk until they are looked at, where the format can.

    Raises:
        DamagedCheckpoint: the file is empty, cut off or altered.
        UserError: it cannot be opened, is something else, or holds code that is not trusted.
    """
    try:
        head = _head(path)
        if not head:
            raise DamagedCheckpoint(f"The checkpoint {path} is empty; give another file.")
        if kind := _other_kind(path, head):
            raise UserError(f"The checkpoint {path} is {kind}; {_WAY_OUT}.")
        if _is_safetensors(path, head):
            content = _read_safetensors(path)
        elif head.startswith(b"PK\x03\x04"):
            _check_archive(path)
            content = _read_torch(path, trust, lazy)
        elif head.startswith(_OLD_TORCH):
            content = _read_torch(path, trust)
        else:
            content = _read_pickle(path, head, trust)
    except OSError as error:
        raise UserError(
            f"The checkpoint {path} cannot be read ({error.strerror or error}); check the path."
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"The checkpoint {path} holds a {type(content).__name__}, not weights by their names; "
            f"{_WAY_OUT}."
        )
    return content


def _head(path: str) -> bytes:
    if os.path.isdir(path):
        raise UserError(f"The checkpoint {path} is a folder; give a file in it.")
    if not os.path.exists(path):
        raise UserError(
            f"The checkpoint {path} does not exist; give an existing file as MODEL.WEIGHTS."
        )
    if not os.path.isfile(path):
        raise UserError(f"The checkpoint {path} is not a file; {_WAY_OUT}.")
    with open(path, "rb") as file:
        return file.read(1024)


def _other_kind(path: str, head: bytes) -> str:
    """What a file is that certainly holds no weights for us, in words; "" otherwise."""
    for beginning, kind in _OTHER_KINDS.items():
        if head.startswith(beginning):
            return kind
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "a web page, not a file of weights (the download was turned away)"
    if head[257:262] == b"ustar":
        return "a tar archive (unpack it)"
    if path.endswith(".onnx") or (head[:1] == b"\x08" and b"pytorch" in head[:64]):
        return "an ONNX model"
    return ""


def local_file(path: str) -> str:
    """A file on this machine, downloaded if `path` is an address.

    Raises:
        UserError: it cannot be.
    """
    if "://" not in path:
        return path  # whether it is there is said when it is read
    try:
        return PathManager.get_local_path(path)
    except Exception as error:  # of urllib, sockets, and handlers that are not there
        reason = getattr(error, "reason", None) or str(error).splitlines()[0]
        raise UserError(
            f"The weights {path} cannot be downloaded ({reason}); download them elsewhere and give "
            "the file as MODEL.WEIGHTS, or train from random weights with MODEL.WEIGHTS '' and a "
            "norm that learns (MODEL.RESNETS.NORM BN)."
        ) from error


# ------------------------------------------------------------------------------- formats


def _check_archive(path: str) -> None:
    """Make sure that a zip file is PyTorch's weights, and undamaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(name.endswith("/constants.pkl") for name in names):
                raise UserError(
                    f"The checkpoint {path} is a TorchScript program, which would run; save the "
                    "model's state_dict() instead."
                )
            if not any(name.endswith("data.pkl") for name in names):
                kind = "NumPy's arrays" if any(n.endswith(".npy") for n in names) else "other files"
                raise UserError(
                    f"The checkpoint {path} is a zip archive of {kind}, not of PyTorch's weights; "
                    f"{_WAY_OUT}."
                )
            # The names and numbers; tensors have digests, see entry.py, or else are read below.
            record = next(name for name in names if name.endswith("data.pkl"))
            sealed = b"digests" in archive.read(record)
            broken = None if sealed else archive.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise _damaged(path, str(error)) from error
    if broken:
        raise _damaged(path, f"the checksum of {broken} is wrong")


def _read_torch(path: str, trust: bool, lazy: bool = False) -> Any:
    try:
        with _numpy_numbers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations, of old files' storages
            options = {"mmap": True} if lazy else {}
            return torch.load(path, map_location="cpu", weights_only=not trust, **options)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        name = _named_in(error)
        if name and not trust:
            raise _foreign(path, name) from None
        raise _damaged(path, _first_line(error)) from error
    except Exception as error:
        raise _damaged(path, _first_line(error)) from error


def _numpy_numbers() -> contextlib.AbstractContextManager:
    """Let PyTorch read NumPy's numbers, which Detectron2's own checkpoints may hold."""
    if not hasattr(torch.serialization, "safe_globals"):  # before version 2.5
        return contextlib.nullcontext()
    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")]
    return torch.serialization.safe_globals([scalar, np.dtype, *kinds])


def _named_in(error: Exception) -> str:
    """The function or class that PyTorch has turned down."""
    match = re.search(r"Unsupported \w+:? (?:GLOBAL )?([\w.]+)", str(error))
    return match[1] if match else ""


def _read_pickle(path: str, head: bytes, trust: bool) -> Any:
    try:
        with open(path, "rb") as file:
            if trust:
                return pickle.load(file, encoding="latin1")
            return read_pickle(file, os.path.getsize(path))
    except OSError:
        raise
    except ForeignCode as error:
        raise _foreign(path, str(error)) from None
    except Exception as error:
        if head[:1] == b"\x80":
            raise _damaged(path, _first_line(error)) from error
        kind = "text" if _is_text(head) else "neither PyTorch's nor a pickle"
        raise DamagedCheckpoint(f"The checkpoint {path} is {kind}; {_WAY_OUT}.") from error


def _is_text(head: bytes) -> bool:
    try:
        return head[:1000].decode("ascii").isprintable() or b"\n" in head
    except UnicodeDecodeError:
        return False


def _is_safetensors(path: str, head: bytes) -> bool:
    if path.endswith(".safetensors"):
        return True
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < os.path.getsize(path)


def _read_safetensors(path: str) -> dict:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise UserError(
            f"The checkpoint {path} is in the safetensors format; install it (pip install "
            f"safetensors), or {_WAY_OUT}."
        ) from None
    try:
        with safe_open(path, framework="pt") as file:
            content = {"model": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
            if entry := (file.metadata() or {}).get("psis_d2"):  # published models have it there
                content["psis_d2"] = json.loads(entry)
        return content
    except (SafetensorError, ValueError) as error:
        raise _damaged(path, _first_line(error)) from error


# ------------------------------------------------------------------------------ sentences


def _damaged(path: str, why: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(
        f"The checkpoint {path} is damaged or not PyTorch's ({why.rstrip('.')}); give another file "
        "or an intact copy."
    )


def _foreign(path: str, name: str) -> UserError:
    return UserError(
        f"The checkpoint {path} names {name}, which is more than weights and might run on loading; "
        f"nothing of it was run. If you know where the file comes from, {TRUST_FLAG} loads it."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    # PyTorch advises to load the file without its safeguard.
    return lines[0].split(" In PyTorch 2.6")[0].split(". Please")[0][:200]
