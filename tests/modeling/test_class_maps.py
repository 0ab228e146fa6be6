"""Class activation maps by hand and against the classifier."""

import psis_d2  # noqa: F401
from psis_d2.modeling.class_maps import class_activation_maps, normalize_maps, resize_maps

import torch

from model_builders import OPMASK, box_predictor, tiny_model


def test_maps_by_hand():
    predictor = box_predictor(num_classes=2, features=2)
    with torch.no_grad():
        predictor.cls_score.weight.copy_(torch.tensor([[1.0, 2], [-1, 3], [9, 9]]))
        predictor.cls_score.bias.copy_(torch.tensor([10.0, 20, 30]))
    features = torch.tensor([[[[1.0, 2]], [[3, 4]]], [[[5, 6]], [[7, 8]]]])  # [2, 2, 1, 2]
    classes = torch.tensor([1, 0])
    # region 0: -f0 + 3 f1; region 1: f0 + 2 f1
    expected = torch.tensor([[[8.0, 10]], [[19, 22]]])
    assert torch.equal(class_activation_maps(features, predictor, classes), expected)
    with_bias = class_activation_maps(features, predictor, classes, bias=True)
    assert torch.equal(with_bias, expected + torch.tensor([20.0, 10])[:, None, None])


def test_the_mean_of_a_map_is_the_classifiers_logit():
    heads = tiny_model(*OPMASK).roi_heads
    torch.nn.init.normal_(heads.box_predictor.cls_score.bias)
    x = torch.randn(5, 16, 7, 7)
    logits, _ = heads.box_predictor(heads.box_head(x))
    features = heads.box_head.maps(x)
    assert logits.abs().max() > 0.1
    for category in range(20):
        classes = torch.full((5,), category)
        maps = class_activation_maps(features, heads.box_predictor, classes, bias=True)
        assert maps.shape == (5, 7, 7)
        torch.testing.assert_close(maps.mean(dim=(1, 2)), logits[:, category])


def test_maps_are_scaled_each_by_itself():
    maps = torch.tensor([[[1.0, 3], [2, 5]], [[-40, -40], [0, -20]]])
    scaled = normalize_maps(maps)
    expected = torch.tensor([[[0, 0.5], [0.25, 1]], [[0, 0], [1, 0.5]]])
    assert torch.equal(scaled, expected)
    # Whatever the scale of the classifier's weights.
    assert torch.equal(normalize_maps(2.0**-20 * maps), expected)


def test_constant_maps_are_zero_with_finite_gradients():
    maps = torch.full((2, 3, 3), 7.0, requires_grad=True)
    scaled = normalize_maps(maps)
    assert scaled.eq(0).all()
    scaled.square().sum().backward()
    assert maps.grad.isfinite().all()


def test_maps_are_enlarged_between_the_centers_of_cells():
    maps = resize_maps(torch.tensor([2.0, 6.0]).expand(1, 2, 2), 4)
    torch.testing.assert_close(maps, torch.tensor([2.0, 3, 5, 6]).expand(1, 4, 4))
