"""message_passing: hand-computed case, reference, kernels, gradients, errors, compilation."""

import logging

from psis_d2.ops import (
    _extension,
    has_extension,
    message_passing,
    op_paths,
    reference,
    without_kernels,
)

import pytest
import torch
import torch.nn.functional as F

from op_tester import OpTester, needs_cuda

NORMS = ("softmax", "sigmoid_sum", "none")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])]
# (N, C, H, W, T): both sides of every vector length, maps of one pixel, row or column, no regions.
SIZES = [
    (2, 3, 1, 1, 2),
    (1, 2, 1, 5, 3),
    (1, 2, 6, 1, 3),
    (2, 3, 3, 5, 4),
    (3, 4, 7, 7, 7),
    (2, 5, 14, 14, 14),
    (1, 2, 28, 28, 28),
    (2, 2, 9, 15, 1),
    (1, 3, 5, 16, 5),
    (1, 3, 17, 33, 10),
    (2, 3, 4, 6, 0),
    (0, 3, 5, 4, 2),
    (1, 1, 4, 4, 3),
]
needs_extension = pytest.mark.skipif(not has_extension(), reason="the extension is not built")


def needs_kernel(device: str) -> None:
    """Skips where the op would run on the reference."""
    if op_paths()["message_passing"][device] != "extension":
        pytest.skip(f"the extension is built without kernels for {device}")


def make_inputs(n, c, h, w, wc, norm="softmax", seed=0):
    """m0 and weights in float64; without normalization the weights must not let m grow."""
    generator = torch.Generator().manual_seed(seed)
    m0 = torch.randn(n, c, h, w, generator=generator, dtype=torch.float64)
    weights = torch.randn(n, wc * 9, h, w, generator=generator, dtype=torch.float64)
    return m0, weights * (0.2 if norm == "none" else 1.0)


def eq4(m0, weights, steps, norm):
    """Eq. 4 of the paper, pixel by pixel."""
    n, c, h, w = m0.shape
    state = m0.tolist()
    raw = weights.reshape(n, -1, 9, h, w)
    for _ in range(steps):
        old = state
        state = [[[[0.0] * w for _ in range(h)] for _ in range(c)] for _ in range(n)]
        for i in range(n):
            for j in range(c):
                for u in range(h):
                    for v in range(w):
                        k = raw[i, j if raw.shape[1] > 1 else 0, :, u, v]
                        if norm == "softmax":
                            k = k.exp() / k.exp().sum()
                        elif norm == "sigmoid_sum":
                            s = 1 / (1 + (-k).exp())
                            k = s / (s.sum() + 1e-5)
                        for tap in range(9):
                            y, x = u + tap // 3 - 1, v + tap % 3 - 1
                            if 0 <= y < h and 0 <= x < w:
                                state[i][j][u][v] += k[tap].item() * old[i][j][y][x]
    return torch.tensor(state, dtype=torch.float64).reshape(m0.shape)


def unfold_form(m0, weights, steps, norm):
    """The authors' form, in the dtype of its inputs."""
    n, c, h, w = m0.shape
    kernel = weights.reshape(n, -1, 9, h, w)
    kernel = reference.normalize_weights(kernel, norm).reshape(n, -1, 9, h * w)
    state = m0
    for _ in range(steps):
        windows = F.unfold(state, 3, padding=1).view(n, c, 9, h * w)
        state = (windows * kernel).sum(2).view(n, c, h, w)
    return state


