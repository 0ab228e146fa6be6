"""shape_prior_blend: hand-computed case, reference, kernels, gradients, errors, compilation."""

import math
import subprocess
import sys

from psis_d2.ops import has_extension, op_paths, reference, shape_prior_blend

import pytest
import torch
import torch.nn.functional as F

from op_tester import OpTester, needs_cuda

DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])]
# (N, K, P, H, W): both sides of a vector's length, one pixel, one prior, grids of any proportion.
SIZES = [
    (2, 3, 1, 1, 1),
    (1, 1, 4, 3, 5),
    (8, 5, 7, 9, 17),
    (8, 4, 15, 16, 16),
    (8, 3, 17, 33, 31),
    (8, 20, 32, 32, 32),
    (8, 2, 8, 40, 3),
    (8, 33, 14, 28, 28),
    (0, 3, 5, 4, 2),
]
GROUPS = [None, 3]
needs_extension = pytest.mark.skipif(not has_extension(), reason="the extension is not built")


def needs_kernel(device: str) -> None:
    """Skips where the op would run on the reference."""
    if op_paths()["shape_prior_blend"][device] != "extension":
        pytest.skip(f"the extension is built without kernels for {device}")


def make_boxes(n, seed=0):
    """Boxes and frames [n, 4], float64 that float32 holds, in eight relations to each other."""
    generator = torch.Generator().manual_seed(seed)
    corner = 100 * torch.rand(n, 2, generator=generator)
    extent = 20 + 80 * torch.rand(n, 2, generator=generator)
    boxes = torch.cat([corner, corner + extent], dim=1)
    # Left, top, right, bottom, in parts of the box.
    relations = [
        (-0.125, -0.125, 1.125, 1.125),  # the box enlarged
        (0.0, 0.0, 1.0, 1.0),
        (0.3, 0.2, 0.6, 0.7),  # inside the box
        (-2.0, -0.1, 0.4, 3.0),
        (0.5, -0.5, 4.0, 0.5),
        (1.5, 1.5, 2.5, 2.5),  # beside the box
        (-0.02, -3.0, 0.02, 5.0),
        (0.0, 0.9, 1.0, 1.1),
    ]
    relation = torch.tensor([relations[i % len(relations)] for i in range(n)]).reshape(n, 4)
    frames = corner.repeat(1, 2) + relation * extent.repeat(1, 2)
    return boxes.double(), frames.double()


