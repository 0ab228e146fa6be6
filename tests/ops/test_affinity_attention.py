"""affinity_attention: hand-made case, reference, kernels, gradients, memory, errors, compile."""

import json
import math

from psis_d2.ops import affinity_attention, has_extension, has_kernel, reference, with_kernels

import pytest
import torch
from torch.profiler import profile

from op_tester import OpTester, needs_cuda, relative_error

DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])]
# (N, C, G, H, W): both sides of the kernels' blocks of pixels and channels, one pixel, no regions.
SIZES = [
    (2, 3, 2, 1, 1),
    (1, 16, 1, 1, 5),
    (2, 5, 3, 4, 8),
    (1, 17, 9, 3, 11),
    (2, 16, 8, 7, 7),
    (1, 9, 7, 9, 7),
    (1, 8, 16, 8, 8),
    (1, 33, 65, 5, 13),
    (2, 32, 20, 14, 14),
    (1, 4, 70, 13, 16),
    (0, 4, 3, 5, 5),
]
# scale, eps, unbiased
OPTIONS = [(0.2, 1e-5, False), (0.3, 1e-2, False), (0.25, 0.0, True)]
SMALL_GRADIENT = 0.1  # of one pixel alone it is zero: compared with this
needs_extension = pytest.mark.skipif(not has_extension(), reason="the extension is not built")


def needs_kernel(device: str) -> None:
    """Skips where there is no kernel."""
    if not has_kernel("affinity_attention", device):
        pytest.skip(f"the extension is built without kernels for {device}")


def make_inputs(n, c, g, h, w, foreground="soft", seed=0):
    """theta, phi, value, foreground in float64: smooth fields, so that many affinities nearly tie.

    Of random features every pixel resembles itself only, whatever the errors.
    """
    generator = torch.Generator().manual_seed(seed)

    def field(channels):
        a, b, phase = torch.rand(3, n, channels, 1, 1, generator=generator, dtype=torch.float64)
        y, x = torch.arange(h).view(h, 1), torch.arange(w)
        return torch.sin((a - 0.5) * x + (b - 0.5) * y + 6 * phase)

    theta, phi, value = field(c), field(c), field(g)
    theta = (theta + phi) / 2
    masks = {
        "soft": field(1)[:, 0].abs(),
        "hard": (field(1)[:, 0] > 0).double(),
        "all": torch.ones(n, h, w, dtype=torch.float64),
        "none": torch.zeros(n, h, w, dtype=torch.float64),
    }
    return [theta, phi, value, masks[foreground]]


def definition(theta, phi, value, foreground, scale=1.0, eps=1e-5, unbiased=False):
    """Eq. 4 to 6 with the whole matrix, in the dtype of its inputs."""

    def normalize(x):
        x = x.flatten(2)
        centered = x - x.mean(1, keepdim=True)
        return centered / (x.var(1, keepdim=True, correction=int(unbiased)) + eps).sqrt()

    scores = torch.einsum("nci,ncj->nij", normalize(theta), normalize(phi))
    affinities = (scale * scores).softmax(2)
    attended = torch.einsum("nij,ngj->ngi", affinities, value.flatten(2)).reshape(value.shape)
    return attended, torch.einsum("nij,nj->ni", affinities, foreground.flatten(1))


def joined(outputs):
    """Both outputs as one tensor [N, (G + 1) * L]."""
    attended, sums = outputs
    return torch.cat([attended.flatten(1), sums], dim=1)


