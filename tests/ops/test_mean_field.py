"""The mean-field op: its equations in loops, blocks, what it does to masks, pydensecrf."""

import math

import psis_d2  # noqa: F401
from psis_d2.ops import mean_field
from psis_d2.ops.mean_field import _Filter

import numpy as np
import pytest
import torch

SETTINGS = {
    "gaussian_weight": 1.3,
    "gaussian_sigma": 0.8,
    "bilateral_weight": 2.1,
    "bilateral_sigma": 1.7,
    "color_sigma": 13.0,
}


def random_case(regions, height, width, dtype=torch.float64, channels=3):
    generator = torch.Generator().manual_seed(height * width)
    probabilities = torch.rand(regions, 1, height, width, generator=generator, dtype=dtype)
    guide = 40 * torch.rand(regions, channels, height, width, generator=generator, dtype=dtype)
    return probabilities, guide


def by_loops(
    probability,
    guide,
    steps,
    *,
    gaussian_weight,
    gaussian_sigma,
    bilateral_weight,
    bilateral_sigma,
    color_sigma,
):
    """Both labels' energies of one region, pixel by pixel: rows of probabilities."""
    height, width = len(probability), len(probability[0])
    pixels = [(y, x) for y in range(height) for x in range(width)]

    def squares(a, b):
        return sum((s - t) ** 2 for s, t in zip(a, b, strict=True))

    def gaussian(i, j):
        return math.exp(-squares(i, j) / (2 * gaussian_sigma**2))

    def bilateral(i, j):
        colors = squares(*([channel[y][x] for channel in guide] for y, x in (i, j)))
        exponent = -squares(i, j) / (2 * bilateral_sigma**2) - colors / (2 * color_sigma**2)
        return math.exp(exponent)

    kernels = []
    for weight, kernel in ((gaussian_weight, gaussian), (bilateral_weight, bilateral)):
        norms = {i: sum(kernel(i, j) for j in pixels) for i in pixels}
        kernels.append(
            lambda i, j, w=weight, k=kernel, n=norms: w * k(i, j) / math.sqrt(n[i] * n[j])
        )
    unary = {
        (y, x): (-math.log(1 - probability[y][x]), -math.log(probability[y][x])) for y, x in pixels
    }
    beliefs = {i: tuple(math.exp(-u) for u in unary[i]) for i in pixels}
    for _ in range(steps):
        new = {}
        for i in pixels:
            # Potts: a label pays for what its neighbors believe of the other one.
            energies = [
                unary[i][label]
                + sum(kernel(i, j) * beliefs[j][1 - label] for kernel in kernels for j in pixels)
                for label in (0, 1)
            ]
            scores = [math.exp(min(energies) - e) for e in energies]
            new[i] = tuple(s / sum(scores) for s in scores)
        beliefs = new
    return [[beliefs[y, x][1] for x in range(width)] for y in range(height)]


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
def test_equals_the_update_in_loops(size, steps):
    probabilities, guide = random_case(2, *size)
    result = mean_field(probabilities, guide, steps=steps, **SETTINGS)
    expected = [
        by_loops(p[0].tolist(), g.tolist(), steps, **SETTINGS)
        for p, g in zip(probabilities, guide, strict=True)
    ]
    assert torch.allclose(result[:, 0], torch.tensor(expected, dtype=torch.float64), atol=1e-12)


def test_two_pixels_by_hand():
    """Kernel [[1, k], [k, 1]] of norm 1 + k; a certain and an undecided pixel, one step."""
    probabilities = torch.tensor([[[[0.8, 0.5]]]], dtype=torch.float64)
    result = mean_field(
        probabilities,
        torch.zeros(1, 3, 1, 2, dtype=torch.float64),
        steps=1,
        gaussian_weight=2.0,
        gaussian_sigma=1.0,
        bilateral_weight=0.0,
    )
    k = math.exp(-0.5)
    logits = [math.log(4) + 2 * 0.6 / (1 + k), 0 + 2 * k * 0.6 / (1 + k)]
    expected = torch.tensor([1 / (1 + math.exp(-x)) for x in logits], dtype=torch.float64)
    assert torch.allclose(result.flatten(), expected, atol=1e-12)


# groups of regions, one region, blocks of rows that do not divide it, single rows
@pytest.mark.parametrize("max_elements", [2 * 20 * 20, 20 * 20, 7 * 20, 1])
def test_memory_is_bounded_and_the_result_is_the_same(max_elements, monkeypatch):
    probabilities, guide = random_case(3, 4, 5)
    whole = mean_field(probabilities, guide, **SETTINGS)
    sizes, original = [], _Filter._block

    def spy(self, start):
        block = original(self, start)
        sizes.append(block.numel())
        return block

    monkeypatch.setattr(_Filter, "_block", spy)
    result = mean_field(probabilities, guide, max_elements=max_elements, **SETTINGS)
    assert torch.allclose(result, whole, atol=1e-12)
    assert max(sizes) <= max(max_elements, 20)  # never less than a row


