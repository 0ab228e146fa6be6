"""Mask R-CNN's mask head: as many layers and outputs as the config says."""

from dataclasses import replace

import psis_d2.modeling  # noqa: F401
from psis_d2.errors import UserError
from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.losses import select_class

import pytest
import torch

from model_builders import MLP, partial_batch, tiny_model, training_context, training_losses


def test_more_convolutions_make_a_deeper_head():
    def convs(model):
        return sum(isinstance(m, torch.nn.Conv2d) for m in model.roi_heads.mask_head.modules())

    assert convs(tiny_model("MODEL.ROI_MASK_HEAD.NUM_CONV", 8)) - convs(tiny_model()) == 4


def test_more_upsamplings_make_larger_masks():
    model = tiny_model("PSIS.FCN_UPSAMPLINGS", 2, *MLP)
    head = model.roi_heads.mask_head
    features = torch.randn(3, 16, 14, 14)
    context = RegionContext([], features, pool=None)
    assert head.predict(context).shape == (3, 1, 56, 56)
    with pytest.raises(UserError, match="FCN_UPSAMPLINGS is 0; it must be at least 1"):
        tiny_model("PSIS.FCN_UPSAMPLINGS", 0)


def test_own_classes_alone_are_what_is_chosen_of_all():
    options = ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False, *MLP)
    model = tiny_model(*options)
    context = training_context(model, partial_batch([[True, True], [True]]))
    context = replace(context, features=context.features.double())
    head = model.roi_heads.mask_head.double()
    torch.nn.init.normal_(head.predictor[-1].bias)
    chosen = select_class(head.predict_all(context), context.classes)
    own = head.predict(context)[:, 0]
    assert len(own) > 3 and len(context.classes.unique()) > 1
    torch.testing.assert_close(own, chosen, rtol=1e-12, atol=1e-15)
    weight = head.predictor[-1].weight
    gradients = [torch.autograd.grad(x.square().sum(), weight)[0] for x in (own, chosen)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-15)


def test_class_specific_head_has_an_output_for_each_class():
    model = tiny_model("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False)
    assert model.roi_heads.mask_head.predictor[-1].out_channels == 20
    losses = training_losses(model, partial_batch([[True, False], [True]]))
    assert losses["loss_mask"].item() == pytest.approx(0.693, abs=0.01)
