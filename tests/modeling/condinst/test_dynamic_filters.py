"""The dynamic network by hand and by loops, the mask branch, the sampled locations."""

import psis_d2.modeling  # noqa: F401
from psis_d2.modeling.condinst.dynamic_filters import (
    Controller,
    DynamicLayers,
    Queries,
    dynamic_logits,
    gather_patches,
)
from psis_d2.modeling.condinst.mask_branch import MaskBranch
from psis_d2.modeling.condinst.sampling import best_of_each, sample_locations

import pytest
import torch
from detectron2.layers import ShapeSpec

from model_builders import (
    condinst_model,
    dynamic_queries,
    partial_batch,
    tiny_config,
    training_losses,
)

MIXED = [[True, False, False], [True, True], []]
ALL_LOSSES = {"loss_mask", "loss_projection", "loss_pairwise"}


@pytest.mark.parametrize(("channels", "expected"), [(8, 169), (16, 233)])
def test_number_of_dynamic_parameters(channels, expected):
    assert DynamicLayers(features=channels, dim=8, depth=3).num_params == expected
    model = condinst_model("boxinst", "CHANNELS", channels)
    assert model.mask_head.controller.conv.out_channels == expected
    # A student has 8 weights and a bias for each further class.
    model = condinst_model("boxinst_teacher_student", "CHANNELS", channels)
    assert model.mask_head.student.conv.out_channels == expected + 19 * 9


def test_full_configs_have_them_as_published():
    for method, channels in {"condinst": 8, "boxinst": 16, "boxinst_mixed": 16}.items():
        node = tiny_config(config=f"{method}_R50.yaml").PSIS.CONDINST
        assert (method, node.CHANNELS) == (method, channels)


def test_relative_coordinates_by_hand():
    """One layer that hands a coordinate through: cells of 8 pixels, location (12, 20), unit 64."""
    queries = Queries(
        images=torch.tensor([0]),
        locations=torch.tensor([0]),
        centers=torch.tensor([[12.0, 20.0]]),
        sizes=torch.tensor([64.0]),
        classes=torch.tensor([0]),
    )
    layers = DynamicLayers(features=1, dim=8, depth=1)
    expected = {0: [[-8 / 64, 0, 8 / 64]] * 2, 1: [[-16 / 64] * 3, [-8 / 64] * 3]}
    for channel, logits in expected.items():
        params = torch.zeros(1, 4)
        params[0, channel] = 1.0
        split = layers.split(params, queries.classes)
        found = dynamic_logits(split, torch.rand(1, 1, 2, 3), queries, 8)
        torch.testing.assert_close(found[0], torch.tensor(logits))


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_groups_equal_a_loop_over_instances(depth, classes):
    layers = DynamicLayers(features=4, dim=5, depth=depth, classes=classes)
    torch.manual_seed(0)
    features, queries = torch.randn(3, 4, 6, 7), dynamic_queries(6, images=2)  # none in the third
    params = torch.randn(6, layers.num_params)
    found = dynamic_logits(layers.split(params, queries.classes), features, queries, 4)
    for k in range(6):
        x = (torch.arange(7) * 4 + 2 - queries.centers[k, 0]) / queries.sizes[k]
        y = (torch.arange(6) * 4 + 2 - queries.centers[k, 1]) / queries.sizes[k]
        image = features[queries.images[k]]
        out = torch.cat([x.expand(1, 6, 7), y[:, None].expand(1, 6, 7), image])[None]
        rest, channels = params[k], [6] + [5] * (depth - 1) + [classes]
        weights = []
        for into, to in zip(channels[:-1], channels[1:], strict=True):
            weights.append(rest[: into * to].view(to, into, 1, 1))
            rest = rest[into * to :]
        for layer, weight in enumerate(weights):
            bias, rest = rest[: len(weight)], rest[len(weight) :]
            out = torch.nn.functional.conv2d(out if layer == 0 else out.relu(), weight, bias)
        assert len(rest) == 0
        own = queries.classes[k] if classes > 1 else 0
        torch.testing.assert_close(found[k], out[0, own], atol=1e-4, rtol=1e-4)


