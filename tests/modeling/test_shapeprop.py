"""ShapeProp: losses by hand, which regions propagate, where gradients go."""

import math

import psis_d2  # noqa: F401
from psis_d2.modeling.mask_heads import shapeprop
from psis_d2.modeling.mask_heads.shapeprop import ActivationEmbedding, activating_loss
from psis_d2.modeling.roi_heads import touched_classes

import pytest
import torch
from detectron2.structures import Boxes, Instances

from model_builders import (
    SHAPEPROP,
    partial_batch,
    tiny_model,
    training_context,
    training_losses,
)

MIXED = [[True, False, True], [False, True]]


def test_activating_loss_is_cross_entropy_of_the_mean_saliency():
    # Two classes and background; one region of class 1 whose maps average to (0, 2, 0).
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 1] = torch.tensor([[0.0, 4.0], [4.0, 0.0]])
    expected = -math.log(math.exp(2) / (2 + math.exp(2)))
    loss = activating_loss(logits, torch.tensor([1]))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_signed_mean_is_equation_3():
    # Region 0 is a positive bag of class 0 (mean 1) and no bag of class 1; region 1 is background
    # that misses an object of class 1, a negative bag of that class (mean 5) and no other; region 2
    # touches no object and is no bag. Background's own map takes no part.
    logits = torch.zeros(3, 3, 2, 2)
    logits[0, 0], logits[0, 1] = 1.0, 3.0
    logits[1:, 0], logits[1:, 1], logits[1:, 2] = 2.0, 5.0, 100.0
    classes, objects = torch.tensor([0, 2, 2]), torch.tensor([0, 1, 2])
    loss = activating_loss(logits, classes, "signed_mean", objects)
    assert loss.item() == pytest.approx((-1 + 5) / 3)


def shapeprop_head(*keys):
    return tiny_model(*SHAPEPROP, *keys).roi_heads.mask_head


def test_towers_may_be_one_dilated_or_normed():
    plain = shapeprop_head("PSIS.SHAPEPROP.TOWER_DIM", 32)
    assert plain.shape_activation.tower is not plain.saliency_tower
    model = tiny_model(*SHAPEPROP, "PSIS.SHAPEPROP.SHARE_FEATURE", True)
    shared = model.roi_heads.mask_head
    assert shared.shape_activation.tower is shared.saliency_tower
    # The loss of saliency and that of propagation meet in it.
    losses = training_losses(model, partial_batch(MIXED))
    for name in ("loss_activating", "loss_propagating"):
        model.zero_grad()
        losses[name].backward(retain_graph=True)
        assert shared.saliency_tower[0].weight.grad.abs().sum() > 0
    normed = shapeprop_head("PSIS.SHAPEPROP.TOWER_DIM", 32, "PSIS.SHAPEPROP.USE_GN", True)
    for tower in (normed.saliency_tower, normed.shape_activation.tower):
        assert all(isinstance(x.norm, torch.nn.GroupNorm) and x.bias is None for x in tower)
    dilated = shapeprop_head("PSIS.SHAPEPROP.DILATION", 3).saliency_tower
    x = torch.rand(1, 16, 13, 13, requires_grad=True)
    dilated(x)[0, :, 6, 6].sum().backward()
    reached = x.grad[0].abs().sum(dim=0).nonzero()
    assert dilated(x).shape[-1] == 13
    assert set(reached.flatten().tolist()) <= {0, 3, 6, 9, 12}  # two layers of steps of 3
    assert len(reached) > 9


def test_predictor_may_start_as_released():
    weights = {
        init: shapeprop_head(
            "PSIS.SHAPEPROP.PREDICTOR_INIT", init, "MODEL.ROI_MASK_HEAD.CONV_DIM", 512
        )
        .predictor[-1]
        .weight
        for init in ("normal", "msra")
    }
    assert weights["normal"].std().item() == pytest.approx(0.001, rel=0.15)
    # A fan-out of 1: sqrt(2 / 1).
    assert weights["msra"].std().item() == pytest.approx(math.sqrt(2), rel=0.15)


def test_what_a_sample_misses():
    boxes = torch.tensor([[0.0, 0, 8, 8], [20, 20, 30, 30]])
    target = Instances((40, 40), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([3, 7]))
    sampled = Instances((40, 40))
    places = [[0.0, 0, 8, 9], [6, 6, 12, 12], [10, 10, 18, 18], [29, 29, 35, 35]]
    sampled.proposal_boxes = Boxes(torch.tensor(places))
    sampled.gt_index = torch.tensor([0, 0, 0, 1])
    assert touched_classes(sampled, target, 20).tolist() == [3, 3, 20, 7]
    nobody = Instances((40, 40), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0))
    assert touched_classes(sampled, nobody, 20).tolist() == [20] * 4


def test_embedding_sees_the_activation_normalized_to_its_maximum():
    embedding = ActivationEmbedding(dim=4, num_convs=2)
    activation = torch.randn(3, 1, 5, 5)
    assert torch.allclose(embedding(activation), embedding(10 * activation), atol=1e-4)
    # nothing positive: the embedding of zeros, not of a division by zero
    assert torch.equal(embedding(-activation.abs()), embedding(torch.zeros(3, 1, 5, 5)))


