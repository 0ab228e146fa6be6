"""Files that people give as weights: right, hostile, damaged, foreign, and none at all."""

import collections
import gzip
import io
import json
import pickle
import random
import struct
import types
import zipfile
from pathlib import Path

import psis_d2  # noqa: F401
from psis_d2.engine.checkpoint.entry import seal

import numpy as np
import pytest
import torch
from torch import nn

RIGHT = ""  # the expectation that a file loads, with the right values


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


WEIGHTS = model().state_dict()
ARRAYS = {name: tensor.numpy() for name, tensor in WEIGHTS.items()}


class Code:
    """Pickles as a call that leaves a file."""

    def __init__(self, path: Path, function=None):
        self.path, self.function = path, function or exec

    def __reduce__(self):
        if self.function is exec:
            return exec, (f"open({str(self.path)!r}, 'w').close()",)
        return self.function, (f"touch {self.path}",)


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def ours(**changes) -> bytes:
    entry = {"class_names": ["a", "b"], "seen_ids": [1]} | changes
    return saved({"model": WEIGHTS, "psis_d2": entry})


def sealed(change=lambda data: None) -> bytes:
    data = {"model": dict(WEIGHTS), "iteration": 5, "psis_d2": {"class_names": ["a", "b"]}}
    seal(data)
    change(data)
    return saved(data)


def with_weight(value) -> bytes:
    return saved({"model": {**WEIGHTS, "0.weight": value}})


def zoo(content, protocol=2) -> bytes:
    return pickle.dumps({"model": content, "__author__": "somebody"}, protocol)


def old_numpy_names(content: bytes) -> bytes:
    """Module names as NumPy 1 writes them; both are of any length in protocol 2."""
    return content.replace(b"numpy._core", b"numpy.core")


def python2() -> bytes:
    """What Python 2 wrote: arrays whose bytes are a str, numbers of Python 2's modules."""
    parts = [b"\x80\x02}U\x05model}("]
    for name, array in ARRAYS.items():
        raw = array.tobytes()
        parts += [b"U", bytes([len(name)]), name.encode()]
        parts += [b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"]
        shape = b"".join(b"K" + bytes([n]) for n in array.shape)
        parts += [b"(K\x01", b"(" + shape + b"t" if array.ndim else b")"]
        kind = array.dtype.str[1:].encode()
        parts += [b"cnumpy\ndtype\nU\x02", kind, b"K\x00K\x01\x87R(K\x03U\x01<NNN"]
        parts += [
            b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T",
            struct.pack("<i", len(raw)),
        ]
        parts += [raw, b"tb"]
    parts += [b"usU\n__author__U\x03abcs."]
    return b"".join(parts)


def archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return buffer.getvalue()


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(3, 4)), buffer)
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **ARRAYS)
    return buffer.getvalue()


def safetensors(tensors) -> bytes:
    return pytest.importorskip("safetensors.torch").save(
        {name: t.contiguous() for name, t in tensors.items()}
    )


def deep(levels: int = 100_000) -> bytes:
    return b"\x80\x02" + b"(" * levels + b"l" * levels + b"."


def cyclic() -> bytes:
    content: dict = {"model": dict(ARRAYS), "__author__": "somebody"}
    content["self"] = [content]
    return pickle.dumps(content)


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]


def where(content: bytes, piece: bytes) -> int:
    return content.index(piece)


RAW = WEIGHTS["0.weight"].numpy().tobytes()
RANDOM = random.Random(0).randbytes(5000)
HTML = b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 178000000\n"

