"""CPMask: the affinity loss by hand and by loops, gradients, what each ablation computes."""

import math

import psis_d2  # noqa: F401
from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.mask_heads import cpmask
from psis_d2.modeling.mask_heads.cpmask import AffinityParsing, BoundaryFusion, affinity_loss

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_mask_head
from detectron2.structures import Instances

from model_builders import CPMASK, partial_batch, tiny_config

ALL_OFF = ("BOUNDARY", False, "AFFINITY", False)


def make_head(*options, base=CPMASK, seed=0):
    """The mask head of a tiny config; options are KEY, VALUE, ... of PSIS.CPMASK."""
    keys = [f"PSIS.CPMASK.{x}" if i % 2 == 0 else x for i, x in enumerate(options)]
    cfg = tiny_config(*base, *keys)
    torch.manual_seed(seed)
    return build_mask_head(cfg, ShapeSpec(channels=16, height=14, width=14))


def make_context(num_objects=3):
    """Regions that are the annotated boxes of one image, with random features."""
    truth = partial_batch([[True] * num_objects])[0]["instances"]
    regions = Instances(
        truth.image_size,
        proposal_boxes=truth.gt_boxes,
        gt_classes=truth.gt_classes,
        gt_has_mask=truth.gt_has_mask,
        gt_index=torch.arange(num_objects),
    )
    features = torch.randn(num_objects, 16, 14, 14, generator=torch.Generator().manual_seed(1))
    return RegionContext(
        regions=[regions], features=features, pool=None, targets=[truth], all_annotated=True
    )


def losses_of(*options):
    """A head's losses of :func:`make_context`."""
    return make_head(*options).losses(make_context())


def affinities_by_loops(theta, phi, scale, eps=1e-5):
    """Eq. 4 and the softmax, pixel by pixel: lists of channels to rows of affinities."""

    def z_score(pixel):
        mean = sum(pixel) / len(pixel)
        variance = sum((c - mean) ** 2 for c in pixel) / len(pixel)
        return [(c - mean) / math.sqrt(variance + eps) for c in pixel]

    rows = []
    for query in map(z_score, theta):
        scores = [
            scale * sum(a * b for a, b in zip(query, z_score(key), strict=True)) for key in phi
        ]
        exponentials = [math.exp(s - max(scores)) for s in scores]
        rows.append([e / sum(exponentials) for e in exponentials])
    return rows


def eq_5_by_loops(rows, foreground):
    """Both terms of Eq. 5, read pixel by pixel, of one region."""
    inside = [i for i, is_foreground in enumerate(foreground) if is_foreground]
    outside = [i for i, is_foreground in enumerate(foreground) if not is_foreground]
    to_foreground = sum(abs(1 - sum(rows[i][j] for j in inside)) for i in inside) / len(inside)
    to_background = sum(abs(0 - sum(rows[i][j] for j in outside)) for i in inside) / len(inside)
    return to_foreground, to_background


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_affinity_loss_equals_equations_4_and_5_in_loops(scale):
    torch.manual_seed(0)
    module = AffinityParsing(6, scale=scale).double()
    x = torch.randn(3, 6, 3, 3, dtype=torch.float64)
    foreground = torch.rand(3, 3, 3) > 0.4
    _, sums = module(x, foreground)
    first = second = 0.0
    for region in range(3):
        theta, phi = (
            layer(x)[region].flatten(1).T.tolist() for layer in (module.theta, module.phi)
        )
        rows = affinities_by_loops(theta, phi, scale or 6**-0.5)
        terms = eq_5_by_loops(rows, foreground[region].flatten().tolist())
        first, second = first + terms[0] / 3, second + terms[1] / 3
        torch.testing.assert_close(module.affinities(x)[region], torch.tensor(rows).double())
    flat = foreground.flatten(1)
    assert affinity_loss(sums, flat, 2).item() == pytest.approx(first + second, rel=1e-5)
    assert affinity_loss(sums, flat, 1).item() == pytest.approx(first, rel=1e-5)
    assert first > 0.01


def test_affinity_loss_by_hand():
    sums = torch.tensor([[0.5, 0.75, 0.1], [0.2, 0.1, 0.3], [0.9, 0.6, 0.8]])
    # Two foreground pixels; none, which does not count; all of them.
    foreground = torch.tensor([[True, True, False], [False] * 3, [True] * 3])
    expected = ((0.5 + 0.25) / 2 + (0.1 + 0.4 + 0.2) / 3) / 2
    assert affinity_loss(sums, foreground, 1).item() == pytest.approx(expected)
    assert affinity_loss(sums, foreground, 2).item() == pytest.approx(2 * expected)
    single = torch.tensor([[True, False, False]])
    assert affinity_loss(sums[:1], single).item() == 0  # one pixel is no pair


