"""The mask branch behind a one-stage detector: what it is trained on, what it is given."""

import psis_d2.modeling  # noqa: F401
from psis_d2.errors import UserError
from psis_d2.modeling.roi_heads import MASK_TRAIN_BOXES

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from model_builders import (
    MASKX,
    SHAPEPROP,
    annotated_boxes,
    flip_masks,
    partial_batch,
    tiny_model,
    training_losses,
)

MIXED = [[True, False, True], [False, True]]
RPN_ANCHORS = ("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [96], [128]])


@pytest.fixture(params=["FCOS", "RetinaNet"])
def config(request):
    return f"quick/Base-shapes-{request.param}.yaml"


@pytest.mark.parametrize("boxes", MASK_TRAIN_BOXES)
def test_garbage_in_unseen_masks_changes_no_loss(config, boxes):
    model = tiny_model(*SHAPEPROP, "PSIS.MASK_TRAIN_BOXES", boxes, config=config)
    clean = training_losses(model, partial_batch(MIXED))
    # RetinaNet keeps statistics of its errors: the same model would not be the same any more.
    model = tiny_model(*SHAPEPROP, "PSIS.MASK_TRAIN_BOXES", boxes, config=config)
    dirty = training_losses(model, partial_batch(MIXED, garbage_seed=5))
    assert {"loss_cls", "loss_box_reg", "loss_mask"} <= clean.keys()
    assert clean.keys() == dirty.keys()
    for name in clean:
        assert torch.equal(clean[name], dirty[name]), name
    flipped = flip_masks(partial_batch(MIXED))
    assert not torch.equal(training_losses(model, flipped)["loss_mask"], clean["loss_mask"])


@pytest.mark.parametrize("boxes", ["proposals", "gt"])
@pytest.mark.parametrize("has_mask", ([[False, False], [False]], [[], []]), ids=["boxes", "empty"])
def test_batch_without_masks_trains_every_parameter(config, boxes, has_mask):
    keys = ("PSIS.MASK_TRAIN_BOXES", boxes)
    # Without any proposal: nothing is sampled from an image without objects.
    keys += ("PSIS.FCOS.SCORE_THRESH_TRAIN", 0.9, "PSIS.RETINANET.SCORE_THRESH_TRAIN", 0.9)
    model = tiny_model(*SHAPEPROP, *keys, config=config)
    losses = training_losses(model, partial_batch(has_mask))
    assert losses["loss_mask"].item() == 0
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def proposals_of(boxes: list[list[list[float]]], size: int = 64) -> list[Instances]:
    """Proposals as a detector gives them, one list of boxes an image."""
    return [
        Instances(
            (size, size),
            proposal_boxes=Boxes(torch.tensor(x, dtype=torch.float32).reshape(-1, 4)),
            scores=torch.linspace(0.9, 0.5, len(x)),
            pred_classes=torch.arange(len(x)),
        )
        for x in boxes
    ]


def contexts_of(model, batch, boxes):
    """The contexts that the mask head is trained on, given proposals in place of detections."""
    seen = []
    mask_head = model.roi_heads.mask_head
    mask_head.losses = lambda context: seen.append(context) or {}
    images = model.preprocess_image(batch)
    with EventStorage():
        targets = [item["instances"] for item in batch]
        features = model.backbone(images.tensor)
        model.roi_heads(images, features, proposals_of(boxes), targets)
    return seen[0]


def test_detections_are_matched_by_iou_and_annotated_boxes_appended(config):
    batch = partial_batch(MIXED)
    truth = [item["instances"].gt_boxes.tensor for item in batch]
    near = truth[0][0] + torch.tensor([1.0, 1, 1, 1])  # still the object 0
    far = torch.tensor([0.0, 0, 3, 3])
    context = contexts_of(tiny_model(config=config), batch, [[near.tolist(), far.tolist()], []])
    # Mask-annotated: objects 0 and 2 of the first image, 1 of the second; and the near detection.
    assert sorted(context.regions[0].gt_index.tolist()) == [0, 0, 2]
    assert context.regions[1].gt_index.tolist() == [1]
    found = context.regions[0].proposal_boxes.tensor
    assert any(torch.equal(box, near) for box in found)
    assert not any(torch.equal(box, far) for box in found)
    assert context.has_mask.all()
    assert context.box_predictor is None


@pytest.mark.parametrize("boxes", ["proposals", "gt"])
def test_background_is_sampled_for_heads_that_ask(config, boxes):
    batch = partial_batch(MIXED)
    model = tiny_model(*SHAPEPROP, "PSIS.MASK_TRAIN_BOXES", boxes, config=config)
    context = contexts_of(model, batch, [[[0.0, 0, 3, 3]], []])
    sampled = context.sampled
    assert sorted(sampled.classes.tolist()) == sorted(
        [20] + [c for item in batch for c in item["instances"].gt_classes.tolist()]
    )
    assert len(sampled.features) == 6
    if boxes == "proposals":
        assert torch.equal(context.features, sampled.features[sampled.rows])
        assert torch.equal(context.classes, sampled.classes[sampled.rows])
    else:
        assert sampled.rows is None


def test_samples_are_limited(config):
    batch = partial_batch([[True] * 3])
    keys = ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 4, *SHAPEPROP)
    background = [[[k, 0.0, k + 3, 3] for k in range(20)]]
    context = contexts_of(tiny_model(*keys, config=config), batch, background)
    assert len(context.sampled.classes) == 4


