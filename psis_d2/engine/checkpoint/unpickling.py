"""Pickles of arrays, read without running anything that a file names.

A pickle is a program: its GLOBAL instruction names any function of any module, and REDUCE calls it.
Here every name but a few is refused, and those few lead to stand-ins of this file, not to NumPy's
own functions: an array's state as a hostile file may give it (an object array over raw bytes) would
reach memory that is none.
"""

import io
import pickle
import re
from collections import OrderedDict
from typing import Any, BinaryIO

import numpy as np

# Booleans, whole numbers, floats, complex numbers; neither objects nor records.
_NUMBERS = re.compile(r"[<>|=]?[biufc]\d{1,2}")


class ForeignCode(pickle.UnpicklingError):
    """A pickle names something beyond arrays and plain containers. ``str(error)`` is its name."""


def read_pickle(file: BinaryIO, size: int) -> Any:
    """Read a pickle of arrays, numbers, texts and plain containers, of any protocol.

    Texts of Python 2 are decoded as latin-1, which is what Detectron2's model zoo needs.

    Args:
        file: open at the pickle's beginning.
        size: bytes that may be read; an instruction that wants more ends the reading.

    Returns:
        Its content, with NumPy arrays that own their memory, in this machine's byte order.

    Raises:
        ForeignCode: the pickle names anything else; nothing of it was called.
        Exception: of many kinds, if the content is damaged or no pickle.
    """
    return _resolve(_ArrayUnpickler(_Bounded(file, size)).load(), {})


class _DType:
    """Stands for ``numpy.dtype``."""

    def __init__(self, kind: Any, align: Any = False, copy: Any = False):
        if not isinstance(kind, str) or not _NUMBERS.fullmatch(kind):
            raise ForeignCode(f"an array of {kind!r}")
        self.value = np.dtype(kind)

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """Stands for ``numpy.ndarray``."""

    value = None

    def __setstate__(self, state: tuple) -> None:
        shape, dtype, is_fortran, content = state[-4:]
        if isinstance(content, list):
            raise ForeignCode("an array of objects")
        if isinstance(content, str):  # bytes of Python 2
            content = content.encode("latin1")
        self.value = _array(content, dtype, shape, "F" if is_fortran else "C")


def _array(content, dtype: _DType, shape: tuple, order: str = "C") -> np.ndarray:
    array = np.frombuffer(content, dtype=dtype.value).reshape(shape, order=order)
    return array.astype(dtype.value.newbyteorder("="))  # a copy: the buffer is read-only


def _reconstruct(subtype: type, shape: tuple, dtype: Any) -> _Array:
    """Stands for the function that begins an array, whose state comes later."""
    return _Array()


def _scalar(dtype: _DType, content: Any) -> Any:
    if isinstance(content, str):
        content = content.encode("latin1")
    return _array(content, dtype, ())[()].item()


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    """Stands for ``_codecs.encode``, by which Python 3 writes bytes in old protocols."""
    if encoding not in ("latin1", "latin-1"):
        raise ForeignCode(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


def _bytes(content: bytes | str = b"", encoding: str = "latin1") -> bytes:
    return bytes(_encode(content, encoding) if isinstance(content, str) else memoryview(content))


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _KNOWN[f"{_core}.multiarray", "scalar"] = _scalar
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _array
for _builtins in ("builtins", "__builtin__"):  # Python 3 and 2
    _KNOWN[_builtins, "bytes"] = _KNOWN[_builtins, "bytearray"] = _bytes
    _KNOWN[_builtins, "set"] = set


# The one that is written in Python: the other enlarges its memo to whatever index random bytes ask
# for, gigabytes.
class _ArrayUnpickler(pickle._Unpickler):
    def __init__(self, file: "_Bounded"):
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise ForeignCode(f"{module}.{name}") from None

    def get_extension(self, code: int) -> None:
        raise ForeignCode(f"extension {code}")


class _Bounded(io.RawIOBase):
    """A file that fails on reading beyond its end, instead of making room for it."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._left = file, size

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._left:
            raise EOFError("the pickle ends early")
        content = self._file.read(size)
        self._left -= len(content)
        return content

    def readline(self, size: int = -1) -> bytes:
        line = self._file.readline()
        self._left -= len(line)
        return line


def _resolve(value: Any, done: dict[int, Any]) -> Any:
    """Put arrays in place of their stand-ins; `done` keeps cycles finite."""
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, (_Array, _DType)):
        return value.value
    if isinstance(value, dict):
        done[id(value)] = value
        for key in list(value):
            value[key] = _resolve(value[key], done)
    elif isinstance(value, list):
        done[id(value)] = value
        value[:] = [_resolve(item, done) for item in value]
    elif isinstance(value, tuple):
        return tuple(_resolve(item, done) for item in value)
    return value
