"""FCOS: target assignment against its literal definition, losses by hand, proposals."""

import math

import psis_d2.modeling  # noqa: F401
from psis_d2.errors import UserError
from psis_d2.modeling.detectors.dense import (
    BOX_LOSSES,
    DensePass,
    DensePredictions,
    ProposalSelection,
    focal_loss,
    select_proposals,
)
from psis_d2.modeling.detectors.fcos import (
    assign_locations,
    box_sides,
    centerness_targets,
    locations_in_boxes,
    released_giou_loss,
)
from psis_d2.modeling.norms import tower_norm

import pytest
import torch
from detectron2.modeling import build_backbone
from detectron2.structures import Boxes

from model_builders import partial_batch, tiny_config, tiny_model, training_losses

FCOS = "quick/Base-shapes-FCOS.yaml"
# Two levels, the paper's weights and focal loss: quick configs are tuned for few iterations.
TWO_LEVELS = ("PSIS.FCOS.IN_FEATURES", ["p3", "p4"], "PSIS.FCOS.REGRESSION_LIMITS", [32])
TWO_LEVELS += ("PSIS.FCOS.FOCAL_LOSS_ALPHA", 0.25, "PSIS.FCOS.FOCAL_LOSS_GAMMA", 2.0)
TWO_LEVELS += ("PSIS.FCOS.SCORE_THRESH_TEST", 0.03, "PSIS.FCOS.TOWER_INIT", "normal")


def fcos_model(*keys):
    """A tiny model behind an FCOS of two levels."""
    return tiny_model(*TWO_LEVELS, *keys, config=FCOS)


def assigned_by_loops(centers, strides, ranges, boxes, radius) -> list[int]:
    """The definition: location by location, object by object."""
    result = []
    for (x, y), stride, (low, high) in zip(centers, strides, ranges, strict=True):
        best, best_area = -1, math.inf
        for k, (x0, y0, x1, y1) in enumerate(boxes):
            left, top, right, bottom = x - x0, y - y0, x1 - x, y1 - y
            if min(left, top, right, bottom) <= 0:
                continue
            if radius > 0:
                if abs(x - (x0 + x1) / 2) >= radius * stride:
                    continue
                if abs(y - (y0 + y1) / 2) >= radius * stride:
                    continue
            if not low <= max(left, top, right, bottom) <= high:
                continue
            if (x1 - x0) * (y1 - y0) < best_area:
                best, best_area = k, (x1 - x0) * (y1 - y0)
        result.append(best)
    return result