def test_proposals_become_the_detections(config):
    model = tiny_model(config=config).eval()
    batch = partial_batch([[True], []])
    images = model.preprocess_image(batch)
    boxes = [[[1.0, 2, 30, 40], [5, 5, 20, 20]], []]
    with torch.no_grad():
        features = model.backbone(images.tensor)
        found, losses = model.roi_heads(images, features, proposals_of(boxes))
    assert losses == {}
    assert found[0].pred_boxes.tensor.tolist() == boxes[0]
    assert found[0].scores.tolist() == pytest.approx([0.9, 0.5])
    assert found[0].pred_classes.tolist() == [0, 1]
    assert found[0].pred_masks.shape == (2, 1, 28, 28)
    assert len(found[1]) == 0


def test_given_boxes_get_masks(config):
    model = tiny_model(*SHAPEPROP, config=config).eval()
    batch = partial_batch([[True, True], []])
    with torch.no_grad():
        outputs = model.inference(batch, annotated_boxes(batch))
    assert outputs[0]["instances"].pred_masks.shape == (2, 64, 64)
    assert outputs[1]["instances"].pred_masks.shape == (0, 64, 64)


def test_thresholds_decide_how_many_are_detected(config):
    keys = ["PSIS.FCOS.SCORE_THRESH_TEST", 0.0, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
    model = tiny_model(*keys, "TEST.DETECTIONS_PER_IMAGE", 7, config=config).eval()
    with torch.no_grad():
        # 0.01 is the initial class probability: everything is a candidate, seven are left.
        found = model(partial_batch([[]]))[0]["instances"]
        assert 0 < len(found) <= 7
        assert found.pred_masks.shape == (len(found), 64, 64)
    keys[1] = keys[3] = 1.0
    model = tiny_model(*keys, config=config).eval()
    with torch.no_grad():
        found = model(partial_batch([[]]))[0]["instances"]
    assert len(found) == 0
    assert found.pred_masks.shape == (0, 64, 64)


def test_detector_alone_has_no_mask_branch(config):
    model = tiny_model("MODEL.MASK_ON", False, config=config)
    assert not list(model.roi_heads.parameters())
    batch = partial_batch(MIXED)
    for item in batch:
        item["instances"].remove("gt_masks")
        item["instances"].remove("gt_has_mask")
    assert "loss_mask" not in training_losses(model, batch)


def test_heads_that_need_a_box_predictor_are_refused(config):
    with pytest.raises(UserError, match="MaskXMaskHead reads the weights of a box predictor"):
        tiny_model(*MASKX, config=config)
    tiny_model(*MASKX, "PSIS.MASKX.INPUT", "randn", config=config)


def test_two_stage_proposals_are_refused(config):
    model = tiny_model("MODEL.PROPOSAL_GENERATOR.NAME", "RPN", *RPN_ANCHORS, config=config)
    with pytest.raises(UserError, match="MODEL.PROPOSAL_GENERATOR.NAME to FCOS or RetinaNet"):
        training_losses(model, partial_batch(MIXED))