# name: (content, or a function of the folder that makes it; words of the sentence, or RIGHT)
KINDS = {
    # files that are right
    "ours.pth": (ours(), RIGHT),
    "ours-sealed.pth": (sealed(), RIGHT),
    "detectron2.pth": (saved({"model": WEIGHTS, "iteration": 1}), RIGHT),
    "numpy-number.pth": (saved({"model": WEIGHTS, "best": np.float64(3.5)}), RIGHT),
    "bare.pth": (saved(WEIGHTS), RIGHT),
    "wrapped.pth": (saved({"model": {f"module.{k}": v for k, v in WEIGHTS.items()}}), RIGHT),
    "state-dict.pth": (saved({"state_dict": WEIGHTS, "epoch": 3}), RIGHT),
    "old-torch.pth": (saved(WEIGHTS, _use_new_zipfile_serialization=False), RIGHT),
    "zoo-0.pkl": (zoo(ARRAYS, 0), RIGHT),
    "zoo-1.pkl": (zoo(ARRAYS, 1), RIGHT),
    "zoo-2.pkl": (zoo(ARRAYS, 2), RIGHT),
    "zoo-4.pkl": (zoo(ARRAYS, 4), RIGHT),
    "zoo-5.pkl": (zoo(ARRAYS, 5), RIGHT),
    "zoo-numpy1.pkl": (old_numpy_names(zoo(ARRAYS, 2)), RIGHT),
    "zoo-python2.pkl": (python2(), RIGHT),
    "zoo-ordered.pkl": (zoo(collections.OrderedDict(ARRAYS)), RIGHT),
    "zoo-big-endian.pkl": (
        zoo({k: v.astype(v.dtype.newbyteorder(">")) for k, v in ARRAYS.items()}),
        RIGHT,
    ),
    "zoo-fortran.pkl": (zoo({k: np.array(v, order="F") for k, v in ARRAYS.items()}), RIGHT),
    "zoo-extras.pkl": (
        pickle.dumps(
            {"model": ARRAYS, "__author__": "x", "n": np.float32(1), "b": b"\xff", "s": {1}}, 2
        ),
        RIGHT,
    ),
    "cyclic.pkl": (cyclic(), RIGHT),
    "tensors.safetensors": (lambda folder: safetensors(WEIGHTS), RIGHT),
    "unnamed-safetensors": (lambda folder: safetensors(WEIGHTS), RIGHT),
    # code
    "exec.pkl": (lambda folder: pickle.dumps(Code(folder / "ran")), "builtins.exec"),
    "exec-0.pkl": (lambda folder: pickle.dumps(Code(folder / "ran"), 0), "__builtin__.exec"),
    "exec-in-model.pkl": (lambda folder: zoo({**ARRAYS, "x": Code(folder / "ran")}), "exec"),
    "system.pkl": (lambda folder: b"\x80\x02cposix\nsystem\nU\x04trueR.", "posix.system"),
    "system-of-python2.pkl": (b"cos\nsystem\n(S'touch ran'\ntR.", "os.system"),
    "dotted.pkl": (b"\x80\x04\x8c\x05numpy\x8c\x10f2py.sys.modules\x93.", "numpy.f2py.sys.modules"),
    "getattr.pkl": (b"\x80\x02c__builtin__\ngetattr\n.", "getattr"),
    "extension.pkl": (b"\x80\x02\x82\x01.", "extension 1"),
    "exec.pth": (lambda folder: saved({"model": WEIGHTS, "x": Code(folder / "ran")}), "exec"),
    "exec-old.pth": (
        lambda folder: saved(
            {"model": WEIGHTS, "x": Code(folder / "ran")}, _use_new_zipfile_serialization=False
        ),
        "exec",
    ),
    "whole-model.pth": (saved(model()), "torch.nn.modules.container.Sequential"),
    "class.pth": (
        saved({"model": WEIGHTS, "cfg": types.SimpleNamespace(a=1)}),
        "types.SimpleNamespace",
    ),
    "pickled-tensors.pkl": (pickle.dumps(dict(WEIGHTS)), "torch._utils._rebuild_tensor_v2"),
    "object-array.pkl": (
        zoo({**ARRAYS, "0.bias": np.array([{}, []], dtype=object)}),
        "an array of 'O8'",
    ),
    "record-array.pkl": (zoo({**ARRAYS, "0.bias": np.zeros(2, "i4,f8")}), "an array of 'V12'"),
    "codec.pkl": (
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00bz2\x86R.",
        "_codecs.encode",
    ),
    "torchscript.pt": (lambda folder: scripted(), "TorchScript program"),
    # no weights
    "empty.pth": (b"", "is empty"),
    "empty.pkl": (b"", "is empty"),
    "page.pth": (HTML, "a web page"),
    "page.pkl": (b"\n  " + HTML, "a web page"),
    "pointer.pth": (LFS, "git lfs pull"),
    "pointer.pkl": (LFS, "git lfs pull"),
    "random.pth": (RANDOM, "neither PyTorch's nor a pickle"),
    "random.pkl": (RANDOM[::-1], "neither PyTorch's nor a pickle"),
    "random-pickle.pkl": (b"\x80\x04" + RANDOM, "damaged"),
    "random-zip.pth": (b"PK\x03\x04" + RANDOM, "damaged"),
    "zeros.pth": (bytes(4096), "neither PyTorch's nor a pickle"),
    "text.pth": (b"the weights are in the other folder\n", "is text"),
    "settings.json": (json.dumps({"model": [1, 2]}).encode(), "is text"),
    "packed.pth.gz": (gzip.compress(ours()), "compressed by gzip"),
    "tar.pth": (bytes(257) + b"ustar" + bytes(800), "a tar archive"),
    "keras.h5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "model.onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.0.0", "an ONNX model"),
    "arrays.npz": (npz(), "NumPy's arrays"),
    "array.npy": (b"\x93NUMPY\x01\x00", "a single NumPy array"),
    "archive.zip": (archive(readme=b"hello"), "a zip archive of other files"),
    "picture.pth": (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    "list.pth": (saved([1, 2]), "holds a list"),
    "string.pth": (saved("weights"), "holds a str"),
    "tensor.pth": (saved(torch.zeros(3)), "holds a Tensor"),
    "none.pth": (saved(None), "holds a NoneType"),
    "number.pth": (saved(3), "holds a int"),
    "list.pkl": (pickle.dumps([1, 2]), "holds a list"),
    "none.pkl": (pickle.dumps(None), "holds a NoneType"),
    "array.pkl": (pickle.dumps(ARRAYS["0.weight"]), "holds a ndarray"),
    "no-keys.pth": (saved({}), "holds no weights"),
    "no-weights.pth": (saved({"model": {}}), "holds no weights"),
    "model-none.pth": (saved({"model": None}), "a NoneType where weights"),
    "model-list.pth": (saved({"model": [torch.zeros(2)]}), "a list where weights"),
    "model-of-texts.pth": (with_weight("0.5"), "a str as the weight 0.weight"),
    "model-of-lists.pth": (with_weight([0.5]), "a list as the weight 0.weight"),
    "nested.pth": (saved({"net": {"model": WEIGHTS}}), "a dict as the weight net"),
    "numbered.pth": (saved({"model": dict(enumerate(WEIGHTS.values()))}), "whose name is 0"),
    "sparse.pth": (with_weight(torch.eye(4).to_sparse()), "sparse"),
    "texts.pkl": (zoo({**ARRAYS, "0.bias": np.array(["a", "b"])}), "an array of 'U1'"),
    "pycls.pyth": (saved({"model_state": 3}), "a int where weights"),
    "truncated.safetensors": (lambda folder: safetensors(WEIGHTS)[:-30], "damaged"),
    "random.safetensors": (RANDOM, "damaged"),
    # damage
    "cut-off.pth": (ours()[:-200], "damaged"),
    "half.pth": (ours()[: len(ours()) // 2], "damaged"),
    "ten-bytes.pth": (ours()[:10], "damaged"),
    "cut-off-old.pth": (saved(WEIGHTS, _use_new_zipfile_serialization=False)[:-30], "damaged"),
    "cut-off.pkl": (zoo(ARRAYS, 4)[:-30], "damaged"),
    "cut-off-array.pkl": (zoo(ARRAYS).replace(b"K\x04K\x03\x86", b"K\x09K\x03\x86"), "damaged"),
    "huge-memo.pkl": (b"\x80\x02}r\xff\xff\xff\x7f" + b"X\xff\xff\xff\xff", "damaged"),
    "deep.pkl": (deep(), "damaged"),
    "flipped-weight.pth": (flipped(ours(), where(ours(), RAW)), "checksum"),
    "flipped-weight-sealed.pth": (flipped(sealed(), where(sealed(), RAW)), "0.weight is not what"),
    "other-weight-sealed.pth": (sealed(lambda d: d["model"]["0.bias"].mul(2)), RIGHT),
    "changed-weight-sealed.pth": (
        sealed(lambda d: d["model"].update({"0.bias": torch.ones(4)})),
        "model/0.bias is not what was written",
    ),
    "changed-number-sealed.pth": (sealed(lambda d: d.update(iteration=6)), "everything else"),
    "more-weights-sealed.pth": (
        sealed(lambda d: d["model"].update(more=torch.ones(1))),
        "model/more and 1 more is not what",
    ),
    "digests-gone.pth": (sealed(lambda d: d["psis_d2"].update(digests=3)), "damaged"),
    # wrong types in our entry
    "entry-list.pth": (saved({"model": WEIGHTS, "psis_d2": [1]}), "it is a list"),
    "names-text.pth": (ours(class_names="ab"), "class_names that are no list of str"),
    "names-numbers.pth": (ours(class_names=[1, 2]), "class_names that are no list of str"),
    "names-twice.pth": (ours(class_names=["a", "a"]), "names a class twice"),
    "seen-texts.pth": (ours(seen_ids=["a"]), "seen_ids that are no list of int"),
    "seen-flags.pth": (ours(seen_ids=[True]), "seen_ids that are no list of int"),
    "seen-outside.pth": (ours(seen_ids=[2]), "no ids of its classes"),
    "config-dict.pth": (ours(config={}), "a config that is no text"),
    "format-text.pth": (ours(format="1"), "a format that is no number"),
    "format-later.pth": (ours(format=99), "update psis_d2"),
    # weights that do not fit, or are none
    "foreign.pth": (saved({f"x.{k}": v for k, v in WEIGHTS.items()}), "weights for 0 of the 6"),
    "foreign.pkl": (zoo({"fc9_w": np.zeros(3, "f4")}), "weights for 0 of the 6"),
    "lacking.pth": (saved({"model": {"0.weight": WEIGHTS["0.weight"]}}), "which would stay random"),
    "other-shape.pth": (with_weight(torch.zeros(4, 5)), "0.weight is (4, 5) there and (4, 3) here"),
    "other-classes.pth": (ours(class_names=["a", "c"]), "its classes differ"),
    "nan.pth": (with_weight(torch.full((4, 3), torch.nan)), "not finite in 0.weight"),
    "inf.pkl": (
        zoo({**ARRAYS, "0.bias": np.array([0, np.inf, 0, 0], "f4")}),
        "not finite in 0.bias",
    ),
}


def write(name: str, folder: Path) -> Path:
    content = KINDS[name][0]
    path = folder / name
    path.write_bytes(content(folder) if callable(content) else content)
    return path
