"""RetinaNet: anchor labels against their literal definition, losses by hand."""

import math

import psis_d2.modeling  # noqa: F401
from psis_d2.errors import UserError
from psis_d2.modeling.detectors import dense
from psis_d2.modeling.detectors.dense import DensePredictions
from psis_d2.modeling.detectors.retinanet import SelfAdjustingSmoothL1

import pytest
import torch
from detectron2.structures import Boxes, Instances

from model_builders import partial_batch, tiny_model, training_losses

RETINANET = "quick/Base-shapes-RetinaNet.yaml"
ONE_ANCHOR = ("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16]])
ONE_ANCHOR += ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]])
# Anchors around the middle of their cells, so that they are easy to write down.
ONE_ANCHOR += ("MODEL.ANCHOR_GENERATOR.OFFSET", 0.5)
# Two levels and the paper's focal loss: quick configs are tuned for few iterations.
ONE_ANCHOR += ("MODEL.RETINANET.IN_FEATURES", ["p3", "p4"])
ONE_ANCHOR += ("MODEL.RETINANET.FOCAL_LOSS_ALPHA", 0.25, "MODEL.RETINANET.FOCAL_LOSS_GAMMA", 2.0)
ONE_ANCHOR += ("MODEL.RETINANET.SCORE_THRESH_TEST", 0.05)
ONE_ANCHOR += ("MODEL.RETINANET.BBOX_REG_WEIGHTS", (1.0, 1.0, 1.0, 1.0))


def detector(*keys):
    return tiny_model(*ONE_ANCHOR, *keys, config=RETINANET)


def iou(a, b) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    return width * height / (area - width * height)


def labels_by_loops(anchors, boxes, classes, background) -> list[tuple[int, int]]:
    """The definition: (label, object) of each anchor; the object is -1 where it has no meaning."""
    overlaps = [[iou(anchor, box) for box in boxes] for anchor in anchors]
    best_of_object = [max(row[g] for row in overlaps) for g in range(len(boxes))]
    result = []
    for row in overlaps:
        best = row.index(max(row))
        rescued = any(v == m > 0 for v, m in zip(row, best_of_object, strict=True))
        if row[best] >= 0.5 or rescued:
            result.append((classes[best], best))
        else:
            result.append((background if row[best] < 0.4 else -1, -1))
    return result


def target_of(boxes, classes, size: int = 64) -> Instances:
    return Instances(
        (size, size),
        gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
    )


def test_labels_equal_their_definition():
    # Whole pixels, so that two equal overlaps are equal in any precision.
    sizes = ("MODEL.ANCHOR_GENERATOR.SIZES", [[16, 32], [24, 48]])
    retinanet = detector(*sizes).proposal_generator
    anchors = retinanet.anchor_generator([torch.zeros(1, 16, 4, 4), torch.zeros(1, 16, 2, 2)])
    flat = torch.cat([x.tensor for x in anchors])
    generator = torch.Generator().manual_seed(0)
    kinds = set()
    for _ in range(4):
        corner = torch.randint(0, 20, (3, 2), generator=generator)
        side = torch.randint(8, 40, (3, 2), generator=generator)
        boxes = torch.cat([corner, corner + side], dim=1).float()
        target = target_of(boxes.tolist(), [4, 0, 7])
        labels, matched = retinanet.label_anchors(anchors, [target, target_of([], [])])
        expected = labels_by_loops(flat.tolist(), boxes.tolist(), [4, 0, 7], 20)
        assert labels[0].tolist() == [label for label, _ in expected]
        for row, (_, index) in enumerate(expected):
            if index >= 0:
                assert torch.equal(matched[0, row], boxes[index])
        assert labels[1].eq(20).all()
        kinds |= set(labels[0].tolist())
    assert {-1, 20, 4, 0, 7} == kinds


def two_anchors(retinanet) -> list[Boxes]:
    """The 8 x 8 anchors at (0, 0) and (8, 0), the first level of an image of two cells."""
    return retinanet.anchor_generator([torch.zeros(1, 16, 1, 2), torch.zeros(1, 16, 1, 1)])[:1]


def one_image(keys, deltas, box):
    """Losses of two anchors with all logits 0 and one object."""
    retinanet = detector(*keys).proposal_generator
    predictions = DensePredictions([torch.zeros(1, 2, 20)], [torch.tensor([deltas])])
    return retinanet.losses(two_anchors(retinanet), predictions, [target_of([box], [3])])


FOCAL = 0.25 * math.log(2)  # the focal factor .5^2 times the cross-entropy of logit 0
BOTH_ANCHORS = (0.25 + 19 * 0.75) * FOCAL + 20 * 0.75 * FOCAL


@pytest.mark.parametrize(("normalizer", "divisor"), [("positives", 1), ("positives_and_images", 2)])
def test_classification_loss_and_its_normalizer(normalizer, divisor):
    keys = ("PSIS.RETINANET.CLS_NORMALIZER", normalizer)
    losses = one_image(keys, [[0.0] * 4] * 2, [0.0, 0, 8, 8])
    assert losses["loss_cls"].item() == pytest.approx(BOTH_ANCHORS / divisor, rel=1e-5)


