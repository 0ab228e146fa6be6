"""The class-specific student: what it learns from, and what learns from it."""

import psis_d2.modeling  # noqa: F401
from psis_d2.errors import UserError
from psis_d2.modeling.condinst import mask_head

import pytest
import torch
from detectron2.utils.events import EventStorage

from model_builders import (
    CONDINST,
    annotated_boxes,
    condinst_model,
    dynamic_queries,
    partial_batch,
    tiny_model,
    training_losses,
)

TS = "boxinst_teacher_student"
KEY = "PSIS.TEACHER_STUDENT"
MIXED = [[True, False, False], [True, True], []]
ALL_LOSSES = {"loss_mask", "loss_projection", "loss_pairwise"}


def grads_of(loss, model):
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {k: p.grad.abs().sum().item() for k, p in model.named_parameters() if p.grad is not None}


def test_student_and_teacher_do_not_teach_backwards():
    model = condinst_model(TS)
    losses = training_losses(model, partial_batch(MIXED))
    student = grads_of(losses["loss_student"], model)
    teacher = grads_of(sum(losses[name] for name in ALL_LOSSES), model)
    controller, own = "mask_head.controller.conv.weight", "mask_head.student.conv.weight"
    assert student.get(controller, 0) == 0
    assert teacher.get(own, 0) == 0
    assert student[own] > 0
    assert teacher[controller] > 0
    for grads in (student, teacher):  # features are shared
        assert grads["mask_head.branch.project.weight"] > 0
        assert grads["proposal_generator.head.bbox_subnet.0.weight"] > 0


def test_the_students_kernels_of_other_classes_do_not_learn():
    model = condinst_model(TS)
    batch = partial_batch([[True]])
    (label,) = batch[0]["instances"].gt_classes.tolist()
    training_losses(model, batch)["loss_student"].backward()
    layers = model.mask_head.student_layers
    grad = model.mask_head.student.conv.bias.grad
    # One row more than classes, so that only the bias of the last layer remains.
    last = grad[-layers.classes :]
    assert last.nonzero().flatten().tolist() == [label]


def test_the_student_learns_the_cleaned_masks(monkeypatch):
    """Targets of all instances, as they enter the student's loss."""
    model = condinst_model(TS, f"{KEY}.POSTPROCESS", "threshold")
    torch.nn.init.zeros_(model.mask_head.controller.conv.weight)
    model.mask_head.controller.conv.bias.data[-1] = 5.0  # the teacher says "everything"
    batch = partial_batch([[True, False]])
    truth = batch[0]["instances"]
    truth.gt_boxes.tensor[:] = torch.tensor([[8.0, 8, 32, 32], [16.0, 4, 40, 40]])
    truth.gt_masks.tensor.zero_()
    truth.gt_masks.tensor[0, 8:32, 8:24] = True
    seen = []

    def record(probabilities, targets):
        seen.append(targets)
        return probabilities.flatten(1).sum(dim=1) * 0

    monkeypatch.setattr(mask_head, "dice_loss", record)
    training_losses(model, batch)
    targets = seen[-1]  # after those of the teacher's loss
    own, other = torch.zeros(32, 32), torch.zeros(32, 32)
    own[4:16, 4:12] = 1
    other[2:20, 8:20] = 1
    other[4:16, 8:12] = 0  # taken by the seen object
    for target in targets:
        assert torch.equal(target, own) or torch.equal(target, other)
    assert any(torch.equal(x, own) for x in targets)
    assert any(torch.equal(x, other) for x in targets)

    seen.clear()
    model.mask_head.warm_start = 1  # this is iteration 0
    training_losses(model, batch)
    assert all(torch.equal(x, own) for x in seen[-1])


def test_interaction_asks_the_student():
    losses = [
        training_losses(condinst_model(TS, f"{KEY}.POSTPROCESS", mode), partial_batch([[False]]))
        for mode in ("threshold", "interaction")
    ]
    assert losses[0]["loss_student"] != losses[1]["loss_student"]


@pytest.mark.parametrize(
    ("who", "other"),
    [("student", "controller"), ("teacher", "student")],
    ids=["student", "teacher"],
)
def test_one_of_the_two_is_used_at_test_time(who, other):
    model = condinst_model(TS, f"{KEY}.PREDICT_WITH", who).eval()
    batch = partial_batch([[True, True]])

    def masks():
        with torch.no_grad():
            return model.inference(batch, annotated_boxes(batch), False)[0].pred_masks.tensor

    before = masks()
    torch.nn.init.normal_(getattr(model.mask_head, other).conv.weight, std=1.0)
    assert torch.equal(masks(), before)
    for controller in (model.mask_head.student, model.mask_head.controller):
        torch.nn.init.normal_(controller.conv.weight, std=1.0)
    assert not torch.equal(masks(), before)


