"""Losses of boxes and points on the masks of regions: by hand, slowly, and under every head."""

import math

import psis_d2  # noqa: F401
from psis_d2.errors import UserError
from psis_d2.modeling.box_supervision import directions
from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.weak_losses import (
    BoxLosses,
    PointLoss,
    cells_of_boxes,
    points_of,
    similar_cells,
)

import pytest
import torch
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

from head_contract import contract_model, region_configs, register_data
from model_builders import partial_batch, tiny_model, training_losses

MIXED = [[True, False, True], [False, True]]
WEAK = ("PSIS.BOX_LOSSES", True, "PSIS.POINTS", True, "PSIS.PAIRWISE_WARMUP", 0)
NAMES = {"loss_projection", "loss_pairwise", "loss_points"}


def with_points(batch, seed=0, number=6):
    """The batch with points of every object, in and around its box, some of them missing."""
    generator = torch.Generator().manual_seed(seed)
    for item in batch:
        instances = item["instances"]
        n, box = len(instances), instances.gt_boxes.tensor
        places = 1.4 * torch.rand(n, number, 2, generator=generator) - 0.2
        instances.gt_points = box[:, None, :2] + places * (box[:, 2:] - box[:, :2])[:, None]
        instances.gt_point_labels = torch.randint(-1, 2, (n, number), generator=generator)
    return batch


def context_of(boxes, frames, image=None, points=None, labels=None, size=(32, 32)):
    """A training context of one image with a region an object, none of which has a mask."""
    n = len(boxes)
    target = Instances(size, gt_boxes=Boxes(torch.tensor(boxes)))
    target.gt_classes = torch.zeros(n, dtype=torch.int64)
    if points is not None:
        target.gt_points, target.gt_point_labels = torch.tensor(points), torch.tensor(labels)
    regions = Instances(size, proposal_boxes=Boxes(torch.tensor(frames)))
    regions.gt_index, regions.gt_classes = torch.arange(n), target.gt_classes
    regions.gt_has_mask = torch.zeros(n, dtype=torch.bool)
    return RegionContext(
        regions=[regions],
        features=torch.zeros(n, 1, 2, 2),
        pool=None,
        targets=[target],
        images=None if image is None else ImageList(image[None], [size]),
    )


# ------------------------------------------------------------------------------ boxes


def test_cells_of_boxes_by_hand():
    """A frame of 8 x 4 pixels at (10, 20) in 4 x 4 cells: 2 x 1 pixels each."""
    frames = torch.tensor([[10.0, 20, 18, 24]]).repeat(4, 1)
    boxes = torch.tensor(
        [
            [10.0, 20, 18, 24],  # the frame
            [12, 21, 16, 23],  # its middle
            [0, 0, 14, 22],  # reaches out at the left and above
            [12.9, 22.6, 13.2, 22.9],  # holds no center of a cell
        ]
    )
    expected = [[0, 0, 3, 3], [1, 1, 2, 2], [0, 0, 1, 1], [1, 2, 1, 2]]
    assert cells_of_boxes(boxes, frames, 4).tolist() == expected


def test_like_neighbors_are_those_cell_by_cell():
    generator = torch.Generator().manual_seed(0)
    colors = 3 * torch.rand(2, 3, 5, 5, generator=generator)
    valid = torch.rand(2, 5, 5, generator=generator) > 0.2
    for dilation in (1, 2):
        found = similar_cells(colors, valid, dilation, 0.4)
        for r in range(2):
            for k, (down, right) in enumerate(directions(dilation)):
                for y in range(5):
                    for x in range(5):
                        v, u = y + down, x + right
                        inside = 0 <= v < 5 and 0 <= u < 5
                        alike = (
                            inside
                            and math.exp(-math.dist(colors[r, :, y, x], colors[r, :, v, u]) / 2)
                            >= 0.4
                        )
                        expected = bool(alike and valid[r, y, x] and valid[r, v, u])
                        assert found[r, k, y, x] == expected