def locations(size: int, strides=(8, 16)):
    """Centers, strides and level numbers of all locations of a square image."""
    centers, of_stride, level = [], [], []
    for number, stride in enumerate(strides):
        for y in range(size // stride):
            for x in range(size // stride):
                centers.append(((x + 0.5) * stride, (y + 0.5) * stride))
                of_stride.append(float(stride))
                level.append(number)
    return centers, of_stride, level


@pytest.mark.parametrize("radius", [0.0, 1.5])
def test_assignment_equals_its_definition(radius):
    generator = torch.Generator().manual_seed(0)
    centers, strides, level = locations(64)
    limits = [(0.0, 20.0), (20.0, math.inf)]
    ranges = [limits[k] for k in level]
    found = set()
    for _ in range(10):
        # Whole and half pixels: locations on sides and distances on limits do occur.
        corner = torch.randint(0, 96, (6, 2), generator=generator) / 2
        side = torch.randint(1, 80, (6, 2), generator=generator) / 2
        boxes = torch.cat([corner, corner + side], dim=1)
        index = assign_locations(
            *(torch.tensor(x) for x in (centers, strides, ranges)), boxes, radius
        )
        expected = assigned_by_loops(centers, strides, ranges, boxes.tolist(), radius)
        assert index.tolist() == expected
        found |= set(expected)
    assert found == set(range(-1, 6))


def test_smallest_of_overlapping_objects_wins():
    boxes = torch.tensor([[0.0, 0, 40, 40], [10, 10, 30, 30], [0, 0, 41, 41]])
    args = torch.tensor([[20.0, 20.0]]), torch.tensor([8.0]), torch.tensor([[0.0, math.inf]])
    assert assign_locations(*args, boxes, 1.5).tolist() == [1]
    assert assign_locations(*args, boxes[[0, 2]], 1.5).tolist() == [0]


def test_center_sampling_is_in_strides():
    # The same offset of 20 pixels from the center: outside 1.5 strides of 8, inside those of 16.
    boxes = torch.tensor([[0.0, 0, 100, 100]])
    centers, strides = torch.tensor([[70.0, 50], [70, 50]]), torch.tensor([8.0, 16.0])
    ranges = torch.tensor([[0.0, math.inf]]).expand(2, 2)
    assert assign_locations(centers, strides, ranges, boxes, 1.5).tolist() == [-1, 0]
    assert assign_locations(centers, strides, ranges, boxes, 0.0).tolist() == [0, 0]


def test_no_object_is_all_background():
    centers, strides, _ = (torch.tensor(x) for x in locations(32))
    ranges = torch.tensor([[0.0, math.inf]]).expand(len(centers), 2)
    index = assign_locations(centers, strides, ranges, torch.zeros(0, 4), 1.5)
    assert index.eq(-1).all()


def test_every_assigned_object_is_one_that_the_location_may_predict():
    centers, strides, level = (torch.tensor(x) for x in locations(64))
    ranges = torch.tensor([[0.0, 20.0], [20.0, math.inf]])[level]
    boxes = torch.tensor([[4.0, 4, 60, 60], [20, 20, 44, 44], [22, 22, 30, 30]])
    belongs = locations_in_boxes(centers, strides, ranges, boxes, 1.5)
    index = assign_locations(centers, strides, ranges, boxes, 1.5)
    assert torch.equal(belongs.any(dim=1), index >= 0)
    assert belongs.gather(1, index.clamp(min=0)[:, None])[:, 0][index >= 0].all()
    assert (belongs.sum(dim=1) > 1).any()  # there is something to choose


def test_labels_of_a_batch_are_those_of_each_image():
    model = fcos_model()
    fcos = model.proposal_generator
    batch = partial_batch([[True] * 4, []], size=64)
    targets = [item["instances"] for item in batch]
    maps = [torch.zeros(2, 16, 8, 8), torch.zeros(2, 16, 4, 4)]
    anchors = fcos.anchor_generator(maps)
    labels, boxes = fcos.label_locations(anchors, targets)
    centers, strides, level = locations(64)
    cells = torch.cat([x.tensor for x in anchors])
    assert torch.equal((cells[:, :2] + cells[:, 2:]) / 2, torch.tensor(centers))
    ranges = [((0.0, 32.0), (32.0, math.inf))[k] for k in level]
    truth = targets[0]
    index = assigned_by_loops(centers, strides, ranges, truth.gt_boxes.tensor.tolist(), 1.5)
    expected = [20 if k < 0 else truth.gt_classes[k].item() for k in index]
    assert labels[0].tolist() == expected
    assert labels[1].eq(20).all()
    positive = labels[0] < 20
    assert positive.any()
    assert torch.equal(boxes[0][positive], truth.gt_boxes.tensor[[k for k in index if k >= 0]])


def test_centerness_by_hand():
    sides = torch.tensor([[2.0, 3, 2, 3], [1, 4, 4, 1], [1, 2, 4, 2]])
    assert centerness_targets(sides).tolist() == pytest.approx([1.0, 0.25, 0.5])


@pytest.mark.parametrize("norm_targets", [True, False])
def test_boxes_survive_encoding_and_decoding(norm_targets):
    fcos = fcos_model("PSIS.FCOS.NORM_REG_TARGETS", norm_targets).proposal_generator
    cells = torch.tensor([[0.0, 0, 8, 8], [16, 32, 32, 48]])
    boxes = torch.tensor([[-3.0, 1, 20, 9.5], [20, 30, 90, 41]])
    centers = (cells[:, :2] + cells[:, 2:]) / 2
    sides = box_sides(centers, boxes)
    assert sides.gt(0).all()
    deltas = sides / torch.tensor([[8.0], [16.0]]) if norm_targets else sides
    transform = fcos.box2box_transform
    assert torch.allclose(transform.get_deltas(cells, boxes), deltas)
    assert torch.allclose(transform.apply_deltas(deltas, cells), boxes)


def test_giou_by_hand():
    # Two unit squares one apart: no intersection, union 2, enclosing box 3, so GIoU = -1/3.
    a, b = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[2.0, 0, 3, 1]])
    giou = BOX_LOSSES["giou"]
    assert giou(a, b, reduction="sum").item() == pytest.approx(1 + 1 / 3, abs=1e-5)
    # Half of a box: IoU 1/2, the enclosing box is the union.
    c = torch.tensor([[0.0, 0, 1, 0.5]])
    assert giou(a, c, reduction="sum").item() == pytest.approx(0.5, abs=1e-5)
    assert giou(a, a, reduction="sum").item() == pytest.approx(0.0, abs=1e-5)