class TestKernels(OpTester):
    """The compiled op against the reference."""

    def fn(self, m0, weights, steps, norm):
        return message_passing(m0, weights, steps, norm)

    def expected_fn(self, m0, weights, steps, norm):
        return reference.message_passing(m0, weights, steps, norm)

    def literal_fn(self, m0, weights, steps, norm):
        return unfold_form(m0, weights, steps, norm)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("shared", [False, True], ids=["per-channel", "shared"])
    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_twin(self, size, norm, shared, dtype, device):
        needs_kernel(device)
        *shape, steps = size
        inputs = make_inputs(*shape, wc=1 if shared else shape[1], norm=norm)
        self.check(inputs, (steps, norm), dtype, device)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("wc", [1, 3])
    def test_half(self, wc, norm, dtype, device):
        needs_kernel(device)
        self.check(make_inputs(2, 3, 7, 9, wc, norm), (7, norm), dtype, device)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    @pytest.mark.parametrize("norm", NORMS)
    def test_not_contiguous(self, norm, dtype, device):
        needs_kernel(device)
        m0, weights = make_inputs(2, 3, 5, 7, 3, norm)
        transposed = m0.transpose(2, 3).contiguous().transpose(2, 3)
        channels_last = weights.contiguous(memory_format=torch.channels_last)
        assert not transposed.is_contiguous() and not channels_last.is_contiguous()
        self.check([transposed, channels_last], (4, norm), dtype, device)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("norm", ["softmax", "sigmoid_sum"])
    def test_extreme_logits(self, norm, device):
        needs_kernel(device)
        m0, weights = make_inputs(2, 3, 6, 6, 3)
        # The saturated sigmoid's gradient is 1e-35: compared with the size of what it scales.
        scale = m0.norm().item()
        self.check([m0, weights.sign() * 80], (6, norm), torch.float32, device, scale)

    @pytest.mark.parametrize("device", DEVICES)
    def test_all_logits_very_negative(self, device):
        # sigmoid(-80) = 1.8e-35: the sum is far below epsilon, nothing is left of m after a step.
        needs_kernel(device)
        m0, weights = make_inputs(1, 2, 4, 4, 2)
        m0, weights = m0.float().to(device), torch.full_like(weights, -80).float().to(device)
        assert message_passing(m0, weights, 1, "sigmoid_sum").abs().max() < 1e-28
        even = message_passing(m0, weights, 1, "softmax").cpu()
        torch.testing.assert_close(even, F.avg_pool2d(m0.cpu(), 3, 1, 1))

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("size", [(2, 2, 40, 33, 3), (1, 2, 64, 64, 2)], ids=str)
    def test_several_pixels_per_thread(self, size, device):
        needs_kernel(device)
        *shape, steps = size
        self.check(make_inputs(*shape, wc=1), (steps, "softmax"), torch.float32, device)

    @pytest.mark.gpu
    @needs_cuda
    def test_larger_maps_on_cuda_run_on_the_twin(self):
        self.check(make_inputs(1, 2, 70, 9, 2), (2, "softmax"), torch.float32, "cuda")

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("wc", [1, 4])
    def test_repeatable(self, wc, device):
        needs_kernel(device)
        inputs = [t.float().to(device) for t in make_inputs(8, 4, 14, 14, wc)]
        self.check_repeatable(inputs, (14, "sigmoid_sum"))

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("wc", [1, 2])
    def test_gradcheck(self, wc, norm, device):
        needs_kernel(device)
        inputs = [t.to(device).requires_grad_() for t in make_inputs(2, 2, 3, 4, wc, norm)]
        assert torch.autograd.gradcheck(lambda m, w: self.fn(m, w, 3, norm), inputs)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("steps", [0, 3])
    def test_opcheck(self, steps, device):
        needs_kernel(device)
        m0, weights = (t.float().to(device) for t in make_inputs(2, 3, 4, 5, 1))
        ops = torch.ops.psis_d2
        leaves = m0.clone().requires_grad_(), weights.clone().requires_grad_()
        torch.library.opcheck(ops.message_passing.default, (*leaves, steps, "softmax"))
        arguments = (m0.sin(), m0, weights, steps, "softmax")
        torch.library.opcheck(ops.message_passing_bwd.default, arguments)

    @pytest.mark.parametrize("device", DEVICES)
    def test_gradients_are_finite_and_not_zero(self, device):
        needs_kernel(device)
        inputs = [t.float().to(device) for t in make_inputs(2, 3, 14, 14, 3)]
        for grad in self._run(self.fn, inputs, (14, "sigmoid_sum"))[1:]:
            assert grad.isfinite().all() and (grad != 0).all()

    @needs_extension
    def test_func_transforms(self):
        self.check_func_transforms(make_inputs(2, 2, 3, 4, 1), (3, "softmax"))

    @needs_extension
    def test_refuses_double_backward(self):
        m0, weights = (t.requires_grad_() for t in make_inputs(1, 2, 3, 3, 2))
        (grad,) = torch.autograd.grad(
            message_passing(m0, weights, 2).square().sum(), m0, create_graph=True
        )
        with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
            grad.sum().backward()

    @needs_extension
    def test_more_threads_give_the_same_bits(self):
        inputs = [t.float() for t in make_inputs(8, 3, 9, 9, 3)]
        threads = torch.get_num_threads()
        results = []
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                results.append(self._run(self.fn, inputs, (9, "softmax")))
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

    @needs_extension
    @pytest.mark.slow
    def test_compiles_without_a_break_for_any_number_of_regions(self):
        def loss(m0, weights):
            return message_passing(m0 * 2, weights, 3, "softmax").square().mean()

        compiled = torch.compile(loss, fullgraph=True, dynamic=True)
        for n in (2, 5, 3):
            inputs = [t.float() for t in make_inputs(n, 2, 5, 6, 2)]
            got, expected = (self._run(f, inputs, ()) for f in (compiled, loss))
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b)