def test_box_losses_are_the_slow_ones():
    """Every cell and every pair of two regions, one of which its box does not fill."""
    torch.manual_seed(0)
    image, size = torch.rand(3, 32, 32), 6
    boxes, frames = [[4.0, 4, 16, 16], [8, 10, 20, 28]], [[4.0, 4, 16, 16], [5, 10, 23, 22]]
    context = context_of(boxes, frames, image)
    loss = BoxLosses(
        pixel_mean=(100, 110, 120),
        pixel_std=(60, 50, 40),
        image_format="RGB",
        projection_weight=2.0,
        pairwise_weight=3.0,
        dilation=1,
        threshold=0.02,
        warmup=4,
    )
    logits = torch.randn(2, size, size, requires_grad=True)
    with EventStorage(1) as storage:
        found = loss(context, logits)
        assert 0 < storage.latest()["box_losses/fill"][0] < 1

    similar = loss.similar(context, size)
    assert 0.1 < similar.float().mean() < 0.9
    projections, total, pairs = [], 0.0, 0
    for r in range(2):
        x0, y0, x1, y1 = cells_of_boxes(torch.tensor(boxes), torch.tensor(frames), size)[r].tolist()
        p = logits[r].sigmoid().tolist()

        def inside(y, x, x0=x0, y0=y0, x1=x1, y1=y1):
            return x0 <= x <= x1 and y0 <= y <= y1

        dice = 0.0
        for peaks, (low, high) in (
            ([max(p[y][x] for y in range(size)) for x in range(size)], (x0, x1)),
            ([max(p[y]) for y in range(size)], (y0, y1)),
        ):
            truth = [float(low <= k <= high) for k in range(size)]
            both = sum(a * b for a, b in zip(peaks, truth, strict=True))
            dice += 1 - 2 * both / (sum(a * a for a in peaks) + sum(truth) + 1e-5)
        projections.append(dice)
        for k, (down, right) in enumerate(directions(1)):
            for y in range(size):
                for x in range(size):
                    if not similar[r, k, y, x]:
                        continue
                    a, b = p[y][x], p[y + down][x + right]
                    weight = inside(y, x) + inside(y + down, x + right)
                    total -= weight * math.log(a * b + (1 - a) * (1 - b))
                    pairs += weight
    assert found["loss_projection"].item() == pytest.approx(2 * sum(projections) / 2, rel=1e-5)
    # The second of four iterations of growth.
    assert found["loss_pairwise"].item() == pytest.approx(3 * 0.5 * total / pairs, rel=1e-4)
    sum(found.values()).backward()
    assert logits.grad.flatten(1).abs().sum(dim=1).gt(0).all()


# ------------------------------------------------------------------------------ points


def test_points_by_hand():
    """A frame of 8 x 8 pixels at (4, 4) with masks of 2 x 2 cells, whose centers are 6 and 10."""
    points = [[[6.0, 6], [8, 6], [5, 11], [3, 6]], [[10, 10], [0, 0], [0, 0], [0, 0]]]
    labels = [[1, 0, 1, 1], [1, -1, -1, -1]]
    context = context_of([[4.0, 4, 12, 12]] * 2, [[4.0, 4, 12, 12]] * 2, None, points, labels)
    places, known = points_of(context)
    assert places[0, 1].tolist() == [0.5, 0.25]
    assert known.tolist() == [[1, 0, 1, -1], [1, -1, -1, -1]]  # the fourth lies outside
    logits = torch.tensor([[[1.0, 3], [-2, 5]], [[0, 0], [0, 4]]])
    # At a center; between two; beyond the last center as at it.
    values, targets = [1.0, 2.0, -2.0, 4.0], [1, 0, 1, 1]
    terms = [math.log1p(math.exp(-v if t else v)) for v, t in zip(values, targets, strict=True)]
    found = PointLoss(0.5)(context, logits)["loss_points"].item()
    assert found == pytest.approx(0.5 * sum(terms) / 4)


def test_regions_without_a_point_in_them_are_not_wanted():
    points, labels = [[[6.0, 6]], [[30.0, 6]], [[6.0, 6]]], [[1], [1], [-1]]
    context = context_of([[4.0, 4, 12, 12]] * 3, [[4.0, 4, 12, 12]] * 3, None, points, labels)
    assert PointLoss().wants(context).tolist() == [True, False, False]