def test_focal_loss_by_hand():
    # One location, two classes, label 0, logits 0: the positive costs .25 * .5^2 * log 2, the
    # negative .75 * .5^2 * log 2.
    loss = focal_loss(torch.zeros(1, 2), torch.tensor([0]), 0.25, 2.0)
    assert loss.item() == pytest.approx((0.25 + 0.75) * 0.25 * math.log(2), abs=1e-6)
    # Background: both are negatives.
    loss = focal_loss(torch.zeros(1, 2), torch.tensor([2]), 0.25, 2.0)
    assert loss.item() == pytest.approx(2 * 0.75 * 0.25 * math.log(2), abs=1e-6)


def test_losses_by_hand():
    """One location of one level is positive; every term is written out."""
    fcos = fcos_model().proposal_generator
    anchors = fcos.anchor_generator([torch.zeros(1, 16, 1, 1), torch.zeros(1, 16, 1, 1)])
    target = partial_batch([[True]])[0]["instances"]
    target.gt_boxes = Boxes(torch.tensor([[2.0, 0, 6, 8]]))  # 4 x 8 around (4, 4), stride 8
    target.gt_classes = torch.tensor([3])
    predictions = DensePredictions(
        logits=[torch.zeros(1, 1, 20), torch.full((1, 1, 20), -50.0)],
        deltas=[torch.full((1, 1, 4), 0.5), torch.zeros(1, 1, 4)],  # predicts [0, 0, 8, 8]
        centerness=[torch.zeros(1, 1), torch.zeros(1, 1)],
    )
    losses = fcos.losses(anchors, predictions, [target])
    focal = (0.25 + 19 * 0.75) * 0.25 * math.log(2)
    assert losses["loss_cls"].item() == pytest.approx(focal, rel=1e-5)
    assert losses["loss_box_reg"].item() == pytest.approx(0.5, rel=1e-5)  # half of the box
    assert losses["loss_centerness"].item() == pytest.approx(math.log(2), rel=1e-5)


def test_box_loss_is_weighted_by_centerness():
    fcos = fcos_model().proposal_generator
    anchors = fcos.anchor_generator([torch.zeros(1, 16, 1, 2), torch.zeros(1, 16, 1, 1)])
    target = partial_batch([[True]])[0]["instances"]
    target.gt_boxes = Boxes(torch.tensor([[0.0, 0, 12, 8]]))  # around (6, 4)
    deltas = torch.tensor([[[0.5, 0.5, 1.0, 0.5], [0.5, 0.5, 0.5, 0.5]]])
    predictions = DensePredictions(
        logits=[torch.zeros(1, 2, 20), torch.zeros(1, 1, 20)],
        deltas=[deltas, torch.zeros(1, 1, 4)],
        centerness=[torch.zeros(1, 2), torch.zeros(1, 1)],
    )
    losses = fcos.losses(anchors, predictions, [target])
    # Location (4, 4): sides 4, 4, 8, 4, predicted exactly. Location (12, 4) is not inside.
    assert losses["loss_box_reg"].item() == pytest.approx(0.0, abs=1e-5)
    target.gt_boxes = Boxes(torch.tensor([[0.0, 0, 13, 8]]))  # now (12, 4) is: sides 12, 4, 1, 4
    losses = fcos.losses(anchors, predictions, [target])
    weights = [math.sqrt(4 / 9), math.sqrt(1 / 12)]
    # [0, 0, 12, 8] in [0, 0, 13, 8]; [8, 0, 16, 8]: intersection 40, union 128 = enclosing box.
    errors = [1 - 12 / 13, 1 - 40 / 128]
    expected = sum(w * e for w, e in zip(weights, errors, strict=True)) / sum(weights)
    assert losses["loss_box_reg"].item() == pytest.approx(expected, rel=1e-4)


