"""What docs/kernels.md promises of every op on a GPU: streams, devices, graphs, offsets, sizes."""

from psis_d2.ops import (
    affinity_attention,
    has_kernel,
    message_passing,
    shape_prior_blend,
    with_kernels,
)

import pytest
import torch

from op_tester import needs_cuda

DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])]
MANY = 2**31 // 196 // 8  # regions of 8 channels of 14 x 14 that hold just 2**31 elements
OPS = ("message_passing", "affinity_attention", "shape_prior_blend")
on_gpu = [pytest.mark.gpu, needs_cuda, pytest.mark.parametrize("op", OPS)]


def call(op, *tensors):
    """The op on 14 x 14 maps of 8 channels, as one tensor."""
    if op == "message_passing":
        return message_passing(*tensors, 3, "softmax")
    if op == "affinity_attention":
        attended, sums = affinity_attention(*tensors, 0.3)
        return attended + sums.view(len(sums), 1, *attended.shape[2:])
    boxes = torch.tensor([10.0, 20.0, 50.0, 44.0], device=tensors[0].device)
    boxes = boxes.expand(len(tensors[0]), 4)
    return shape_prior_blend(*tensors, boxes, boxes, (14, 14 * 8))


def shapes(op, n):
    """Of the op's differentiable inputs for n regions."""
    if op == "message_passing":
        return (n, 8, 14, 14), (n, 9, 14, 14)
    if op == "affinity_attention":
        return (n, 8, 14, 14), (n, 8, 14, 14), (n, 8, 14, 14), (n, 14, 14)
    return (n, 2), (2, 4, 4)


def make_inputs(op, n, device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(s, generator=generator) for s in shapes(op, n)]
    return [t.to(device, dtype) for t in found]


def results(op, inputs):
    """Output and gradients for ones as the output's gradient."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    output = call(op, *leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, torch.ones_like(output))]


@pytest.fixture(autouse=True)
def kernels(request):
    device = "cuda" if request.node.get_closest_marker("gpu") else "cpu"
    if not has_kernel("message_passing", device):
        pytest.skip(f"the extension is built without kernels for {device}")
    with with_kernels():
        yield


def marked(function):
    for mark in on_gpu:
        function = mark(function)
    return function


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", OPS)
def test_inputs_that_begin_at_odd_offsets(op, device, dtype):
    inputs = make_inputs(op, 3, device, dtype)
    odd = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for t in inputs]
    assert all(t.is_contiguous() and t.storage_offset() == 1 for t in odd)
    for got, want in zip(results(op, odd), results(op, inputs), strict=True):
        # The CPU's matrix products add in another order where they find other alignments.
        close = torch.allclose(got, want, rtol=1e-5, atol=1e-6)
        assert torch.equal(got, want) if device == "cuda" else close


@marked
def test_work_is_queued_on_the_current_stream(op):
    inputs = make_inputs(op, 3, "cuda")
    expected = results(op, inputs)
    late = [torch.zeros_like(t) for t in inputs]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # cycles; who does not wait for this stream reads zeros
        for target, source in zip(late, inputs, strict=True):
            target.copy_(source)
        found = results(op, late)
    stream.synchronize()
    for got, want in zip(found, expected, strict=True):
        assert torch.equal(got, want)


@marked
def test_a_graph_captures_the_op(op):
    # What synchronizes, or asks the device for anything, cannot be captured.
    inputs = make_inputs(op, 3, "cuda")
    expected = results(op, inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = results(op, inputs)
    graph.replay()
    torch.cuda.synchronize()
    for got, want in zip(found, expected, strict=True):
        assert torch.equal(got, want)


@marked
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_another_device_than_the_current_one(op):
    expected = results(op, make_inputs(op, 3, "cuda:0"))
    found = results(op, make_inputs(op, 3, "cuda:1"))
    assert torch.cuda.current_device() == 0
    for got, want in zip(found, expected, strict=True):
        assert got.device.index == 1 and torch.equal(got.cpu(), want.cpu())


@marked
def test_more_elements_than_31_bits_count(op):
    free, _ = torch.cuda.mem_get_info()
    if free < 60 << 30:
        pytest.skip("needs 60 GiB of free GPU memory")
    n = MANY + 16
    inputs = make_inputs(op, 16, "cuda", torch.bfloat16)
    # Sixteen regions again and again: of the blend's the output alone has so many elements.
    shared = op == "shape_prior_blend"
    many = [
        t if shared and i else t.repeat(n // 16 + 1, *[1] * (t.dim() - 1))[:n]
        for i, t in enumerate(inputs)
    ]
    leaves = [t.requires_grad_(not (shared and i)) for i, t in enumerate(many)]
    output = call(op, *leaves)
    assert output.numel() > 2**31
    used = [t for t in leaves if t.requires_grad]
    grads = torch.autograd.grad(output, used, torch.ones_like(output))
    expected = results(op, inputs)
    last = (n - 1) % 16
    assert torch.equal(output[-1], expected[0][last])
    for grad, want in zip(grads, expected[1:], strict=False):
        assert torch.equal(grad[-1], want[last])