def make_case(n, k, p, h, w, groups=None, offset=0.5, seed=0):
    """([logits, priors], (boxes, frames, size, classes, offset)) in float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, k, generator=generator, dtype=torch.float64)
    # Waves: of both signs, since the gradient of the softmax takes away what all priors have in
    # common; smooth, since sharp ones would measure the rounding of float32 coordinates.
    a, b, phase = torch.rand(3, (groups or 1) * k, 1, 1, generator=generator, dtype=torch.float64)
    y, x = torch.arange(p).view(p, 1), torch.arange(p)
    priors = torch.sin((a - 0.5) * x + (b - 0.5) * y + 6 * phase)
    priors = priors if groups is None else priors.view(groups, k, p, p)
    classes = None if groups is None else torch.randint(groups, (n,), generator=generator)
    return [logits, priors], (*make_boxes(n, seed), (h, w), classes, offset)


def definition(logits, priors, boxes, frames, size, classes=None, offset=0.5):
    """The formula of the docstring, output pixel by output pixel, in float64."""
    n, k = logits.shape
    p = priors.shape[-1]
    output = torch.zeros(n, *size, dtype=torch.float64)
    for i in range(n):
        weights = logits[i].exp() / logits[i].exp().sum()
        own = priors if classes is None else priors[classes[i]]
        shape = sum(weights[j] * own[j] for j in range(k))
        x0, y0, x1, y1 = boxes[i].tolist()
        left, top, right, bottom = frames[i].tolist()
        for y in range(size[0]):
            for x in range(size[1]):
                u = (left + (x + offset) * (right - left) / size[1] - x0) * p / (x1 - x0) - offset
                v = (top + (y + offset) * (bottom - top) / size[0] - y0) * p / (y1 - y0) - offset
                for row in (math.floor(v), math.floor(v) + 1):
                    for column in (math.floor(u), math.floor(u) + 1):
                        if 0 <= row < p and 0 <= column < p:
                            weight = (1 - abs(v - row)) * (1 - abs(u - column))
                            output[i, y, x] += weight * shape[row, column]
    return output


def sampled(logits, priors, boxes, frames, size, classes=None, offset=0.5):
    """The usual form in the dtype of its inputs: products, then F.grid_sample."""
    own = priors if classes is None else priors[classes]
    blended = (logits.softmax(1)[:, :, None, None] * own).sum(1)
    p = priors.shape[-1]
    cells = [torch.arange(c, dtype=torch.float64) + offset for c in (size[1], size[0])]
    x, y = (
        (frames[:, a : a + 1] - boxes[:, a : a + 1])
        + cells[a] * (frames[:, a + 2 :: 4] - frames[:, a : a + 1]) / len(cells[a])
        for a in (0, 1)
    )
    extent = boxes[:, 2:] - boxes[:, :2]
    # Cell centers of the prior lie at 0.5, 1.5, ..; an offset other than 0.5 moves them.
    x, y = (
        2 * (position / extent[:, a : a + 1] + (0.5 - offset) / p) - 1
        for a, position in enumerate((x, y))
    )
    n, (h, w) = len(logits), size
    grid = torch.stack([x[:, None].expand(n, h, w), y[:, :, None].expand(n, h, w)], dim=-1)
    return F.grid_sample(blended[:, None], grid.to(blended), align_corners=False)[:, 0]


class TestKernels(OpTester):
    """The compiled op against the reference."""

    def fn(self, logits, priors, boxes, frames, size, classes=None, offset=0.5):
        rest = [t if t is None else t.to(logits.device) for t in (boxes, frames, classes)]
        return shape_prior_blend(logits, priors, rest[0], rest[1], size, rest[2], offset)

    def expected_fn(self, logits, priors, boxes, frames, size, classes=None, offset=0.5):
        return reference.shape_prior_blend(logits, priors, boxes, frames, size, classes, offset)

    def literal_fn(self, *args):
        return sampled(*args)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("offset", [0.5, 0.0])
    @pytest.mark.parametrize("groups", GROUPS)
    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_twin(self, size, groups, offset, dtype, device):
        needs_kernel(device)
        self.check(*make_case(*size, groups, offset), dtype, device)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("groups", GROUPS)
    def test_half(self, groups, dtype, device):
        needs_kernel(device)
        self.check(*make_case(8, 5, 9, 14, 14, groups), dtype, device)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("groups", GROUPS)
    def test_not_contiguous(self, groups, device):
        needs_kernel(device)
        (logits, priors), (boxes, frames, size, classes, offset) = make_case(8, 5, 9, 7, 6, groups)
        logits = logits.t().contiguous().t()
        priors = priors.transpose(-1, -2).contiguous().transpose(-1, -2)
        boxes, frames = (torch.stack([t, t], dim=2)[..., 0] for t in (boxes, frames))
        classes = classes if classes is None else classes.repeat_interleave(2)[::2]
        args = (boxes, frames, size, classes, offset)
        assert not any(t.is_contiguous() for t in (logits, priors, boxes, frames))
        self.check([logits, priors], args, torch.float32, device)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_extreme_logits(self, sign, device):
        needs_kernel(device)
        (logits, priors), args = make_case(8, 5, 9, 12, 12)
        saturated = torch.full_like(logits, -80 * sign)
        saturated[:, 2] = 80 * sign
        saturated[0] = 80  # all equal
        self.check([saturated, priors], args, torch.float32, device)

    @pytest.mark.parametrize("device", DEVICES)
    def test_repeatable(self, device):
        needs_kernel(device)
        for groups in GROUPS:
            inputs, args = make_case(16, 10, 32, 32, 32, groups)
            self.check_repeatable([t.float().to(device) for t in inputs], args)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("groups", GROUPS)
    def test_gradcheck(self, groups, device):
        needs_kernel(device)
        inputs, args = make_case(5, 3, 4, 5, 3, groups)
        inputs = [t.to(device).requires_grad_() for t in inputs]
        assert torch.autograd.gradcheck(lambda *x: self.fn(*x, *args), inputs)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("groups", GROUPS)
    def test_opcheck(self, groups, device):
        needs_kernel(device)
        inputs, (*rest, size, classes, offset) = make_case(3, 4, 5, 6, 7, groups)
        logits, priors, boxes, frames = (t.float().to(device) for t in (*inputs, *rest))
        classes = None if classes is None else classes.to(device)
        leaves = logits.clone().requires_grad_(), priors.clone().requires_grad_()
        ops = torch.ops.psis_d2
        arguments = (*leaves, boxes, frames, *size, classes, offset)
        torch.library.opcheck(ops.shape_prior_blend.default, arguments)
        grad = torch.ones(3, *size, device=device)
        for need in (False, True):
            arguments = (grad, logits, priors, boxes, frames, classes, offset, need)
            torch.library.opcheck(ops.shape_prior_blend_bwd.default, arguments)

    @pytest.mark.parametrize("device", DEVICES)
    def test_gradients_are_finite_and_not_zero(self, device):
        needs_kernel(device)
        inputs, args = make_case(8, 6, 12, 16, 16)
        inputs = [t.float().to(device) for t in inputs]
        grad_logits, grad_priors = self._run(self.fn, inputs, args)[1:]
        beside = 5  # of the relations in make_boxes
        touched = torch.arange(8) != beside
        assert (grad_logits.cpu()[touched] != 0).all() and (grad_logits.cpu()[beside] == 0).all()
        assert grad_priors.isfinite().all() and (grad_priors != 0).all()

    def test_boxes_get_no_gradient(self):
        inputs, (boxes, frames, size, *_) = make_case(3, 4, 5, 6, 7)
        for function in (shape_prior_blend, reference.shape_prior_blend):
            leaves = [t.clone().requires_grad_() for t in (*inputs, boxes, frames)]
            function(*leaves, size).sum().backward()
            assert leaves[0].grad is not None and leaves[1].grad is not None
            assert leaves[2].grad is None and leaves[3].grad is None

    @needs_extension
    def test_fixed_priors_get_no_gradient(self):
        (logits, priors), (boxes, frames, size, *_) = make_case(3, 4, 5, 6, 7)
        logits.requires_grad_()
        shape_prior_blend(logits, priors, boxes, frames, size).sum().backward()
        assert logits.grad is not None and priors.grad is None
        arguments = (torch.ones(3, 6, 7).double(), logits, priors, boxes, frames, None, 0.5, False)
        assert torch.ops.psis_d2.shape_prior_blend_bwd(*arguments)[1].numel() == 0

    @needs_extension
    def test_func_transforms(self):
        self.check_func_transforms(*make_case(3, 4, 5, 6, 7, 2))

    @needs_extension
    def test_refuses_double_backward(self):
        (logits, priors), args = make_case(2, 3, 4, 5, 5)
        logits.requires_grad_()
        output = self.fn(logits, priors, *args).square().sum()
        (grad,) = torch.autograd.grad(output, logits, create_graph=True)
        with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
            grad.sum().backward()

    @needs_extension
    @pytest.mark.parametrize(
        "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
    )
    def test_compiles_without_a_break_for_any_number_of_boxes(self, backend):
        def loss(logits, priors, boxes, frames, size):
            return shape_prior_blend(logits * 2, priors, boxes, frames, size).square().mean()

        compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
        for n in (2, 5, 3):
            inputs, (boxes, frames, size, *_) = make_case(n, 3, 5, 6, 7)
            got, expected = (self._run(f, inputs, (boxes, frames, size)) for f in (compiled, loss))
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b)


PATHS = [
    pytest.param(shape_prior_blend, id="public"),
    pytest.param(reference.shape_prior_blend, id="reference"),
]


@pytest.mark.parametrize("function", PATHS)
def test_hand_computed(function):
    # Two 2 x 2 priors. Logits 0 and ln 3 give the weights 1/4 and 3/4:
    #   1/4 [4 0] + 3/4 [0 4] = [1 3]
    #       [8 0]       [0 0]   [2 0]
    priors = torch.tensor([[[4.0, 0.0], [8.0, 0.0]], [[0.0, 4.0], [0.0, 0.0]]]).double()
    logits = torch.tensor([[0.0, math.log(3.0)]]).double()
    boxes = torch.tensor([[10.0, 10.0, 14.0, 14.0]]).double()  # cells of 2 x 2 pixels
    # The grid of the box itself: nothing is interpolated.
    result = function(logits, priors, boxes, boxes, (2, 2))
    torch.testing.assert_close(result, torch.tensor([[[1.0, 3.0], [2.0, 0.0]]]).double())
    # One row of four cells of 2 x 4 pixels from one cell left of the box to one cell right of it:
    # its height is midway between the rows, columns -1, 0, 1, 2 lie on cell centers.
    frames = torch.tensor([[8.0, 10.0, 16.0, 14.0]]).double()
    result = function(logits, priors, boxes, frames, (1, 4))
    torch.testing.assert_close(result, torch.tensor([[[0.0, 1.5, 1.5, 0.0]]]).double())
    # Two cells of 4 x 4 pixels, corner offset: x = 8 and 12, columns -1 and 1, row 0.
    result = function(logits, priors, boxes, frames, (1, 2), None, 0.0)
    torch.testing.assert_close(result, torch.tensor([[[0.0, 3.0]]]).double())
    # A grid finer by two: columns -0.25, 0.25, 0.75, 1.25. Outside the prior is zero:
    # 0.75 * 1, then 0.75 * 1 + 0.25 * 3 and so on; rows alike, here only the first, -0.25.
    result = function(logits, priors, boxes, boxes, (4, 4))
    expected = 0.75 * torch.tensor([0.75, 1.5, 2.5, 2.25]).double()
    torch.testing.assert_close(result[0, 0], expected)
    # Gradient of the sum over the first grid to the logits: w_k * (prior's sum - blend's sum).
    logits.requires_grad_()
    priors.requires_grad_()
    function(logits, priors, boxes, boxes, (2, 2)).sum().backward()
    expected = torch.tensor([[0.25 * (12 - 6), 0.75 * (4 - 6)]]).double()
    torch.testing.assert_close(logits.grad, expected)
    expected = torch.tensor([0.25, 0.75]).double().view(2, 1, 1).expand(2, 2, 2)
    torch.testing.assert_close(priors.grad, expected)


@pytest.mark.parametrize("function", PATHS)
@pytest.mark.parametrize("offset", [0.5, 0.0, 0.25])
@pytest.mark.parametrize("groups", GROUPS)
def test_equals_the_definition(groups, offset, function):
    inputs, args = make_case(8, 3, 4, 5, 6, groups, offset, seed=1)
    expected = definition(*inputs, *args)
    torch.testing.assert_close(function(*inputs, *args), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("function", PATHS)
@pytest.mark.parametrize("offset", [0.5, 0.0])
def test_equals_grid_sample(offset, function):
    inputs, args = make_case(8, 3, 14, 28, 20, 2, offset)
    expected = sampled(*inputs, *args)
    torch.testing.assert_close(function(*inputs, *args), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("function", PATHS)
@pytest.mark.parametrize("box", [(5.0, 5.0, 5.0, 9.0), (5.0, 5.0, 9.0, 5.0), (9.0, 5.0, 5.0, 9.0)])
def test_a_box_without_extent_places_nothing(box, function):
    logits, priors = torch.zeros(1, 2, requires_grad=True), torch.ones(2, 3, 3)
    boxes, frames = torch.tensor([box]), torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    result = function(logits, priors, boxes, frames, (4, 4))
    assert (result == 0).all()
    result.sum().backward()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("function", PATHS)
def test_a_class_that_is_not_there(function):
    inputs, (boxes, frames, size, classes, offset) = make_case(3, 2, 4, 5, 5, groups=2)
    classes[1] = 2
    with pytest.raises(IndexError):
        function(*inputs, boxes, frames, size, classes, offset)


@pytest.mark.gpu
@needs_cuda
def test_a_class_that_is_not_there_fails_an_assertion_on_cuda():
    # In a process of its own: after a failed assertion the device takes no more work.
    needs_kernel("cuda")
    script = """