def test_released_giou_by_hand():
    # In strides of 8: [0, 0, 1, 1] predicted for [0, 0, 2, 1]. Areas 1 and 2, common 1, union 2,
    # hull 2: the IoU is (1 + 1) / (2 + 1), and the hull is full.
    predicted = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 8]])
    boxes = torch.tensor([[0.0, 0, 16, 8], [8, 8, 16, 16]])
    losses = released_giou_loss(predicted, boxes, torch.full((2,), 8.0))
    # Beside each other at a corner: nothing common, union 2, hull 4.
    assert losses.tolist() == pytest.approx([1 - 2 / 3, 1 - 1 / 3 + (4 - 2) / 4])
    # A unit of a pixel: the same boxes are larger, and it is nearly the GIoU.
    in_pixels = released_giou_loss(predicted, boxes, torch.ones(2))
    assert in_pixels.tolist() == pytest.approx([1 - 65 / 129, 1 - 1 / 129 + 0.5])


@pytest.mark.parametrize("side", [1, 2, 4])
def test_released_giou_weakens_the_gradient_of_small_boxes(side):
    """A prediction inside of its box of some strides: the union is the box, and one is added."""
    gradients = []
    boxes = torch.tensor([[0.0, 0, side, side]])
    for loss in (
        lambda x: released_giou_loss(x, boxes, torch.ones(1)),
        lambda x: BOX_LOSSES["giou"](x, boxes),
    ):
        predicted = torch.tensor([[0.0, 0, 0.6 * side, side]], requires_grad=True)
        loss(predicted).sum().backward()
        gradients.append(predicted.grad[0, 2].item())
    assert gradients[0] / gradients[1] == pytest.approx(side**2 / (side**2 + 1), rel=0.01)


