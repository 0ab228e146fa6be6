"""The mask branch under partial supervision: what it sees, what it must not see."""

import psis_d2  # noqa: F401
from psis_d2.errors import UserError
from psis_d2.modeling.roi_heads import jitter_boxes, shrink_boxes

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from model_builders import SHAPEPROP, partial_batch, tiny_model, training_context

MIXED = [[True, False, True], [False, True]]


def test_ground_truth_boxes_are_the_annotated_objects_in_order():
    batch = partial_batch(MIXED)
    context = training_context(tiny_model("PSIS.MASK_TRAIN_BOXES", "gt"), batch)
    for item, regions in zip(batch, context.regions, strict=True):
        truth = item["instances"][item["instances"].gt_has_mask]
        assert torch.equal(regions.proposal_boxes.tensor, truth.gt_boxes.tensor)
        assert torch.equal(regions.gt_classes, truth.gt_classes)


def test_proposals_are_foreground_with_a_mask_and_their_targets_match_their_object():
    context = training_context(tiny_model(), partial_batch(MIXED))
    assert len(context) > 0
    assert context.has_mask.all()
    assert context.classes.max() < 20
    for regions, target in zip(context.regions, context.targets, strict=True):
        assert torch.equal(regions.gt_boxes.tensor, target.gt_boxes.tensor[regions.gt_index])
    copied = [
        target.gt_masks[regions.gt_index].crop_and_resize(regions.proposal_boxes.tensor, 28)
        for regions, target in zip(context.regions, context.targets, strict=True)
    ]
    assert torch.equal(context.mask_targets(28).bool(), torch.cat(copied))


def test_only_so_many_annotated_boxes():
    keys = ("PSIS.MASK_TRAIN_BOXES", "gt", "PSIS.MASK_BOXES_PER_IMAGE", 2)
    batch = partial_batch([[True, False, True, True, True], [False, True]])
    drawn = set()
    model = tiny_model(*keys)
    for seed in range(8):
        torch.manual_seed(seed)
        regions = model.roi_heads._regions_from_annotations([x["instances"] for x in batch], True)
        assert [len(x) for x in regions] == [2, 1]
        assert regions[0].gt_has_mask.all()
        drawn.add(tuple(regions[0].gt_index.tolist()))
    assert len(drawn) > 2


def test_jitter_moves_boxes_and_keeps_them_in_the_image():
    torch.manual_seed(0)
    boxes = Boxes(torch.tensor([[10.0, 10, 30, 50]]).repeat(4000, 1))
    moved = jitter_boxes(boxes, 0.1, (64, 48)).tensor
    assert (moved >= 0).all()
    assert (moved[:, 2] <= 48).all()
    assert (moved[:, 3] <= 64).all()
    inside = (moved[:, 0] > 0) & (moved[:, 2] < 48) & (moved[:, 1] > 0) & (moved[:, 3] < 64)
    center = ((moved[:, 0] + moved[:, 2]) / 2)[inside]
    assert center.std().item() == pytest.approx(0.1 * 20, rel=0.1)  # sd of .1 times the width
    assert torch.equal(jitter_boxes(boxes, 0.0, (64, 48)).tensor, boxes.tensor)


def test_jitter_keeps_a_box_that_would_leave_the_image():
    torch.manual_seed(0)
    boxes = Boxes(torch.tensor([[0.0, 0, 4, 4]]).repeat(200, 1))
    assert jitter_boxes(boxes, 3.0, (64, 64)).nonempty().all()


def test_shrunk_boxes_keep_their_center_and_have_independent_sides():
    torch.manual_seed(0)
    boxes = Boxes(torch.tensor([[10.0, 10, 30, 50]]).repeat(4000, 1))
    small = shrink_boxes(boxes, 0.75)
    assert torch.allclose(small.get_centers(), boxes.get_centers(), atol=1e-4)
    sides = (small.tensor[:, 2:] - small.tensor[:, :2]) / torch.tensor([20.0, 40.0])
    assert sides.min() >= 0.75 - 1e-6 and sides.max() <= 1 + 1e-6
    assert sides.mean(0).tolist() == pytest.approx([0.875, 0.875], abs=0.01)
    assert abs(torch.corrcoef(sides.T)[0, 1]) < 0.05
    state = torch.get_rng_state()
    assert shrink_boxes(boxes, 1.0) is boxes and torch.equal(torch.get_rng_state(), state)


def test_annotated_boxes_are_shrunk_where_the_config_says_so():
    keys = ("PSIS.MASK_TRAIN_BOXES", "jittered_gt", "PSIS.BOX_JITTER_STD", 0.0)
    batch = [x["instances"] for x in partial_batch([[True, True]])]
    whole = tiny_model(*keys).roi_heads._regions_from_annotations(batch, True)[0]
    model = tiny_model(*keys, "PSIS.BOX_TRAIN_SHRINK", 0.5)
    small = model.roi_heads._regions_from_annotations(batch, True)[0]
    share = small.proposal_boxes.area() / whole.proposal_boxes.area()
    assert (share > 0.25).all() and (share < 1).all()


def test_feature_drop_takes_whole_regions_unscaled():
    head = tiny_model(*SHAPEPROP, "PSIS.ROI_FEATURE_DROP", 0.5).roi_heads.mask_head
    x = torch.randn(400, 2, 3, 3)
    torch.manual_seed(1)
    y = head.regularize.train()(x)
    dropped = y.eq(0).all(dim=(1, 2, 3))
    assert torch.equal(y[~dropped], x[~dropped])
    assert 140 < dropped.sum() < 260
    assert torch.equal(head.regularize.eval()(x), x)


def test_feature_drop_needs_a_shape_prior():
    with pytest.raises(UserError, match="ROI_FEATURE_DROP is 0.5.*FCNMaskHead has no shape prior"):
        tiny_model("PSIS.ROI_FEATURE_DROP", 0.5)


def test_unknown_training_boxes():
    with pytest.raises(UserError, match="'boxes'; choose one of proposals, gt, jittered_gt"):
        tiny_model("PSIS.MASK_TRAIN_BOXES", "boxes")


def test_proposals_carry_no_copy_of_the_masks():
    model = tiny_model()
    batch = partial_batch(MIXED)
    targets = [item["instances"] for item in batch]
    proposals = [
        Instances(
            (64, 64), proposal_boxes=t.gt_boxes.clone(), objectness_logits=torch.zeros(len(t))
        )
        for t in targets
    ]
    with EventStorage():
        sampled = model.roi_heads.label_and_sample_proposals(proposals, targets)
    assert not any(x.has("gt_masks") for x in sampled)
    assert all(x.has("gt_index") and x.has("gt_has_mask") for x in sampled)
    assert all(t.has("gt_masks") for t in targets)
