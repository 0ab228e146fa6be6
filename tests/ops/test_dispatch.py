"""Which path an op takes, by device and size; CUDA devices are faked, nothing is computed."""

import importlib
import logging

from psis_d2.ops import (
    _extension,
    affinity_attention,
    has_extension,
    has_kernel,
    message_passing,
    op_paths,
    shape_prior_blend,
    with_kernels,
    without_kernels,
)

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cuda_source import HOPPER, SMALL

OPS = ("message_passing", "affinity_attention", "shape_prior_blend")
pytestmark = pytest.mark.skipif(not has_extension(), reason="the extension is not built")


class Recorder(TorchDispatchMode):
    """Names of psis_d2's ops that are called."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "psis_d2":
            self.ops.append(func._opname)
        return func(*args, **(kwargs or {}))


def runs_in_kernel(function, *shapes, dtype=torch.float32, device="cuda", rest=()) -> bool:
    """Whether a call with tensors of these shapes, on a device that need not be there, does."""
    with FakeTensorMode(), Recorder() as recorder:
        function(*(torch.empty(s, dtype=dtype, device=device) for s in shapes), *rest)
    return bool(recorder.ops)


def attention(pixels, **kwargs):
    maps = (2, 4, 1, pixels)
    return runs_in_kernel(affinity_attention, maps, maps, maps, (2, 1, pixels), **kwargs)


def blend(side, size=(8, 8), k=3, **kwargs):
    def function(logits, priors, boxes, frames):
        boxes, frames = boxes.float(), frames.float()
        return shape_prior_blend(logits, priors, boxes, frames, size)

    return runs_in_kernel(function, (2, k), (k, side, side), (2, 4), (2, 4), **kwargs)


@pytest.fixture
def limit(monkeypatch):
    """Sets what a block of the faked devices may have; the extension has all kernels."""

    def set_limit(bytes_):
        for name in ("affinity_attention", "shape_prior_blend"):
            module = importlib.import_module(f"psis_d2.ops.{name}")
            monkeypatch.setattr(module, "shared_memory_limit", lambda index: bytes_)

    monkeypatch.setattr(_extension, "_BACKENDS", ("cpu", "cuda"))
    set_limit(HOPPER)
    return set_limit


def test_on_the_cpu_kernels_run():
    assert all(paths["cpu"] == "extension" for paths in op_paths().values())
    assert attention(500, device="cpu") and blend(200, device="cpu")
    with without_kernels():
        assert not attention(4, device="cpu") and not blend(4, device="cpu")


def test_attention_on_cuda_runs_in_pytorch_until_it_is_measured(limit, caplog, monkeypatch):
    monkeypatch.setattr(_extension, "_announced", set())
    assert has_kernel("affinity_attention", "cuda")
    assert op_paths()["affinity_attention"]["cuda"] == "pytorch"
    with caplog.at_level(logging.INFO, logger="psis_d2"):
        assert not attention(196)
    (record,) = caplog.records
    assert record.levelno == logging.INFO and "not been measured on a GPU" in record.message
    with with_kernels():
        assert attention(196)
    assert op_paths()["message_passing"]["cuda"] == op_paths()["shape_prior_blend"]["cuda"]
    assert op_paths()["message_passing"]["cuda"] == "extension"


def test_attention_on_cuda_asks_for_shared_memory(limit):
    with with_kernels():
        assert attention(208) and not attention(209)
        assert attention(208, dtype=torch.float64)
        limit(SMALL)  # sm_86, sm_89
        assert attention(208) and attention(208, dtype=torch.bfloat16)
        assert not attention(208, dtype=torch.float64) and attention(160, dtype=torch.float64)


def test_blend_on_cuda_asks_for_shared_memory(limit):
    assert blend(128, (128, 128)) and not blend(129) and not blend(8, (8, 129))
    assert blend(80, dtype=torch.float64) and not blend(81, dtype=torch.float64)
    limit(SMALL)
    assert not blend(128, (128, 128)) and blend(112, (32, 32)) and blend(32, (32, 32), k=100)
    assert not blend(8, k=20000)  # so many priors alone


def test_message_passing_on_cuda_takes_maps_of_64(limit):
    def passes(side):
        shapes = (2, 3, side, side), (2, 9, side, side)
        return runs_in_kernel(message_passing, *shapes, rest=(2,))

    assert passes(64) and not passes(65)


def test_without_cuda_kernels_a_cuda_tensor_takes_the_reference(monkeypatch, limit):
    monkeypatch.setattr(_extension, "_BACKENDS", ("cpu",))
    with with_kernels():
        assert not attention(4) and not blend(4)
    assert op_paths() == {op: {"cpu": "extension", "cuda": "pytorch"} for op in OPS}


def test_the_choice_ends_with_its_block():
    with with_kernels():
        with without_kernels():
            assert not attention(4, device="cpu")
        assert attention(4, device="cpu")
    assert _extension._kernels_run is None