class TestKernels(OpTester):
    """The compiled op against the definition, also on devices where PyTorch is preferred."""

    @pytest.fixture(autouse=True)
    def kernels(self):
        with with_kernels():
            yield

    def fn(self, *args):
        return joined(affinity_attention(*args))

    def expected_fn(self, *args):
        return joined(definition(*args))

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_definition(self, size, options, dtype, device):
        needs_kernel(device)
        self.check(make_inputs(*size), options, dtype, device, SMALL_GRADIENT)

    @pytest.mark.gpu
    @needs_cuda
    def test_larger_maps_on_cuda_run_on_the_twin(self):
        self.check(make_inputs(1, 8, 8, 15, 15), OPTIONS[0], torch.float32, "cuda")

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    def test_half(self, options, dtype, device):
        needs_kernel(device)
        self.check(make_inputs(2, 16, 12, 9, 9), options, dtype, device, SMALL_GRADIENT)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("foreground", ["hard", "all", "none"])
    def test_foregrounds(self, foreground, device):
        needs_kernel(device)
        inputs = make_inputs(2, 8, 6, 7, 7, foreground)
        self.check(inputs, OPTIONS[0], torch.float32, device)
        sums = affinity_attention(*(t.float().to(device) for t in inputs))[1]
        if foreground == "all":
            torch.testing.assert_close(sums, torch.ones_like(sums))
        elif foreground == "none":
            assert (sums == 0).all()

    @pytest.mark.parametrize("device", DEVICES)
    def test_not_contiguous(self, device):
        needs_kernel(device)
        theta, phi, value, foreground = make_inputs(2, 6, 5, 7, 8)
        theta = theta.contiguous(memory_format=torch.channels_last)
        phi = phi.transpose(2, 3).contiguous().transpose(2, 3)
        value = torch.cat([value, value], dim=1)[:, :5]
        foreground = foreground.transpose(1, 2).contiguous().transpose(1, 2)
        inputs = [theta, phi, value, foreground]
        assert not any(t.is_contiguous() for t in inputs)
        self.check(inputs, OPTIONS[0], torch.float32, device)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize(("channels", "scale"), [(64, 1.0), (4, 20.0)])
    def test_large_scores(self, channels, scale, device):
        # Up to 64, the paper's scale, and 80: float32 rounds the scores themselves, whatever the
        # implementation, so the whole matrix in float32 is the yardstick.
        needs_kernel(device)
        inputs = [t.float().double() for t in make_inputs(2, channels, 3, 6, 6)]
        exact = self._run(self.expected_fn, inputs, (scale,))
        single = [t.float() for t in inputs]
        eager = self._run(self.expected_fn, single, (scale,))
        found = self._run(self.fn, [t.to(device) for t in single], (scale,))
        for got, usual, want in zip(found, eager, exact, strict=True):
            assert relative_error(got, want) <= 3 * relative_error(usual, want) + 2e-6

    @pytest.mark.parametrize("device", DEVICES)
    def test_repeatable(self, device):
        needs_kernel(device)
        inputs = [t.float().to(device) for t in make_inputs(4, 16, 16, 14, 14)]
        self.check_repeatable(inputs, OPTIONS[0])

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("options", OPTIONS[::2], ids=str)
    def test_gradcheck(self, options, device):
        needs_kernel(device)
        inputs = [t.to(device).requires_grad_() for t in make_inputs(2, 3, 2, 2, 4)]
        assert torch.autograd.gradcheck(lambda *x: affinity_attention(*x, *options), inputs)

    @pytest.mark.parametrize("device", DEVICES)
    def test_opcheck(self, device):
        needs_kernel(device)
        inputs = [t.float().to(device) for t in make_inputs(2, 4, 3, 3, 5)]
        ops = torch.ops.psis_d2
        leaves = [t.clone().requires_grad_() for t in inputs]
        torch.library.opcheck(ops.affinity_attention.default, (*leaves, *OPTIONS[0]))
        attended, sums, stats = ops.affinity_attention(*inputs, *OPTIONS[0])
        arguments = (attended.sin(), sums.cos(), *inputs, stats, 0.25, False)
        torch.library.opcheck(ops.affinity_attention_bwd.default, arguments)

    @pytest.mark.parametrize("device", DEVICES)
    def test_gradients_are_finite_and_not_zero(self, device):
        needs_kernel(device)
        inputs = [t.float().to(device) for t in make_inputs(2, 16, 8, 14, 14)]
        for grad in self._run(self.fn, inputs, OPTIONS[0])[1:]:
            assert grad.isfinite().all() and (grad != 0).all()

    @pytest.mark.parametrize("device", DEVICES)
    def test_either_output_alone_has_a_gradient(self, device):
        needs_kernel(device)
        inputs = [t.to(device) for t in make_inputs(1, 4, 3, 3, 3)]
        for i in (0, 1):
            found = []
            for function in (affinity_attention, definition):
                leaves = [t.clone().requires_grad_() for t in inputs]
                output = function(*leaves)[i].square().sum()
                found.append(torch.autograd.grad(output, leaves, materialize_grads=True))
            for a, b in zip(*found, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)

    @needs_extension
    def test_more_threads_give_the_same_bits(self):
        inputs = [t.float() for t in make_inputs(5, 8, 8, 9, 9)]
        threads = torch.get_num_threads()
        results = []
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                results.append(self._run(self.fn, inputs, OPTIONS[0]))
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

    @needs_extension
    def test_func_transforms(self):
        self.check_func_transforms(make_inputs(2, 4, 3, 3, 5), OPTIONS[0])

    @needs_extension
    def test_refuses_double_backward(self):
        inputs = [t.requires_grad_() for t in make_inputs(1, 3, 2, 2, 2)]
        (grad,) = torch.autograd.grad(self.fn(*inputs).sum(), inputs[0], create_graph=True)
        with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
            grad.sum().backward()

    @needs_extension
    @pytest.mark.parametrize(
        "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
    )
    def test_compiles_without_a_break_for_any_number_of_regions(self, backend):
        def loss(theta, phi, value, foreground):
            return self.fn(theta * 2, phi, value, foreground).square().mean()

        compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
        for n in (2, 5, 3):
            inputs = make_inputs(n, 4, 3, 3, 5)
            got, expected = (self._run(f, inputs, ()) for f in (compiled, loss))
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b)