@pytest.mark.parametrize("boxes", ["proposals", "gt"])
def test_propagation_runs_for_used_regions_only(monkeypatch, boxes):
    rows = []

    def spy(m0, weights, steps, norm):
        rows.append((m0.shape, weights.shape, steps, norm))
        return m0

    monkeypatch.setattr(shapeprop, "message_passing", spy)
    model = tiny_model(*SHAPEPROP, "PSIS.MASK_TRAIN_BOXES", boxes, "PSIS.SHAPEPROP.LATENT_DIM", 3)
    batch = partial_batch(MIXED)
    seen = []
    head = model.roi_heads.mask_head
    original = head.losses
    head.losses = lambda context: (seen.append(context), original(context))[1]
    training_losses(model, batch)
    context = seen[0]
    assert len(context) < len(context.sampled.classes)
    assert (context.sampled.classes == 20).any()  # background regions teach the saliency
    expected = ((len(context), 3, 14, 14), (len(context), 27, 14, 14), 14, "sigmoid_sum")
    assert rows == [expected]


def test_sampled_rows_are_the_regions():
    """Reusing the samples' saliency gives what computing it from the regions would."""
    model = tiny_model(*SHAPEPROP)
    head = model.roi_heads.mask_head
    seen = []
    original = head.losses
    head.losses = lambda context: (seen.append(context), original(context))[1]
    training_losses(model, partial_batch(MIXED))
    context = seen[0]
    again = context.pool([x.proposal_boxes for x in context.regions])
    assert torch.equal(context.features, again)
    assert torch.equal(context.sampled.classes[context.sampled.rows], context.classes)
    reused = head.saliency_tower(context.sampled.features)[context.sampled.rows]
    torch.testing.assert_close(reused, head.saliency_tower(again))


def test_no_gradient_is_stopped():
    model = tiny_model(*SHAPEPROP)
    # The predictor starts near zero; without this the gradients are small enough to vanish.
    torch.nn.init.normal_(model.roi_heads.mask_head.predictor[-1].weight, std=1.0)
    losses = training_losses(model, partial_batch(MIXED))
    losses["loss_mask"].backward()
    head = model.roi_heads.mask_head
    parts = (head.saliency_classifier, head.shape_activation.weights, head.saliency_tower)
    for part in parts:
        assert any(p.grad.abs().max() > 0 for p in part.parameters())


def test_saliency_learns_from_boxes_alone():
    model = tiny_model(*SHAPEPROP)
    losses = training_losses(model, partial_batch([[False, False], [False]]))
    losses["loss_activating"].backward()
    assert model.roi_heads.mask_head.saliency_classifier.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("override", "weight_channels", "prior_channels"),
    [
        ((), 8 * 9, 8),
        (("PSIS.SHAPEPROP.CHANNEL_AGNOSTIC", True), 9, 8),
        (("PSIS.SHAPEPROP.FUSION", "concat"), 8 * 9, 1),
        (("PSIS.SHAPEPROP.WEIGHT_NORM", "softmax"), 8 * 9, 8),
        (("PSIS.SHAPEPROP.ACTIVATING_LOSS", "signed_mean"), 8 * 9, 8),
    ],
    ids=["released", "channel_agnostic", "concat", "softmax", "signed_mean"],
)
def test_variants_train(override, weight_channels, prior_channels):
    model = tiny_model(*SHAPEPROP, *override)
    head = model.roi_heads.mask_head
    assert head.shape_activation.weights.out_channels == weight_channels
    assert head.trunk[0].in_channels == 16 + prior_channels
    losses = training_losses(model, partial_batch(MIXED))
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_heat_maps_are_saliency_of_the_region_s_class_and_shape_activation():
    """Fig. 8: what the masks are made of, region by region."""
    model = tiny_model(*SHAPEPROP)
    head, context = model.roi_heads.mask_head.eval(), training_context(model, partial_batch(MIXED))
    with torch.no_grad():
        maps = head.heat_maps(context)
        saliency = head.saliency(context)
        activation = head.activate_shapes(context, saliency)
        every = head.saliency_classifier(head.saliency_tower(context.features))
        expected = torch.stack([every[r, c] for r, c in enumerate(context.classes.tolist())])
        assert list(maps) == ["saliency", "shape activation"]
        torch.testing.assert_close(maps["saliency"], expected.sigmoid())
        torch.testing.assert_close(maps["shape activation"], activation[:, 0].sigmoid())
        assert len(set(context.classes.tolist())) > 1 and expected.std() > 0
        torch.testing.assert_close(head.predict(context), head.fuse(context, activation))


def test_saliency_is_that_of_all_classes_where_it_is_used():
    head = tiny_model(*SHAPEPROP).roi_heads.mask_head
    tower = torch.randn(5, head.saliency_classifier.in_channels, 4, 4)
    classes = torch.tensor([3, 0, 20, 3, 7])
    every = head.saliency_classifier(tower)
    own = head.own_saliency(tower, classes)
    torch.testing.assert_close(own, every[torch.arange(5), classes, None])
    torch.testing.assert_close(head.mean_saliency(tower), every.mean(dim=(2, 3), keepdim=True))