# ------------------------------------------------------------------------------ every head


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("weak")
    register_data(path)
    return path


def losses_and_gradients(model, batch):
    losses = training_losses(model, batch)
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters()}


# A head of each kind: on masks alone, on all foreground, made of two.
FAST = ("FCNMaskHead", "OPMaskHead", "TeacherStudentMaskHead")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
        for name in region_configs()
    ],
)
def test_every_head_learns_from_boxes_and_points(name, folder):
    """Of objects without a mask, whose garbage stays unseen; the mask's losses stay what they
    are."""
    config, names = region_configs()[name], NAMES
    if name == "TeacherStudentMaskHead":
        names = {f"{x}_teacher" for x in NAMES}

    def build(*keys):
        return contract_model(config, folder, "PSIS.MASK_TRAIN_BOXES", "gt", *keys)

    runs = [
        losses_and_gradients(build(*WEAK), with_points(partial_batch(MIXED, garbage_seed=seed)))
        for seed in (None, 5)
    ]
    (losses, gradients), others = runs
    assert names <= losses.keys()
    for one, other in zip(runs[0], others, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[k], other[k]) for k in one)
    assert all(losses[k].item() > 0 for k in names)
    assert all(g is not None and g.isfinite().all() for g in gradients.values())

    nothing, gradients = losses_and_gradients(
        build(*WEAK), with_points(partial_batch([[True, True], [True]]))
    )
    assert nothing.keys() == losses.keys()
    assert all(nothing[k].item() == 0 for k in names)
    assert all(g is not None and g.isfinite().all() for g in gradients.values())


def test_boxes_alone_train_the_head():
    model = tiny_model(*WEAK, "PSIS.POINTS", False)
    losses = training_losses(model, partial_batch([[False, False], [False]]))
    assert losses["loss_mask"].item() == 0
    sum(losses[x] for x in ("loss_projection", "loss_pairwise")).backward()
    head = model.roi_heads.mask_head
    assert all(p.grad.abs().max() > 0 for p in head.parameters())


@pytest.mark.parametrize("boxes", ["proposals", "gt"])
def test_losses_of_masks_are_what_they_were(boxes):
    keys = ("PSIS.MASK_TRAIN_BOXES", boxes)
    plain = training_losses(tiny_model(*keys), partial_batch(MIXED))
    more = training_losses(tiny_model(*keys, *WEAK), with_points(partial_batch(MIXED)))
    assert more.keys() - plain.keys() == NAMES
    assert all(torch.equal(plain[k], more[k]) for k in plain)


def test_all_parts_in_one_model(folder):
    """Shape activation, feature drop, hourglass, contours, boxes."""
    config = "quick/psis_all_parts_gt_shapes.yaml"
    narrow = ("PSIS.HOURGLASS.CHANNELS", [32, 32], "PSIS.HOURGLASS.BLOCKS", [1, 1])
    batch = partial_batch(MIXED)
    losses, gradients = losses_and_gradients(contract_model(config, folder, *narrow), batch)
    head = {name: g for name, g in gradients.items() if "mask_head" in name}
    assert any("trunk.2.skip" in name for name in head)
    assert all(g.abs().max() > 0 for name, g in head.items() if "trunk" in name)
    plain = training_losses(
        contract_model(config, folder, *narrow, "PSIS.BOUNDARY_WEIGHT", 0.0), batch
    )
    assert losses["loss_mask"] > plain["loss_mask"]
    assert {"loss_activating", "loss_propagating", "loss_projection"} <= losses.keys()


def test_a_head_with_a_loss_of_its_own_has_no_place_for_contours(folder):
    with pytest.raises(UserError, match="BOUNDARY_WEIGHT is 0.5, but ShapeMaskHead has a mask"):
        contract_model("quick/shapemask_shapes.yaml", folder, "PSIS.BOUNDARY_WEIGHT", 0.5)