def test_weights_of_teacher_student_and_pseudo_masks():
    """Of an object with a mask and one without; their student losses are averaged."""
    names = ("loss_mask", "loss_projection", "loss_pairwise", "loss_student")

    def losses(*keys):
        batch = partial_batch([[True, False]])
        batch[0]["image"][:] = 90  # of one color: there are pairs
        found = training_losses(condinst_model(TS, *keys), batch)
        return torch.stack([found[name].detach() for name in names])

    plain = losses()
    assert (plain > 0).all()
    weighted = losses(f"{KEY}.TEACHER_WEIGHT", 3.0, f"{KEY}.STUDENT_WEIGHT", 0.5)
    torch.testing.assert_close(weighted, plain * torch.tensor([3.0, 3, 3, 0.5]))
    none = losses(f"{KEY}.PSEUDO_WEIGHT", 0.0)[3]
    half = losses(f"{KEY}.PSEUDO_WEIGHT", 0.5)[3]
    torch.testing.assert_close(half, (none + plain[3]) / 2)
    assert none < plain[3]
    alone = ("PSIS.CONDINST.STUDENT", False, f"{KEY}.TEACHER_WEIGHT", 3.0)
    batch = partial_batch([[True, False]])
    found = training_losses(condinst_model(TS, *alone), batch)
    assert "loss_student" not in found
    assert torch.equal(found["loss_mask"], training_losses(condinst_model(), batch)["loss_mask"])


def pseudo_masks_of(model, teacher, student, targets):
    queries = dynamic_queries(len(teacher))
    return model.mask_head._pseudo_masks(student, teacher, queries, targets)


def mask_targets(cells, colors=None):
    """Of instances without a true mask, whose images have no seen mask."""
    n = len(cells)
    return mask_head.MaskTargets(
        cells=torch.tensor(cells),
        has_mask=torch.zeros(n, dtype=torch.bool),
        truth_rows=torch.zeros(n, dtype=torch.int64),
        truth=torch.zeros(0, 8, 12),
        seen=torch.zeros(2, 8, 12, dtype=torch.bool),
        similar=None,
        colors=colors,
    )


def test_the_crf_sees_each_box_alike():
    """Boxes of 4 x 4 and of 8 x 4 cells, each dark on the left; the teacher is sure of three
    quarters of the left and one of the right."""
    crf = {"GAUSSIAN_WEIGHT": 0.0, "BILATERAL_SIGMA": 1e4, "BILATERAL_WEIGHT": 20.0}
    keys = [x for name, value in crf.items() for x in (f"{KEY}.CRF_{name}", value)]
    model = condinst_model(TS, f"{KEY}.POSTPROCESS", "crf", "CRF_SIDE", 4, *keys)
    cells = [[1, 2, 4, 5], [2, 1, 9, 4]]
    teacher, expected = torch.full((2, 8, 12), 0.9), torch.zeros(2, 8, 12, dtype=torch.bool)
    for mask, goal, (x0, y0, x1, y1) in zip(teacher, expected, cells, strict=True):
        middle = (x0 + x1 + 1) // 2
        mask[y0, x0:middle] = 0.2  # the first of four rows
        mask[y0 + 1 : y1 + 1, middle : x1 + 1] = 0.2
        goal[y0 : y1 + 1, x0:middle] = True
    colors = torch.zeros(2, 3, 4, 4)
    colors[..., 2:] = 200
    targets = mask_targets(cells, colors)
    masks, inside = pseudo_masks_of(model, teacher, torch.zeros_like(teacher), targets)
    assert torch.equal(masks, expected)
    assert inside.flatten(1).sum(dim=1).tolist() == [16, 32]
    # not cleaned, what is outside of the box stays the teacher's
    model = condinst_model(TS, f"{KEY}.POSTPROCESS", "crf", f"{KEY}.CLEANING", False, *keys)
    masks, _ = pseudo_masks_of(model, teacher, torch.zeros_like(teacher), targets)
    assert masks[~inside].all()
    assert torch.equal(masks & inside, expected)


def test_the_crf_changes_what_the_student_learns():
    batch = partial_batch([[True, False], [False]])
    batch[0]["image"][:, :, :32] = 0  # an edge to find
    losses = {}
    for kind in ("threshold", "crf"):
        model = condinst_model(TS, f"{KEY}.POSTPROCESS", kind)
        torch.manual_seed(0)
        model.mask_head.controller.conv.weight.data.normal_(std=0.3)
        model.train()
        with EventStorage() as storage:
            losses[kind] = model(batch)
        assert 0 <= storage.latest()["pseudo_masks/foreground"][0] <= 1
        sum(losses[kind].values()).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
    assert not torch.equal(losses["crf"]["loss_student"], losses["threshold"]["loss_student"])


def test_colors_are_those_of_the_boxes(monkeypatch):
    """In gray levels, less the mean that the model's input has lost."""
    model = condinst_model(TS, f"{KEY}.POSTPROCESS", "crf", "CRF_SIDE", 2)
    seen = []
    losses = model.mask_head.losses
    monkeypatch.setattr(model.mask_head, "losses", lambda *args: seen.append(args) or losses(*args))
    batch = partial_batch([[False]])
    batch[0]["instances"].gt_boxes.tensor[:] = torch.tensor([[16.0, 16, 48, 48]])
    batch[0]["image"][:] = 10
    batch[0]["image"][:, :32, 32:] = 90
    training_losses(model, batch)
    colors = seen[0][3].colors
    mean = model.pixel_mean.flatten()
    assert len(colors) > 0
    expected = torch.tensor([[10.0, 90], [10, 10]]) - mean[:, None, None]
    # normalized and back: not all bits are left
    torch.testing.assert_close(colors, expected.expand_as(colors), atol=1e-3, rtol=0)


def test_without_its_teacher_a_student_cannot_be_trained():
    keys = ("PSIS.CONDINST.STUDENT", True, "PSIS.TEACHER_STUDENT.STUDENT_ONLY", True)
    model = tiny_model(*CONDINST, *keys)
    assert model.mask_head.controller is None
    with pytest.raises(UserError, match="cannot be trained; set it to False"):
        training_losses(model, partial_batch(MIXED))
