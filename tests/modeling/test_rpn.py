"""Images that are annotated for a part of the classes give the detector no background."""

import psis_d2  # noqa: F401

import pytest
import torch

from model_builders import partial_batch, tiny_model, training_losses


def batch_with(flags):
    """Two images; `flags` say whether all classes are annotated, None = nothing is said."""
    batch = partial_batch([[True, False, True], [False, True]])
    for item, flag in zip(batch, flags, strict=True):
        if flag is not None:
            instances = item["instances"]
            instances.gt_exhaustive = torch.full((len(instances),), flag)
    return batch


@pytest.fixture
def spied():
    """A model that keeps its anchor labels and sampled proposals of each training step."""
    model, seen = tiny_model(), {}
    rpn, heads = model.proposal_generator, model.roi_heads
    label, sample = rpn.label_and_sample_anchors, heads.label_and_sample_proposals

    def keep(name, function):
        def call(*args):
            seen[name] = function(*args)
            return seen[name]

        return call

    rpn.label_and_sample_anchors = keep("anchors", label)
    heads.label_and_sample_proposals = keep("proposals", sample)
    model.seen = seen
    return model


def test_no_background_from_partly_annotated_images(spied):
    losses = training_losses(spied, batch_with([True, False]))
    first, second = spied.seen["anchors"][0]
    assert (first == 0).any()
    assert not (second == 0).any()
    assert (second == 1).any()
    first, second = (x.gt_classes for x in spied.seen["proposals"])
    assert (first == 20).any()
    assert not (second == 20).any()
    assert (second < 20).any()
    assert all(loss.isfinite() for loss in losses.values())


def test_fully_annotated_images_are_detectron2s(spied):
    told = training_losses(spied, batch_with([True, True]))
    untold = training_losses(spied, batch_with([None, None]))
    assert told.keys() == untold.keys()
    for name in told:
        assert torch.equal(told[name], untold[name]), name


def test_a_batch_of_partly_annotated_images_trains(spied):
    losses = training_losses(spied, batch_with([False, False]))
    total = sum(losses.values())
    assert total.isfinite()
    total.backward()