PATHS = [
    pytest.param(message_passing, id="public"),
    pytest.param(reference.message_passing, id="reference"),
]


@pytest.mark.parametrize("function", PATHS)
def test_hand_computed(function):
    # A 2 x 2 map, all mass at the upper left, two steps:   m_0 = [8 0]
    #                                                             [0 0]
    # All logits 0: softmax gives K = 1/9 for each tap, inside the image or not. Every pixel sees
    # all four pixels, so                 m_1 = 8/9 everywhere: 4 * 8/9 of the mass 8 is left,
    # and then                            m_2 = 4 * 1/9 * 8/9 = 32/81 everywhere.
    m0 = torch.tensor([[[[8.0, 0.0], [0.0, 0.0]]]], dtype=torch.float64)
    weights = torch.zeros(1, 9, 2, 2, dtype=torch.float64)
    expected = torch.full_like(m0, 32 / 81)
    torch.testing.assert_close(function(m0, weights, 2, "softmax"), expected)
    # sigmoid(0) = 1/2: K = (1/2) / (9/2 + 1e-5) for each tap.
    k = 0.5 / (4.5 + 1e-5)
    expected = torch.full_like(m0, 4 * k * k * 8)
    torch.testing.assert_close(function(m0, weights, 2, "sigmoid_sum"), expected)
    # "none" with weight 1 at one tap, 5: the right neighbor. The map moves left, its first column
    # falls off and zeros come in. [1 2] -> [2 0]
    #                              [3 4]    [4 0]
    m0 = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=torch.float64)
    weights[:, 5] = 1
    expected = torch.tensor([[[[2.0, 0.0], [4.0, 0.0]]]], dtype=torch.float64)
    torch.testing.assert_close(function(m0, weights, 1, "none"), expected)
    # Its gradient, of ones: pixel (u, v) is read by (u, v - 1), so the first column gets 0; and
    # weight j of (u, v) gets what it would read, tap 1 (above) at (1, 0) reads 1.
    m0.requires_grad_()
    weights.requires_grad_()
    function(m0, weights, 1, "none").sum().backward()
    assert m0.grad.tolist() == [[[[0.0, 1.0], [0.0, 1.0]]]]
    assert weights.grad[0, 1].tolist() == [[0.0, 0.0], [1.0, 2.0]]
    assert weights.grad[0, 8].tolist() == [[4.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("function", PATHS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("wc", [1, 2])
def test_equals_a_literal_loop_over_eq4(wc, norm, function):
    m0, weights = make_inputs(2, 2, 3, 4, wc, norm, seed=1)
    expected = eq4(m0, weights, 3, norm)
    torch.testing.assert_close(function(m0, weights, 3, norm), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", PATHS)
def test_channels_are_ordered_before_taps(function):
    # Channel 0 moves its map left (tap 5), channel 1 moves it up (tap 7).
    m0 = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(1, 2, 2, 2)
    weights = torch.zeros(1, 18, 2, 2)
    weights[:, 5] = 1
    weights[:, 9 + 7] = 1
    result = function(m0, weights, 1, "none")
    assert result.tolist() == [[[[2.0, 0.0], [4.0, 0.0]], [[3.0, 4.0], [0.0, 0.0]]]]


@pytest.mark.parametrize("function", PATHS)
def test_no_steps_copy(function):
    m0, weights = make_inputs(1, 2, 3, 3, 2)
    result = function(m0, weights, 0, "softmax")
    assert torch.equal(result, m0) and result.data_ptr() != m0.data_ptr()


def test_mass_leaks_only_at_the_border():
    # Softmax weights sum to one: a constant map keeps its value where no border is within T steps.
    m0 = torch.ones(1, 1, 9, 9, dtype=torch.float64)
    _, weights = make_inputs(1, 1, 9, 9, 1)
    result = message_passing(m0, weights, 2, "softmax")[0, 0]
    torch.testing.assert_close(result[2:7, 2:7], m0[0, 0, 2:7, 2:7])
    assert (result[0] < 1).all() and (result[:, 8] < 1).all()


def test_autocast_keeps_the_dtype_and_joins_two():
    m0, weights = (t.float() for t in make_inputs(2, 3, 5, 5, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert message_passing(m0, weights, 4).dtype == torch.float32
        half = message_passing(m0.bfloat16(), weights.bfloat16(), 4)
        mixed = message_passing(m0, weights.bfloat16(), 4)
    assert half.dtype == torch.bfloat16 and mixed.dtype == torch.float32
    exact = message_passing(m0, weights.bfloat16().float(), 4)
    assert torch.equal(mixed, exact)
    # The maps in between are float32: only the result is rounded.
    exact = message_passing(m0.bfloat16().float(), weights.bfloat16().float(), 4)
    assert torch.equal(half, exact.bfloat16())


def bad_calls():
    m0, weights = (t.float() for t in make_inputs(2, 3, 4, 5, 3))
    return {
        "m0 must be [N, C, H, W], not [3, 4, 5].": (ValueError, (m0[0], weights, 1, "none")),
        "weights must be [N, Wc * 9, H, W], not [27, 4, 5].": (
            ValueError,
            (m0, weights[0], 1, "none"),
        ),
        "weights [2, 18, 4, 5] do not fit m0 [2, 3, 4, 5]: they must be [N, 9, H, W] or "
        "[N, C * 9, H, W].": (ValueError, (m0, weights[:, :18], 1, "none")),
        "weights [1, 27, 4, 5] do not fit": (ValueError, (m0, weights[:1], 1, "none")),
        "m0 is on cpu but weights are on meta.": (
            ValueError,
            (m0, weights.to("meta"), 1, "none"),
        ),
        "m0 is float32 but weights are float64.": (TypeError, (m0, weights.double(), 1, "none")),
        "the dtype must be float16, bfloat16, float32 or float64, not int64.": (
            TypeError,
            (m0.long(), weights.long(), 1, "none"),
        ),
        "steps must be at least 0, not -1.": (ValueError, (m0, weights, -1, "none")),
        "norm must be 'softmax', 'sigmoid_sum' or 'none', not 'max'.": (
            ValueError,
            (m0, weights, 1, "max"),
        ),
    }


@pytest.mark.parametrize("sentence", list(bad_calls()))
def test_bad_arguments_get_one_sentence(sentence):
    error, arguments = bad_calls()[sentence]
    with pytest.raises(error) as caught:
        message_passing(*arguments)
    message = str(caught.value)
    assert message.startswith(f"message_passing: {sentence}") and "\n" not in message


@needs_extension
@pytest.mark.parametrize("sentence", [s for s in bad_calls() if "meta" not in s])
def test_the_op_itself_says_the_same(sentence):
    error, arguments = bad_calls()[sentence]
    with pytest.raises(error) as public:
        message_passing(*arguments)
    with pytest.raises(error) as direct:
        torch.ops.psis_d2.message_passing(*arguments)
    assert str(direct.value).splitlines()[0] == str(public.value)


def test_steps_must_be_an_integer():
    m0, weights = make_inputs(1, 1, 2, 2, 1)
    for steps in (1.0, True, None):
        with pytest.raises(TypeError, match="steps must be an integer"):
            message_passing(m0, weights, steps)


@needs_extension
def test_kernels_can_be_switched_off():
    inputs = make_inputs(2, 2, 3, 3, 2)

    def recorded():
        with torch.profiler.profile() as profiler:
            message_passing(*inputs, 2)
        return any(event.key == "psis_d2::message_passing" for event in profiler.key_averages())

    with without_kernels():
        assert not recorded()
    assert recorded()


class TestWithoutExtension:
    """What a package without a built extension does."""

    @pytest.fixture(autouse=True)
    def no_extension(self, monkeypatch):
        monkeypatch.setattr(_extension, "_LOAD_ERROR", "it is not built")
        monkeypatch.setattr(_extension, "_BACKENDS", ())
        monkeypatch.setattr(_extension, "_announced", set())

    def test_runs_on_the_twin_and_says_so_once(self, caplog):
        m0, weights = make_inputs(2, 2, 3, 3, 2)
        with caplog.at_level(logging.INFO, logger="psis_d2"):
            results = [message_passing(m0, weights, 2) for _ in range(3)]
        expected = reference.message_passing(m0, weights, 2, "sigmoid_sum")
        assert all(torch.equal(result, expected) for result in results)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "it is not built" in record.message and "setup.py build_ext" in record.message

    def test_paths(self):
        assert not has_extension()
        assert op_paths()["message_passing"] == {"cpu": "pytorch", "cuda": "pytorch"}
        assert _extension.build_info() is None

    def test_can_be_differentiated_twice(self):
        inputs = [t.requires_grad_() for t in make_inputs(1, 1, 2, 3, 1)]
        assert torch.autograd.gradgradcheck(lambda m, w: message_passing(m, w, 2), inputs)