def test_the_default_settings_give_a_blurred_mask_the_image_s_edge():
    """A disc of another color; the mask is its box, blurred and noisy."""
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    disc = (y - 13.5) ** 2 + (x - 13.5) ** 2 < 11**2
    guide = torch.where(disc, 200.0, 60.0) + 5 * torch.randn(1, 3, 28, 28)
    blurred = torch.sigmoid((11 - (y - 13.5).abs().maximum((x - 13.5).abs())) / 3)
    blurred = (blurred + 0.1 * torch.randn(28, 28)).clamp(0.01, 0.99)
    assert ((blurred > 0.5) != disc).float().mean() > 0.1
    result = mean_field(blurred[None, None], guide)
    assert torch.equal(result[0, 0] > 0.5, disc)


def test_certain_pixels_can_change_and_results_carry_no_gradient():
    probabilities = torch.ones(1, 1, 5, 5, requires_grad=True)
    with torch.no_grad():
        probabilities[..., 2, 2] = 0.0
    result = mean_field(probabilities, torch.zeros(1, 3, 5, 5))
    assert result.isfinite().all()
    assert (result > 0.5).all()
    assert not result.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype):
    probabilities, guide = random_case(2, 4, 5, torch.float32)
    expected = mean_field(probabilities.to(dtype).double(), guide.to(dtype).double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = mean_field(probabilities.to(dtype), guide.to(dtype))
    assert result.dtype == dtype
    # half a unit in the last place, and float32's own rounding
    assert (result - expected).abs().max() <= torch.finfo(dtype).eps / 2 + 2e-5


def test_no_region():
    assert mean_field(torch.rand(0, 1, 4, 5), torch.rand(0, 3, 4, 5)).shape == (0, 1, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        ((torch.rand(2, 4, 5), torch.rand(2, 3, 4, 5)), {}, r"must be \[R, 1, H, W\]"),
        ((torch.rand(2, 2, 4, 5), torch.rand(2, 3, 4, 5)), {}, r"must be \[R, 1, H, W\]"),
        ((torch.rand(2, 1, 4, 5), torch.rand(1, 3, 4, 5)), {}, "does not fit"),
        ((torch.rand(2, 1, 4, 5), torch.rand(2, 3, 5, 5)), {}, "does not fit"),
        ((torch.rand(2, 1, 4, 5), torch.rand(2, 3, 4, 5)), {"steps": -1}, "at least 0, not -1"),
        (
            (torch.rand(2, 1, 4, 5), torch.rand(2, 3, 4, 5)),
            {"color_sigma": 0.0},
            "widths must be positive, not 0.0",
        ),
    ],
)
def test_arguments_that_do_not_fit(arguments, settings, words):
    with pytest.raises(ValueError, match=f"mean_field: .*{words}"):
        mean_field(*arguments, **settings)


def test_masks_are_floating_point():
    with pytest.raises(TypeError, match="not bool"):
        mean_field(torch.ones(1, 1, 4, 5, dtype=torch.bool), torch.rand(1, 3, 4, 5))
    with pytest.raises(TypeError, match="guide must be floating point, not uint8"):
        mean_field(torch.rand(1, 1, 4, 5), torch.zeros(1, 3, 4, 5, dtype=torch.uint8))


# Weak kernels leave probabilities between 0 and 1; the second settings are the defaults.
@pytest.mark.parametrize(("steps", "gaussian", "bilateral"), [(1, 1, 1), (5, 3, 10)])
def test_agrees_with_pydensecrf(steps, gaussian, bilateral):
    """Their lattice approximates the kernels, so single pixels differ."""
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    torch.manual_seed(0)
    size = 28
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    ellipse = ((y - 12) / 9) ** 2 + ((x - 15) / 6) ** 2 < 1
    colors = torch.where(ellipse, 150.0, 90.0) + 15 * torch.randn(3, size, size)
    image = np.ascontiguousarray(colors.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
    probability = torch.sigmoid((8 - (y - 13).abs().maximum((x - 14).abs())) / 3)
    probability = (probability + 0.1 * torch.randn(size, size)).clamp(0.05, 0.95)

    field = densecrf.DenseCRF2D(size, size, 2)
    both = torch.stack([1 - probability, probability]).flatten(1)
    field.setUnaryEnergy(np.ascontiguousarray(-both.log().numpy()))
    field.addPairwiseGaussian(sxy=3, compat=gaussian)
    field.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=bilateral)
    theirs = torch.from_numpy(np.array(field.inference(steps)))[1].view(size, size)

    guide = torch.from_numpy(image).permute(2, 0, 1).float()
    ours = mean_field(
        probability[None, None],
        guide[None],
        steps=steps,
        gaussian_weight=gaussian,
        bilateral_weight=bilateral,
    )[0, 0]
    assert 0.1 < (theirs > 0.5).float().mean() < 0.4
    assert ((ours > 0.5) == (theirs > 0.5)).float().mean() > 0.99  # measured: 0.999 and 1
    assert (ours - theirs).abs().mean() < 0.005  # measured: 0.0015 and 0.00001