def test_no_instance_has_an_empty_mask():
    layers = DynamicLayers(features=4, dim=5, depth=3)
    params = torch.zeros(0, layers.num_params)
    queries = dynamic_queries(0)
    found = dynamic_logits(
        layers.split(params, queries.classes), torch.rand(2, 4, 6, 7), queries, 4
    )
    assert found.shape == (0, 6, 7)


def test_controller_is_the_convolution_at_its_locations():
    torch.manual_seed(0)
    maps = [torch.randn(2, 5, 3, 4), torch.randn(2, 5, 2, 2)]
    controller = Controller(5, 7)
    torch.nn.init.normal_(controller.conv.bias)
    dense = torch.cat([controller.conv(x).flatten(2) for x in maps], dim=2)
    images = torch.arange(2).repeat_interleave(16)
    locations = torch.cat([torch.randperm(16) for _ in range(2)])
    found = controller(maps, images, locations)
    torch.testing.assert_close(found, dense[images, :, locations])
    assert controller(maps, images[:0], locations[:0]).shape == (0, 7)
    corner = gather_patches(maps, torch.tensor([1]), torch.tensor([0]))[0]
    assert corner[:, 0].eq(0).all()
    assert torch.equal(corner[:, 1:, 1:], maps[0][1, :, :2, :2])


def test_mask_branch_adds_upsampled_levels():
    torch.manual_seed(0)
    shapes = [ShapeSpec(channels=3, stride=s) for s in (4, 8)]
    branch = MaskBranch(shapes, dim=6, num_convs=0, norm="", channels=6)
    branch.project.weight.data = torch.eye(6).view(6, 6, 1, 1)
    branch.project.bias.data.zero_()
    fine, coarse = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 4, 4)
    # Away from edges, 16 parts of a cell: 9 of the one it lies in, 3, 3 and 1 of its neighbors.
    cells = branch.refine[1](coarse)[0]
    expected = 9 * cells[:, 1, 1] + 3 * cells[:, 1, 2] + 3 * cells[:, 2, 1] + cells[:, 2, 2]
    found = (branch([fine, coarse]) - branch.refine[0](fine))[0, :, 3, 3]
    torch.testing.assert_close(found, expected / 16)


def test_locations_are_shared_out_among_objects():
    objects = torch.tensor([-1, 0, 0, 0, 1, 0, 2, 2, -1])
    quality = torch.tensor([0.9, 0.1, 0.4, 0.3, 0.1, 0.2, 0.5, 0.6, 0.8])
    assert best_of_each(objects, quality, 6).tolist() == [2, 3, 4, 6, 7]
    assert best_of_each(objects, quality, 3).tolist() == [2, 4, 7]
    assert best_of_each(objects, quality, 1).tolist() == [2, 4, 7]  # no object goes without
    assert best_of_each(objects, quality, 0).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert best_of_each(torch.full((4,), -1), quality[:4], 6).tolist() == []


def test_a_process_has_a_limit():
    objects = torch.arange(40).view(2, 20).fmod(3)
    quality = torch.rand(2, 20)
    images, rows = sample_locations(objects, quality, 0, 0)
    assert (images * 20 + rows).tolist() == list(range(40))
    torch.manual_seed(0)
    first = sample_locations(objects, quality, 0, 12)
    assert len(first[0]) == len({*zip(*(x.tolist() for x in first), strict=True)}) == 12
    assert first[0].tolist() == sorted(first[0].tolist())
    assert 0 < first[0].sum() < 12
    assert not torch.equal(sample_locations(objects, quality, 0, 12)[1], first[1])


@pytest.mark.parametrize(
    ("config", "objects"), [("condinst", 3), ("boxinst", 5), ("boxinst_teacher_student", 5)]
)
def test_masks_mode_samples_annotated_objects_alone(config, objects, monkeypatch):
    model = condinst_model(config)
    sampled = []
    losses = model.mask_head.losses
    record = lambda *args: (sampled.append(args[2:]), losses(*args))[1]  # noqa: E731
    monkeypatch.setattr(model.mask_head, "losses", record)
    training_losses(model, partial_batch(MIXED))
    queries, targets = sampled[0]
    boxes = zip(queries.images.tolist(), targets.cells.tolist(), strict=True)
    assert len({(image, *cells) for image, cells in boxes}) == objects