def test_attention_adds_the_attended_values():
    """Eq. 6 and 7 with the affinities written out."""
    torch.manual_seed(0)
    module = AffinityParsing(5)
    x = torch.randn(2, 5, 3, 4)
    out, _ = module(x, torch.zeros(2, 3, 4, dtype=torch.bool))
    affinities = module.affinities(x)
    torch.testing.assert_close(affinities.sum(dim=2), torch.ones(2, 12))
    value = module.value(x).flatten(2)
    attended = torch.einsum("nij,ncj->nci", affinities, value).view_as(x)
    torch.testing.assert_close(out, x + module.project(attended))


def test_affinity_loss_falls_on_one_region():
    torch.manual_seed(0)
    module = AffinityParsing(8, norm="BN")
    x = torch.randn(1, 8, 6, 6)
    foreground = torch.zeros(1, 6, 6, dtype=torch.bool)
    foreground[:, 1:4, 2:5] = True
    x[:, :4] += 0.5 * foreground  # something that tells them apart
    optimizer = torch.optim.Adam([*module.theta.parameters(), *module.phi.parameters()], lr=0.02)
    losses = []
    for _ in range(60):
        loss = affinity_loss(module(x, foreground)[1], foreground.flatten(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1  # of 2
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("filled", [0.0, 1.0], ids=["no foreground", "all foreground"])
def test_extreme_regions_are_finite(filled):
    head = make_head()
    features = torch.randn(2, 16, 14, 14, requires_grad=True)
    foreground = torch.full((2, 14, 14), filled).bool()
    sums = head.parse(features, foreground).foreground_sums
    loss = affinity_loss(sums, foreground.flatten(1))
    assert loss.item() == pytest.approx(0, abs=1e-5)
    loss.backward()
    assert features.grad.isfinite().all()
    # A pixel whose channels are all equal has no z-score; it must not spoil the others.
    assert head.parse(torch.zeros(2, 16, 14, 14), foreground).mask.isfinite().all()


def test_affinity_loss_reaches_theta_and_phi():
    head = make_head()
    head.losses(make_context())["loss_affinity"].backward()
    for layer in (head.affinity.theta, head.affinity.phi):
        assert layer.weight.grad.abs().max() > 0
    grad = head.affinity.value.weight.grad
    assert grad is None or grad.eq(0).all()  # Eq. 5 is about affinities only


@pytest.mark.parametrize("fusion", [True, False])
def test_mask_loss_reaches_the_boundary_features_by_fusion_only(fusion):
    head = make_head("FUSION", fusion)
    # The predictor starts near zero; without this the gradients are small enough to vanish.
    torch.nn.init.normal_(head.predictor[-1].weight, std=1.0)
    head.losses(make_context())["loss_mask"].backward()
    grads = [p.grad for p in head.boundary_tower.parameters()]
    assert all((grad is not None and grad.abs().max() > 0) == fusion for grad in grads)


def test_boundary_fusion_by_hand():
    fusion = BoundaryFusion(2, 2, norm="")
    torch.nn.init.zeros_(fusion.gate.weight)  # a gate of one half
    fusion.project.weight.data = torch.eye(2).view(2, 2, 1, 1)
    x = torch.tensor([3.0, -1.0]).view(1, 2, 1, 1)
    boundary = torch.tensor([2.0, 1.0]).view(1, 2, 1, 1)
    assert fusion(x, boundary).flatten().tolist() == [4.0, 0.0]  # 3 + 1; relu(-1 + 0.5)


def test_losses_have_the_papers_weights():
    node = tiny_config().PSIS.CPMASK
    assert (node.BOUNDARY_WEIGHT, node.AFFINITY_WEIGHT) == (0.5, 0.5)
    plain = losses_of()
    # Boundary logits start near 0.
    assert plain["loss_boundary"].item() == pytest.approx(0.5 * math.log(2), abs=0.02)
    heavy = losses_of("BOUNDARY_WEIGHT", 1.5, "AFFINITY_WEIGHT", 1.0)
    torch.testing.assert_close(heavy["loss_boundary"], 3 * plain["loss_boundary"])
    torch.testing.assert_close(heavy["loss_affinity"], 2 * plain["loss_affinity"])
    one_term = losses_of("AFFINITY_TERMS", 1)
    torch.testing.assert_close(2 * one_term["loss_affinity"], plain["loss_affinity"])


class UpperRows(RegionContext):
    """A context whose object fills the upper 11 of 28 rows of each region."""

    def mask_targets(self, size):
        rows = torch.arange(size)[:, None] < 11 * size / 28
        return rows.expand(len(self), size, size).float()


def test_targets_of_the_modules_are_cut_from_the_mask(monkeypatch):
    context = UpperRows(**vars(make_context(1)))
    head = make_head()
    seen = []
    monkeypatch.setattr(cpmask, "affinity_loss", lambda *args: (seen.append(args), 0.0)[1])
    head.boundary_predictor[-1].bias.data.fill_(30.0)  # says "boundary" everywhere
    loss = head.losses(context)["loss_boundary"].item()
    assert loss == pytest.approx(0.5 * 30 * (1 - 2 / 28), rel=0.01)  # right in two rows of 28
    # 11 rows are five cells of the coarser map and half of the sixth, which counts.
    foreground = seen[0][1].view(14, 14)
    assert foreground.all(dim=1).tolist() == [True] * 6 + [False] * 8
    assert not foreground[6:].any()


def test_without_its_modules_it_is_the_baseline():
    context = make_context()
    baseline = make_head(base=("MODEL.ROI_MASK_HEAD.CONV_DIM", 32))
    assert type(baseline).__name__ == "FCNMaskHead"
    off = make_head(*ALL_OFF)
    assert torch.equal(off.losses(context)["loss_mask"], baseline.losses(context)["loss_mask"])
    assert off.losses(context).keys() == {"loss_mask"}


@pytest.mark.parametrize(
    ("options", "further_losses"),
    [
        ((), {"loss_boundary", "loss_affinity"}),
        (("FUSION", False), {"loss_boundary", "loss_affinity"}),
        (("AFFINITY", False), {"loss_boundary"}),
        (("AFFINITY", False, "FUSION", False), {"loss_boundary"}),
        (("BOUNDARY", False), {"loss_affinity"}),
        (("BOUNDARY", False, "AFFINITY_TERMS", 0), set()),
        (("FUSION_NORM", "BN", "AFFINITY_NORM", "GN"), {"loss_boundary", "loss_affinity"}),
    ],
)
def test_ablations_train(options, further_losses):
    head = make_head(*options)
    losses = head.losses(make_context())
    assert losses.keys() == {"loss_mask"} | further_losses
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    nothing = make_context(0)
    assert all(loss == 0 for loss in head.losses(nothing).values())
    assert head.losses(nothing).keys() == losses.keys()
    assert all(loss.isfinite() for loss in head.losses(make_context(1)).values())


def test_gain_0_starts_without_attention():
    context = make_context()
    without, silent = make_head("AFFINITY", False), make_head("AFFINITY_GAMMA", 0.0)
    silent.load_state_dict(without.state_dict(), strict=False)
    assert torch.equal(silent.losses(context)["loss_mask"], without.losses(context)["loss_mask"])


def test_heat_maps_are_boundary_probability_and_mean_affinity():
    head = make_head().eval()
    context = make_context()
    with torch.no_grad():
        head.predictor[-1].bias -= head.predict(context).median()  # a mask of half the cells
        maps = head.heat_maps(context)
        x, boundary = head.basic_features(context.features)
        affinities = head.affinity.affinities(x)
        mask = head.predict(context).sigmoid()[:, 0].reshape(3, 14, 2, 14, 2).mean((2, 4)) >= 0.5
    assert torch.equal(maps["boundary"], boundary[:, 0].sigmoid())
    assert 0.05 < mask.float().mean() < 0.95
    for region in range(3):
        rows = affinities[region][mask[region].flatten()]
        torch.testing.assert_close(maps["affinity"][region].flatten(), rows.mean(dim=0))
    assert make_head(*ALL_OFF).heat_maps(context) == {}


def test_what_attention_adds_is_normed_as_released():
    """By hand: the embeddings' variance is over C - 1, the norm's eps is 1e-4."""
    keys = ("PSIS.CPMASK.AFFINITY_UNBIASED", True, "PSIS.CPMASK.AFFINITY_NORM_EPS", 1e-4)
    head = make_head(base=(*CPMASK, *keys))
    parsing = head.affinity.double().train()
    x = torch.randn(2, 32, 3, 3, dtype=torch.float64)
    nothing = torch.zeros(2, 3, 3, dtype=torch.float64)
    found, _ = parsing(x, nothing)

    def embedded(layer):
        pixels = F.conv2d(x, layer.weight, layer.bias).relu().flatten(2).transpose(1, 2)
        centered = pixels - pixels.mean(dim=2, keepdim=True)
        return pixels, centered / (centered.square().sum(dim=2, keepdim=True) / 31 + 1e-5).sqrt()

    (_, theta), (_, phi), (value, _) = map(embedded, (parsing.theta, parsing.phi, parsing.value))
    affinities = (theta @ phi.transpose(1, 2) / math.sqrt(32)).softmax(dim=2)
    attended = (affinities @ value).transpose(1, 2).view(2, 32, 3, 3)
    added = F.conv2d(attended, parsing.project.weight, parsing.project.bias).relu()
    mean, variance = (
        f(added, dim=(0, 2, 3), keepdim=True)
        for f in (torch.mean, lambda *a, **k: torch.var(*a, **k, unbiased=False))
    )
    torch.testing.assert_close(found, x + (added - mean) / (variance + 1e-4).sqrt())


def test_released_constants_are_the_defaults():
    cfg = tiny_config(*CPMASK)
    torch.manual_seed(0)
    affinity = build_mask_head(cfg, ShapeSpec(channels=16, height=14, width=14)).affinity
    assert affinity.norm.eps == 1e-4
    assert affinity.unbiased