import torch
from psis_d2.ops import shape_prior_blend
logits, priors, boxes = torch.zeros(2, 3), torch.ones(2, 3, 4, 4), torch.ones(2, 4)
tensors = [t.cuda() for t in (logits, priors, boxes, boxes)]
shape_prior_blend(*tensors, (5, 5), torch.tensor([0, 2]).cuda())
torch.cuda.synchronize()
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode != 0 and "device-side assert" in result.stderr


@pytest.mark.parametrize("function", PATHS)
def test_autocast_keeps_the_dtype_and_joins_two(function):
    (logits, priors), (boxes, frames, size, *_) = make_case(8, 6, 12, 16, 16)
    logits, priors = logits.float(), priors.float()
    expected = function(logits, priors, boxes, frames, size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(function(logits, priors, boxes, frames, size), expected)
        mixed = shape_prior_blend(logits.bfloat16(), priors, boxes, frames, size)
        half = function(logits.bfloat16(), priors.bfloat16(), boxes, frames, size)
    assert mixed.dtype == torch.float32 and half.dtype == torch.bfloat16
    exact = function(logits.bfloat16().float(), priors.bfloat16().float(), boxes, frames, size)
    assert torch.equal(half, exact.bfloat16())


def bad_calls():
    (logits, priors), (boxes, frames, size, classes, _) = make_case(2, 3, 4, 5, 6, groups=2)
    logits, priors = logits.float(), priors.float()
    shared, rest = priors[0], (boxes, frames, size)
    return {
        "logits must be [N, K], not [3].": (ValueError, (logits[0], shared, *rest)),
        "priors must be [K, P, P] or [classes, K, P, P], not [4, 4].": (
            ValueError,
            (logits, shared[0], *rest),
        ),
        "priors must be [K, P, P] or [classes, K, P, P], not [3, 4, 3].": (
            ValueError,
            (logits, shared[..., :3], *rest),
        ),
        "priors [2, 4, 4] do not fit logits [2, 3]: both must have the same K.": (
            ValueError,
            (logits, shared[:2], *rest),
        ),
        "priors [0, 3, 4, 4] are empty.": (ValueError, (logits, priors[:0], *rest, classes)),
        "classes go with priors [classes, K, P, P] and only with them; priors are [3, 4, 4].": (
            ValueError,
            (logits, shared, *rest, classes),
        ),
        "boxes must be [N, 4] with the N of logits [2, 3], not [1, 4].": (
            ValueError,
            (logits, shared, boxes[:1], frames, size),
        ),
        "frames must be [N, 4] with the N of logits [2, 3], not [2, 5].": (
            ValueError,
            (logits, shared, boxes, torch.zeros(2, 5), size),
        ),
        "frames must be float32 or float64, not float16.": (
            TypeError,
            (logits, shared, boxes, frames.half(), size),
        ),
        "logits is on cpu but priors is on meta.": (
            ValueError,
            (logits, shared.to("meta"), *rest),
        ),
        "logits is on cpu but boxes is on meta.": (
            ValueError,
            (logits, shared, boxes.to("meta"), frames, size),
        ),
        "logits is float32 but priors is float64.": (TypeError, (logits, shared.double(), *rest)),
        "the dtype must be float16, bfloat16, float32 or float64, not int64.": (
            TypeError,
            (logits.long(), shared.long(), *rest),
        ),
        "size must be positive, not [0, 5].": (ValueError, (logits, shared, boxes, frames, (0, 5))),
        "classes must be [N] with the N of logits [2, 3], not [1].": (
            ValueError,
            (logits, priors, *rest, classes[:1]),
        ),
        "classes must be int64, not int32.": (TypeError, (logits, priors, *rest, classes.int())),
    }


@pytest.mark.parametrize("sentence", list(bad_calls()))
def test_bad_arguments_get_one_sentence(sentence):
    error, arguments = bad_calls()[sentence]
    with pytest.raises(error) as caught:
        shape_prior_blend(*arguments)
    assert str(caught.value) == f"shape_prior_blend: {sentence}"


@needs_extension
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("sentence", [s for s in bad_calls() if "meta" not in s])
def test_the_op_itself_says_the_same(sentence, device):
    error, arguments = bad_calls()[sentence]
    *tensors, size, classes = (*arguments, None)[:6]
    tensors = [t if t is None else t.to(device) for t in (*tensors, classes)]
    with pytest.raises(error) as caught:
        torch.ops.psis_d2.shape_prior_blend(*tensors[:4], *size, tensors[4], 0.5)
    assert str(caught.value).splitlines()[0] == f"shape_prior_blend: {sentence}"