class TestTwin(OpTester):
    """The reference against the definition; it runs where no kernel does."""

    def fn(self, *args):
        return joined(reference.affinity_attention(*args))

    def expected_fn(self, *args):
        return joined(definition(*args))

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    @pytest.mark.parametrize("size", SIZES[1:], ids=str)
    def test_definition(self, size, options, device):
        # On CUDA scaled_dot_product_attention has no float64. Its memory-efficient kernel makes a
        # float32 product of three TF32 ones on tensor cores, in an order of its own: scores of some
        # 20 are wrong by their last bits, 2e-6, and the exponential makes that a relative error,
        # which the gradient meets twice.
        inputs = make_inputs(*size)
        if device == "cpu":
            self.check(inputs, options, torch.float64, device, SMALL_GRADIENT)
        else:
            self.check(inputs, options, torch.float32, device, SMALL_GRADIENT, tolerance=2e-5)


PATHS = [
    pytest.param(affinity_attention, id="public"),
    pytest.param(reference.affinity_attention, id="reference"),
]


@pytest.mark.parametrize("function", PATHS)
def test_hand_computed(function):
    # Two channels, so z = (+1, -1) or (-1, +1) and scores are +2 or -2. Two pixels whose theta
    # resembles their own phi. scale = ln(3) / 4: e^(2 scale) / (e^(2 scale) + e^(-2 scale))
    # = 3 / (3 + 1), so A = [3/4 1/4; 1/4 3/4].
    theta = torch.tensor([[[[5.0, -1.0]], [[1.0, 3.0]]]]).double()
    phi = torch.tensor([[[[2.0, 0.0]], [[-2.0, 6.0]]]]).double()
    value = torch.tensor([[[[4.0, 8.0]]]]).double().requires_grad_()
    foreground = torch.tensor([[[1.0, 0.0]]]).double()
    attended, sums = function(theta, phi, value, foreground, math.log(3) / 4, 0.0)
    torch.testing.assert_close(attended, torch.tensor([[[[5.0, 7.0]]]]).double())
    torch.testing.assert_close(sums, torch.tensor([[0.75, 0.25]]).double())
    # The gradient of attended[0] to the value is the first row of A.
    (grad,) = torch.autograd.grad(attended[0, 0, 0, 0], value)
    torch.testing.assert_close(grad, torch.tensor([[[[0.75, 0.25]]]]).double())
    # Divided by C - 1 = 1 the variance doubles: scores are +1 and -1.
    attended, _ = function(theta, phi, value, foreground, math.log(3) / 2, 0.0, True)
    torch.testing.assert_close(attended, torch.tensor([[[[5.0, 7.0]]]]).double())


@pytest.mark.parametrize("function", PATHS)
def test_a_constant_pixel_is_like_all_others(function):
    theta, phi, value, foreground = make_inputs(1, 4, 2, 3, 3)
    theta[0, :, 1, 1] = 7
    attended, sums = function(theta, phi, value, foreground)
    torch.testing.assert_close(attended[0, :, 1, 1], value.mean((2, 3))[0])
    torch.testing.assert_close(sums[0, 4], foreground.mean())