def test_ignored_anchors_cost_nothing():
    # The object [0, 0, 12, 8] has IoU 2/3 with the first anchor; 32 / 128 with the second.
    # With a lower bound of .2 the second is ignored.
    keys = ("MODEL.RETINANET.IOU_THRESHOLDS", [0.2, 0.5])
    losses = one_image(keys, [[0.0] * 4] * 2, [0.0, 0, 12, 8])
    only_the_positive = (0.25 + 19 * 0.75) * FOCAL / 2
    assert losses["loss_cls"].item() == pytest.approx(only_the_positive, rel=1e-5)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        # Errors of (dx, dy, dw, dh): 0, 0, 0.05, 0.5, and of the second anchor nothing.
        (("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "smooth_l1"), 0.5 * 0.0025 / 0.1 + 0.5 - 0.05),
        (("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", 0.0), 0.55),
        (("PSIS.RETINANET.BOX_LOSS_WEIGHT", 50.0), 50 * (0.0125 + 0.45)),
        # One row has no variance: beta stays at .11. The mean over the coordinates.
        (
            ("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "self_adjusting"),
            (0.5 * 0.0025 / 0.11 + 0.5 - 0.055) / 4,
        ),
    ],
    ids=["smooth_l1", "l1", "weight", "self_adjusting"],
)
def test_box_losses_on_deltas(keys, expected):
    keys = ("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "smooth_l1", *keys)
    losses = one_image(keys, [[0.0, 0.0, 0.05, -0.5], [9.0] * 4], [0.0, 0, 8, 8])
    assert losses["loss_box_reg"].item() == pytest.approx(expected, rel=1e-4)


def test_giou_on_decoded_boxes():
    keys = ("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "giou")
    # The anchor itself is predicted: half of the object, which is the enclosing box.
    losses = one_image(keys, [[0.0] * 4] * 2, [0.0, 0, 8, 16])
    assert losses["loss_box_reg"].item() == pytest.approx(0.5, rel=1e-4)


def test_boxes_survive_encoding_and_decoding():
    transform = tiny_model(config=RETINANET).proposal_generator.box2box_transform
    anchors = torch.tensor([[0.0, 0, 24, 24], [-6, 3, 30, 21]])
    boxes = torch.tensor([[2.0, 1, 30, 9.5], [20, 30, 90, 41]])
    deltas = transform.get_deltas(anchors, boxes)
    assert deltas[0, 0].item() == pytest.approx(10 * (16 - 12) / 24)  # weight 10, RetinaMask's
    assert torch.allclose(transform.apply_deltas(deltas, anchors), boxes, atol=1e-4)


def test_self_adjusting_smooth_l1_by_hand():
    loss = SelfAdjustingSmoothL1(0.1, (0.001, 0.11))
    assert loss.beta.tolist() == pytest.approx([0.11] * 4)
    # Errors per coordinate: (.1, .3), (0, 0), (1, 1), (0, 2); unbiased variances .02, 0, 0, 2.
    predicted = torch.tensor([[0.1, 0.0, -1.0, 0.0], [-0.3, 0.0, 1.0, 2.0]])
    result = loss(predicted, torch.zeros(2, 4))
    mean = [0.9 * 0.11 + 0.1 * m for m in (0.2, 0.0, 1.0, 1.0)]
    variance = [0.1 * v for v in (0.02, 0.0, 0.0, 2.0)]
    assert loss.mean.tolist() == pytest.approx(mean)
    assert loss.variance.tolist() == pytest.approx(variance, abs=1e-7)
    # mean - variance is .117, .099, .199 and -.001, clipped to the bounds.
    beta = [0.11, 0.099, 0.11, 0.001]
    assert loss.beta.tolist() == pytest.approx(beta)
    expected = [
        [0.5 * 0.01 / 0.11, 0.0, 1 - 0.055, 0.0],
        [0.3 - 0.055, 0.0, 1 - 0.055, 2 - 0.0005],
    ]
    assert torch.allclose(result, torch.tensor(expected), atol=1e-6)


@pytest.mark.parametrize("rows", [0, 1])
def test_self_adjusting_smooth_l1_without_a_variance(rows):
    loss = SelfAdjustingSmoothL1(0.1, (0.001, 0.11))
    predicted = torch.ones(rows, 4, requires_grad=True)
    loss(predicted, torch.zeros(rows, 4)).sum().backward()
    assert loss.mean.tolist() == pytest.approx([0.11] * 4)
    assert loss.variance.eq(0).all()
    assert predicted.grad.shape == (rows, 4)


def test_statistics_are_in_the_checkpoint():
    model = tiny_model("MODEL.MASK_ON", False, config=RETINANET)
    name = "proposal_generator.self_adjusting_loss.mean"
    before = model.state_dict()[name].clone()
    training_losses(model, partial_batch([[True, True, False]]))
    assert not torch.equal(model.state_dict()[name], before)


def test_a_batch_without_objects_trains_every_parameter():
    model = tiny_model("MODEL.MASK_ON", False, config=RETINANET)
    losses = training_losses(model, partial_batch([[], []]))
    assert losses["loss_box_reg"].item() == 0
    assert losses["loss_cls"].item() > 0
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_proposals_are_thresholded():
    retinanet = detector().proposal_generator.eval()
    anchors = two_anchors(retinanet)
    logits = torch.full((1, 2, 20), -9.0)
    logits[0, 0, 5], logits[0, 1, 2] = torch.tensor(0.06).logit(), torch.tensor(0.04).logit()
    predictions = DensePredictions([logits], [torch.zeros(1, 2, 4)])
    found = retinanet.propose(anchors, predictions, [(64, 64)], retinanet.test_selection)[0]
    assert found.scores.tolist() == pytest.approx([0.06])
    assert found.pred_classes.tolist() == [5]
    assert found.proposal_boxes.tensor.tolist() == [[0, 0, 8, 8]]


def test_counts_are_averaged_over_processes(monkeypatch):
    monkeypatch.setattr(dense.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x.add_(5))
    count = torch.tensor(3)
    assert dense.mean_over_processes(count).item() == 4
    assert count.item() == 3


def test_levels_need_the_same_number_of_anchors():
    with pytest.raises(UserError, match="the same number of sizes and ratios"):
        detector("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16, 20]])
