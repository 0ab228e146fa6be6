"""The convolutional box head: its shapes, and what it shares with the mask branch."""

import psis_d2.modeling  # noqa: F401
from psis_d2.engine.stages import train_only
from psis_d2.errors import UserError
from psis_d2.modeling.box_heads import PooledConvBoxHead
from psis_d2.modeling.roi_heads import MASK_TRAIN_BOXES

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_box_head

from model_builders import (
    OPMASK,
    annotated_boxes,
    partial_batch,
    tiny_config,
    tiny_model,
    training_losses,
)

MIXED = [[True, False, True], [False, True]]
SHAPE = ShapeSpec(channels=256, height=7, width=7)


@pytest.mark.parametrize(
    ("max_dim", "channels"),
    [(1024, [512, 1024, 1024, 1024]), (256, [256] * 4), (300, [300] * 4)],
)
def test_channels_double_up_to_the_configured_number(max_dim, channels):
    with torch.device("meta"):
        head = PooledConvBoxHead(SHAPE, num_convs=4, max_dim=max_dim, norm="BN")
    assert [conv.out_channels for conv in head.convs] == channels
    assert [conv.in_channels for conv in head.convs] == [256, *channels[:-1]]
    assert all(conv.kernel_size == (3, 3) and conv.bias is None for conv in head.convs)
    assert all(isinstance(conv.norm, torch.nn.BatchNorm2d) for conv in head.convs)
    assert head.output_shape.channels == channels[-1]


def test_released_architecture():
    cfg = tiny_config(config="opmask_R50.yaml")
    with torch.device("meta"):
        head = build_box_head(cfg, SHAPE)
    assert [conv.out_channels for conv in head.convs] == [512, 1024, 1024, 1024]


def test_the_result_is_the_mean_of_the_last_map():
    head = PooledConvBoxHead(ShapeSpec(channels=3), num_convs=1, max_dim=4)
    x = torch.randn(2, 3, 5, 5)
    expected = torch.nn.functional.conv2d(x, head.convs[0].weight, head.convs[0].bias, padding=1)
    expected = expected.clamp(min=0)
    torch.testing.assert_close(head.maps(x), expected)
    torch.testing.assert_close(head(x), expected.flatten(2).mean(dim=2))
    assert head(x[:0]).shape == (0, 4)


def test_a_convolution_is_needed():
    with pytest.raises(UserError, match="NUM_CONV is 0; PooledConvBoxHead needs 1 or more"):
        PooledConvBoxHead(SHAPE, num_convs=0, max_dim=256)


def spy(model):
    """The context that the mask head gets, and the number of boxes of every pass of the box head.

    Filled while the model runs.
    """
    contexts, passes = [], []
    heads = model.roi_heads
    original = heads.mask_head.forward
    heads.mask_head.forward = lambda context: (contexts.append(context), original(context))[1]
    heads.box_head.convs.register_forward_hook(lambda m, args, out: passes.append(len(args[0])))
    return contexts, passes


def maps_of(model, batch, boxes):
    """The box head's maps of boxes, computed by themselves."""
    heads = model.roi_heads
    features = model.backbone(model.preprocess_image(batch).tensor)
    pooled = heads.box_pooler([features[name] for name in heads.box_in_features], boxes)
    return heads.box_head.maps(pooled)


@pytest.mark.parametrize("boxes", MASK_TRAIN_BOXES)
def test_both_branches_share_one_pass(boxes):
    model = tiny_model(*OPMASK, "PSIS.MASK_TRAIN_BOXES", boxes)
    contexts, passes = spy(model)
    batch = partial_batch(MIXED)
    training_losses(model, batch)
    (context,), (rows,) = contexts, passes
    regions = len(context)
    assert regions > 0
    # 16 samples an image; annotated boxes come on top, sampled ones are among them.
    assert rows <= 2 * 16 + (0 if boxes == "proposals" else regions)
    expected = maps_of(model, batch, context.boxes)
    assert expected.shape == (regions, 32, 7, 7)
    torch.testing.assert_close(context.box_features, expected)


@pytest.mark.parametrize("boxes", ["proposals", "gt"])
def test_losses_of_the_box_branch_are_those_without_a_mask_head(boxes):
    keys = (*OPMASK, "PSIS.MASK_TRAIN_BOXES", boxes)
    model, batch = tiny_model(*keys), partial_batch(MIXED)
    with_masks = training_losses(model, batch)
    model.roi_heads.mask_on = False
    alone = training_losses(model, batch)
    assert alone.keys() == with_masks.keys() - {"loss_mask"}
    for name in alone:
        torch.testing.assert_close(with_masks[name], alone[name])


def test_a_frozen_box_head_sees_the_regions_alone():
    model = tiny_model(*OPMASK)
    train_only(model, "mask_head")
    contexts, passes = spy(model)
    losses = training_losses(model, partial_batch(MIXED))
    assert not {"loss_cls", "loss_box_reg"} & losses.keys()
    assert passes == [len(contexts[0])]
    assert len(contexts[0].box_features) == passes[0] > 0
    assert not contexts[0].box_features.requires_grad


def test_maps_at_test_time_are_those_of_the_boxes_that_get_masks():
    model = tiny_model(*OPMASK).eval()
    contexts, _ = spy(model)
    batch = partial_batch([[True, True], []])
    with torch.no_grad():
        model.inference(batch, annotated_boxes(batch))
        expected = maps_of(model, batch, [item["instances"].gt_boxes for item in batch])
    torch.testing.assert_close(contexts[0].box_features, expected)


def test_a_box_head_without_maps_is_refused():
    keys = (*OPMASK, "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead")
    with pytest.raises(UserError, match="FastRCNNConvFCHead has none.*set MODEL.ROI_BOX_HEAD.NAME"):
        tiny_model(*keys)


def test_boxes_that_move_after_the_box_head_are_refused():
    with pytest.raises(UserError, match="TRAIN_ON_PRED_BOXES True moves the boxes"):
        tiny_model(*OPMASK, "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True)


@pytest.mark.parametrize("detector", ["FCOS", "RetinaNet"])
def test_one_stage_detectors_are_refused(detector):
    config = f"quick/Base-shapes-{detector}.yaml"
    with pytest.raises(UserError, match="one-stage detectors have none.*PartialROIHeads"):
        tiny_model(*OPMASK, config=config)


def test_the_box_head_serves_any_mask_head():
    model = tiny_model(*OPMASK, "MODEL.ROI_MASK_HEAD.NAME", "FCNMaskHead")
    contexts, _ = spy(model)
    assert training_losses(model, partial_batch(MIXED))["loss_mask"] > 0
    assert contexts[0].box_features is None