def test_box_loss_of_a_level_is_in_its_strides():
    released = ("PSIS.FCOS.BBOX_REG_LOSS_TYPE", "released_giou")
    for keys, unit in ((released, 16.0), ((*released, "PSIS.FCOS.NORM_REG_TARGETS", False), 1.0)):
        fcos = fcos_model(*keys).proposal_generator
        anchors = fcos.anchor_generator([torch.zeros(1, 16, 1, 1), torch.zeros(1, 16, 1, 1)])
        target = partial_batch([[True]])[0]["instances"]
        target.gt_boxes = Boxes(torch.tensor([[0.0, 0, 80, 16]]))
        fcos.center_radius = 0.0
        # The location (8, 8) of the second level, stride 16: half of its box's left part.
        side = 8.0 / unit
        predictions = DensePredictions(
            logits=[torch.zeros(1, 1, 20), torch.zeros(1, 1, 20)],
            deltas=[torch.zeros(1, 1, 4), torch.full((1, 1, 4), side)],
            centerness=[torch.zeros(1, 1), torch.zeros(1, 1)],
        )
        losses = fcos.losses(anchors, predictions, [target])
        predicted = torch.tensor([[0.0, 0, 16, 16]])
        expected = released_giou_loss(predicted, target.gt_boxes.tensor, torch.tensor([unit]))
        assert losses["loss_box_reg"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_positives_may_lie_around_another_middle():
    boxes = torch.tensor([[0.0, 0, 64, 64]])
    centers, strides = torch.tensor([[12.0, 12.0], [32.0, 32.0]]), torch.full((2,), 8.0)
    ranges = torch.tensor([[0.0, math.inf]]).expand(2, 2)
    middles = torch.tensor([[10.0, 14.0]])
    assert assign_locations(centers, strides, ranges, boxes, 1.5).tolist() == [-1, 0]
    assert assign_locations(centers, strides, ranges, boxes, 1.5, middles).tolist() == [0, -1]


def scored(*rows):
    """Boxes and scores [R, K] of one level, in the arguments of select_proposals."""
    boxes = torch.tensor([row[0] for row in rows])
    scores = torch.tensor([row[1] for row in rows])
    return (lambda level, index: boxes[index].clone()), [scores]


def test_proposals_are_ranked_suppressed_within_a_class_clipped_and_counted():
    boxes_of, scores = scored(
        ([0.0, 0, 10, 10], [0.5, 0.0]),
        ([0.0, 0, 10, 9], [0.9, 0.4]),  # drops the first in class 0; in class 1 it is alone
        ([20.0, 20, 90, 90], [0.7, 0.0]),  # reaches out of the image
        ([70.0, 70, 80, 80], [0.95, 0.0]),  # is outside of it
        ([5.0, 5, 6, 6], [float("nan"), 0.0]),
    )
    proposals = select_proposals(boxes_of, scores, (64, 64), ProposalSelection(0.0, 10, 0.6, 10))
    assert proposals.scores.tolist() == pytest.approx([0.9, 0.7, 0.4])
    assert proposals.pred_classes.tolist() == [0, 0, 1]
    assert proposals.proposal_boxes.tensor.tolist() == [
        [0, 0, 10, 9],
        [20, 20, 64, 64],
        [0, 0, 10, 9],
    ]
    two = select_proposals(boxes_of, scores, (64, 64), ProposalSelection(0.0, 10, 0.6, 2))
    assert two.scores.tolist() == pytest.approx([0.9, 0.7])
    # Of a level, two candidates enter: the one outside and the best one.
    few = select_proposals(boxes_of, scores, (64, 64), ProposalSelection(0.0, 2, 0.6, 10))
    assert few.scores.tolist() == pytest.approx([0.9])


def test_proposals_know_their_anchors():
    """Rows count through the levels; three classes a row do not confuse them."""
    scores = [torch.zeros(4, 3), torch.zeros(2, 3)]
    scores[0][2, 1], scores[1][0, 2], scores[1][1, 0] = 0.5, 0.9, 0.7
    boxes = torch.tensor([[0.0, 0, 9, 9], [10, 0, 19, 9], [20, 0, 29, 9], [30, 0, 39, 9]])
    found = select_proposals(
        lambda level, rows: boxes[rows] + 30 * level,
        scores,
        (64, 64),
        ProposalSelection(0.0, 10, 0.6, 10),
    )
    assert found.anchor_rows.tolist() == [4, 5, 2]


def test_a_pass_hands_out_the_box_tower():
    fcos = fcos_model().proposal_generator.eval()
    maps = {"p3": torch.randn(2, 16, 8, 8), "p4": torch.randn(2, 16, 4, 4)}
    found = fcos.detect(maps)
    assert found.losses == {}
    assert len(found.predictions.tower) == 2
    for level, tower in enumerate(found.predictions.tower):
        assert torch.equal(tower, fcos.head.bbox_subnet(maps[f"p{level + 3}"]))


def dense_pass(fcos):
    """A pass over one image of 64 pixels: stride 8, then 16; every location predicts its cell."""
    anchors = fcos.anchor_generator([torch.zeros(1, 16, 8, 8), torch.zeros(1, 16, 4, 4)])
    predictions = DensePredictions(
        logits=[torch.zeros(1, n, 20) for n in (64, 16)],
        deltas=[torch.full((1, n, 4), 0.5) for n in (64, 16)],
        centerness=[torch.zeros(1, n) for n in (64, 16)],
    )
    return DensePass(anchors, predictions, {})


def test_location_of_a_given_box():
    fcos = fcos_model().proposal_generator
    found = dense_pass(fcos)
    given, label = [Boxes(torch.tensor([[8.0, 8, 32, 32]]))], [torch.tensor([3])]
    deltas, logits = found.predictions.deltas[0][0], found.predictions.logits[0][0]
    # Location (20, 12), row 1 * 8 + 2, predicts the box itself.
    deltas[10] = torch.tensor([12.0, 4, 12, 20]) / 8
    assert fcos.locations_for(found, given, label)[0].tolist() == [10]
    # Its neighbor does, too, and is sure of another class; then of this one.
    deltas[11] = torch.tensor([20.0, 4, 4, 20]) / 8
    logits[11, 4] = 2.0
    assert fcos.locations_for(found, given, label)[0].tolist() == [10]
    logits[11, 3] = 2.0
    assert fcos.locations_for(found, given, label)[0].tolist() == [11]
    # Centerness counts as well.
    found.predictions.centerness[0][0, 11] = -5.0
    assert fcos.locations_for(found, given, label)[0].tolist() == [10]
    # One that may not predict the box does not matter, however well it fits.
    deltas[63] = torch.tensor([52.0, 52, -28, -28]) / 8
    logits[63, 3] = 9.0
    assert fcos.locations_for(found, given, label)[0].tolist() == [10]


def test_a_given_box_that_no_location_may_predict_gets_the_nearest():
    fcos = fcos_model().proposal_generator
    boxes = torch.tensor(
        [
            [9.0, 9, 11, 11],  # between the centers of stride 8: (12, 12) is nearest, row 9
            [-60.0, -60, 30, 30],  # of the second level, its center outside of the image
        ]
    )
    rows = fcos.locations_for(dense_pass(fcos), [Boxes(boxes)], [torch.tensor([0, 0])])[0]
    assert rows.tolist() == [9, 64]
    none = fcos.locations_for(dense_pass(fcos), [Boxes(boxes[:0])], [torch.tensor([]).long()])[0]
    assert none.shape == (0,)


def test_no_candidate_gives_no_proposal_with_all_fields():
    boxes_of, scores = scored(([0.0, 0, 10, 10], [0.0, 0.0]))
    proposals = select_proposals(boxes_of, scores, (64, 64), ProposalSelection(0.0, 10, 0.6, 10))
    assert len(proposals) == 0
    assert proposals.proposal_boxes.tensor.shape == (0, 4)
    assert proposals.has("scores")
    assert proposals.has("pred_classes")


@pytest.mark.parametrize(
    ("ranking", "in_threshold", "expected"),
    [
        # probability .8, .5; centerness .5, .9; threshold .42
        (True, False, [math.sqrt(0.4), math.sqrt(0.45)]),
        (True, True, [0.0, math.sqrt(0.45)]),
        (False, False, [0.8, 0.5]),
        (False, True, [0.0, 0.5]),
    ],
)
def test_centerness_in_scores(ranking, in_threshold, expected):
    keys = ("PSIS.FCOS.CENTERNESS_IN_RANKING", ranking)
    keys += ("PSIS.FCOS.CENTERNESS_IN_THRESHOLD", in_threshold)
    fcos = fcos_model(*keys).proposal_generator
    logits = torch.tensor([[[0.8], [0.5]]]).logit()
    predictions = DensePredictions([logits], [], [torch.tensor([[0.5, 0.9]]).logit()])
    assert fcos.scores(predictions, 0.42)[0].flatten().tolist() == pytest.approx(expected)
    assert fcos.scores(predictions, 0.9)[0].eq(0).all()


@pytest.mark.parametrize("branch", ["regression", "classification"])
def test_centerness_branch(branch):
    head = fcos_model("PSIS.FCOS.CENTERNESS_ON", branch).proposal_generator.head
    maps = [torch.randn(1, 16, 4, 4), torch.randn(1, 16, 2, 2)]
    sum(x.sum() for x in head(maps)[2]).backward()
    towers = {"regression": head.bbox_subnet, "classification": head.cls_subnet}
    for name, tower in towers.items():
        touched = any(p.grad is not None and p.grad.ne(0).any() for p in tower.parameters())
        assert touched == (name == branch)


def test_level_scales_scale_their_level():
    head = fcos_model().proposal_generator.head
    maps = [torch.randn(1, 16, 4, 4), torch.randn(1, 16, 2, 2)]
    plain = head(maps)[1]
    with torch.no_grad():
        head.scales[1] = 3.0
    scaled = head(maps)[1]
    assert torch.equal(scaled[0], plain[0])
    assert torch.allclose(scaled[1], 3 * plain[1])
    off = fcos_model("PSIS.FCOS.LEVEL_SCALES", False).proposal_generator.head
    assert not off.scales.requires_grad


def test_exponential_regression_is_positive():
    head = fcos_model("PSIS.FCOS.NORM_REG_TARGETS", False).proposal_generator.head
    maps = [torch.randn(1, 16, 4, 4), torch.randn(1, 16, 2, 2)]
    assert all(x.gt(0).all() for x in head(maps)[1])


@pytest.mark.parametrize("masks", [True, False])
def test_a_batch_without_objects_trains_every_parameter(masks):
    model = fcos_model("MODEL.MASK_ON", masks)
    losses = training_losses(model, partial_batch([[], []]))
    assert losses["loss_box_reg"].item() == 0
    assert losses["loss_centerness"].item() == 0
    assert losses["loss_cls"].item() > 0
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_detector_alone_learns_a_batch_and_finds_its_boxes():
    cfg = ("MODEL.MASK_ON", False, "PSIS.FCOS.TOWER_DIM", 32)
    model = fcos_model(*cfg)
    batch = partial_batch([[True]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(30):
        losses = training_losses(model, batch, seed=step)
        assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_centerness"}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval()(batch)
    for item, output in zip(batch, found, strict=True):
        truth, detections = item["instances"], output["instances"]
        assert not detections.has("pred_masks")
        assert detections.scores.tolist() == sorted(detections.scores.tolist(), reverse=True)
        assert detections.pred_classes[0] == truth.gt_classes[0]
        error = (detections.pred_boxes.tensor[0] - truth.gt_boxes.tensor[0]).abs().max()
        assert error < 4


def test_one_level_needs_no_limits():
    keys = ("PSIS.FCOS.IN_FEATURES", ["p3"], "PSIS.FCOS.REGRESSION_LIMITS", [])
    assert fcos_model(*keys).proposal_generator.level_ranges == [(0.0, math.inf)]


@pytest.mark.parametrize("detector", ["FCOS", "RetinaNet"])
@pytest.mark.parametrize(("kind", "std"), [("normal", 0.01), ("msra", (2 / (9 * 64)) ** 0.5)])
def test_initial_weights_of_the_towers(detector, kind, std):
    keys = ("MODEL.FPN.OUT_CHANNELS", 64, "PSIS.FCOS.TOWER_DIM", 64)
    keys += (f"PSIS.{detector.upper()}.TOWER_INIT", kind)
    head = tiny_model(*keys, config=f"quick/Base-shapes-{detector}.yaml").proposal_generator.head
    for tower in (head.cls_subnet, head.bbox_subnet):
        weights = [m.weight for m in tower.modules() if isinstance(m, torch.nn.Conv2d)]
        assert len(weights) == 2
        assert all(w.std().item() == pytest.approx(std, rel=0.05) for w in weights)
    assert head.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_p6_and_p7_come_from_p5():
    keys = ("MODEL.BACKBONE.NAME", "build_p5_resnet_fpn_backbone", "MODEL.RESNETS.DEPTH", 18)
    keys += ("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.STEM_OUT_CHANNELS", 64)
    keys += ("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"])
    keys += ("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"], "MODEL.BACKBONE.FREEZE_AT", 0)
    backbone = build_backbone(tiny_config(*keys)).eval()
    assert {k: v.stride for k, v in backbone.output_shape().items()} == {
        f"p{k}": 2**k for k in range(3, 8)
    }
    maps = backbone(torch.randn(1, 3, 128, 128))
    p6, p7 = backbone.top_block(maps["p5"])
    assert torch.equal(p6, maps["p6"])
    assert torch.equal(p7, maps["p7"])


def test_group_norm_for_any_width():
    assert tower_norm("GN")(256).num_groups == 32
    assert tower_norm("GN")(48).num_groups == 16
    assert tower_norm("") == ""


def test_levels_need_their_limits():
    with pytest.raises(UserError, match="give 1 increasing numbers"):
        fcos_model("PSIS.FCOS.REGRESSION_LIMITS", [32, 64])