@pytest.mark.parametrize("function", PATHS)
def test_never_allocates_a_matrix_of_affinities(function, tmp_path):
    n, side = 3, 24
    inputs = [t.float().requires_grad_() for t in make_inputs(n, 4, 3, side, side)]
    grad = torch.ones(n, 4 * side**2)
    with profile(profile_memory=True, acc_events=True) as profiler:
        torch.autograd.grad(joined(function(*inputs)), inputs, grad)
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    sizes = [e["args"]["Bytes"] for e in events if e.get("name") == "[memory]"]
    assert len(sizes) > 10 and max(sizes) < side**4 * 4


def test_a_bool_foreground():
    theta, phi, value, foreground = (t.float() for t in make_inputs(2, 4, 3, 5, 5, "hard"))
    expected = affinity_attention(theta, phi, value, foreground)
    got = affinity_attention(theta.requires_grad_(), phi, value, foreground.bool())
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    got[1].sum().backward()
    assert theta.grad.isfinite().all()


@pytest.mark.parametrize("function", PATHS)
def test_autocast_keeps_the_dtype_and_joins_two(function):
    theta, phi, value, foreground = (t.float() for t in make_inputs(2, 4, 3, 5, 5))
    expected = function(theta, phi, value, foreground)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = function(theta, phi, value, foreground)
        mixed = affinity_attention(theta.bfloat16(), phi, value, foreground)
        half = affinity_attention(*(t.bfloat16() for t in (theta, phi, value)), foreground)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert {t.dtype for t in mixed} == {torch.float32}
    assert {t.dtype for t in half} == {torch.bfloat16}


def bad_calls():
    theta, phi, value, foreground = (t.float() for t in make_inputs(2, 4, 3, 5, 6))
    return {
        "theta must be [N, C, H, W], not [4, 5, 6].": (
            ValueError,
            (theta[0], phi, value, foreground),
        ),
        "phi [2, 3, 5, 6] must have the shape of theta [2, 4, 5, 6].": (
            ValueError,
            (theta, phi[:, :3], value, foreground),
        ),
        "value [2, 3, 5, 5] does not fit theta [2, 4, 5, 6]: it must be [N, G, H, W].": (
            ValueError,
            (theta, phi, value[..., :5], foreground),
        ),
        "foreground [2, 1, 5, 6] does not fit theta [2, 4, 5, 6]: it must be [N, H, W].": (
            ValueError,
            (theta, phi, value, foreground[:, None]),
        ),
        "theta [2, 4, 0, 6] has no channels or no pixels.": (
            ValueError,
            (theta[:, :, :0], phi[:, :, :0], value[:, :, :0], foreground[:, :0]),
        ),
        "theta is on cpu but value is on meta.": (
            ValueError,
            (theta, phi, value.to("meta"), foreground),
        ),
        "theta is float32 but phi is float64.": (
            TypeError,
            (theta, phi.double(), value, foreground),
        ),
        "the dtype must be float16, bfloat16, float32 or float64, not int64.": (
            TypeError,
            tuple(t.long() for t in (theta, phi, value, foreground)),
        ),
        "eps must be at least 0, not -1.": (
            ValueError,
            (theta, phi, value, foreground, 1.0, -1.0),
        ),
        "the unbiased variance needs at least 2 channels.": (
            ValueError,
            (theta[:, :1], phi[:, :1], value, foreground, 1.0, 0.0, True),
        ),
    }


@pytest.mark.parametrize("sentence", list(bad_calls()))
def test_bad_arguments_get_one_sentence(sentence):
    error, arguments = bad_calls()[sentence]
    with pytest.raises(error) as caught:
        affinity_attention(*arguments)
    assert str(caught.value) == f"affinity_attention: {sentence}"


@needs_extension
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("sentence", [s for s in bad_calls() if "meta" not in s])
def test_the_op_itself_says_the_same(sentence, device):
    error, arguments = bad_calls()[sentence]
    tensors = [t.to(device) for t in arguments[:4]]
    options = (*arguments[4:], *(1.0, 1e-5, False)[len(arguments) - 4 :])
    with pytest.raises(error) as caught:
        torch.ops.psis_d2.affinity_attention(*tensors, *options)
    assert str(caught.value).splitlines()[0] == f"affinity_attention: {sentence}"
