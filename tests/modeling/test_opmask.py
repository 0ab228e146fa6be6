"""OPMask: what the class activation map does in the head, and gradients."""

from dataclasses import replace

import psis_d2  # noqa: F401
from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.losses import mask_bce
from psis_d2.modeling.mask_heads.opmask import OPMaskHead

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances

from model_builders import (
    OPMASK,
    box_predictor,
    partial_batch,
    tiny_model,
    training_losses,
)

MIXED = [[True, False, True], [False, True]]


def small_head(channels: int = 2, size: int = 4, **overrides) -> OPMaskHead:
    arguments = {"num_outputs": 1, "conv_dim": 2, "num_convs": 0, **overrides}
    return OPMaskHead(ShapeSpec(channels=channels, height=size, width=size), **arguments)


def context_of(classes, predictor, box_features, channels: int = 2, size: int = 4):
    """A test-time context of one image with random RoI features."""
    n = len(classes)
    boxes = Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]]).expand(n, 4))
    regions = Instances((16, 16), pred_boxes=boxes, pred_classes=torch.tensor(classes).long())
    features = torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))
    return RegionContext(
        regions=[regions],
        features=features,
        pool=lambda _: features,
        box_predictor=predictor,
        box_features=box_features,
    )


@pytest.mark.parametrize("normalized", [True, False])
def test_map_is_enlarged_and_added_to_all_channels(normalized):
    """A map of 1 x 2 cells at 1 x 4: a quarter and three quarters of the way between the two."""
    head = small_head(channels=2, cam_normalized=normalized)
    predictor = box_predictor(num_classes=3, features=1)
    with torch.no_grad():
        predictor.cls_score.weight.copy_(torch.tensor([[1.0], [9], [-1], [7]]))
    features = torch.tensor([2.0, 6.0]).expand(2, 1, 2, 2)
    context = context_of([0, 2], predictor, features)
    rows = torch.tensor([[2.0, 3, 5, 6], [-2, -3, -5, -6]])
    if normalized:
        rows = torch.tensor([[0.0, 0.25, 0.75, 1], [1, 0.75, 0.25, 0]])
    maps = rows[:, None, :].expand(2, 4, 4)
    torch.testing.assert_close(head.class_maps(context), maps)
    torch.testing.assert_close(head.heat_maps(context)["class activation"], maps)
    expected = head.predictor(context.features + maps[:, None])
    assert expected.std() > 0
    torch.testing.assert_close(head.predict(context), expected, atol=1e-5, rtol=0)


def test_the_bias_vanishes_in_the_scaling():
    predictor, features = box_predictor(3, features=4), torch.rand(2, 4, 3, 3)
    context = context_of([0, 2], predictor, features)
    maps = [
        small_head(cam_bias=bias, cam_normalized=scaled).class_maps(context)
        for bias, scaled in ((False, True), (True, True), (False, False), (True, False))
    ]
    torch.testing.assert_close(maps[0], maps[1])
    bias = predictor.cls_score.bias[[0, 2], None, None].expand(2, 4, 4)
    torch.testing.assert_close(maps[3] - maps[2], bias)


def test_the_class_decides_the_mask():
    predictor, features = box_predictor(3, features=4), torch.rand(2, 4, 3, 3)
    head = small_head(num_convs=1)
    first, second = (head.predict(context_of(c, predictor, features)) for c in ([0, 1], [2, 1]))
    assert not torch.allclose(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("boxes", ["proposals", "gt"])
def test_the_mask_loss_trains_the_box_head_but_not_the_classifier(boxes):
    keys = ("PSIS.MASK_TRAIN_BOXES", boxes, "PSIS.OPMASK.CAM_BIAS", True)
    model = tiny_model(*OPMASK, *keys)
    heads = model.roi_heads
    losses = training_losses(model, partial_batch(MIXED))
    losses.pop("loss_mask").backward(retain_graph=True)
    for name, parameter in heads.box_predictor.named_parameters():
        assert parameter.grad is None or parameter.grad.eq(0).all(), name
    for module in (heads.box_head, heads.mask_head.trunk, model.backbone.fpn_output2):
        for name, parameter in module.named_parameters():
            assert parameter.grad.abs().max() > 0, name
    # the detection losses teach it all the same
    sum(losses.values()).backward()
    assert all(p.grad.abs().max() > 0 for p in heads.box_predictor.parameters())


def test_a_head_without_the_map_leaves_the_box_head_alone():
    model = tiny_model(*OPMASK, "MODEL.ROI_MASK_HEAD.NAME", "FCNMaskHead")
    training_losses(model, partial_batch(MIXED))["loss_mask"].backward()
    assert all(p.grad is None for p in model.roi_heads.box_head.parameters())


def test_all_foreground_passes_the_head_and_masks_alone_count():
    model = tiny_model(*OPMASK, "PSIS.MASK_TRAIN_BOXES", "gt", "MODEL.ROI_MASK_HEAD.NORM", "BN")
    head = model.roi_heads.mask_head
    seen = []
    original = head.predict
    head.predict = lambda context: seen.append((context, original(context))) or seen[-1][1]
    loss = training_losses(model, partial_batch(MIXED))["loss_mask"]
    ((context, logits),) = seen
    assert context.has_mask.tolist() == [True, False, True, False, True]
    kept = [0, 2, 4]
    targets = context.annotated.mask_targets(28)
    assert torch.equal(loss, mask_bce(logits[kept], targets, context.classes[kept]))
    # batch norm: what an unmasked region looks like changes the logits of the others
    others = context.features.clone()
    others[1] += 1
    assert not torch.equal(original(replace(context, features=others))[0], logits[0])


def test_feature_drop_leaves_the_map():
    head = small_head(feature_drop=1.0).train()
    predictor, features = box_predictor(3, features=4), torch.rand(2, 4, 3, 3)
    context = context_of([0, 2], predictor, features)
    expected = head.predictor(head.class_maps(context)[:, None].expand(2, 2, 4, 4))
    assert torch.equal(head.predict(context), expected)
