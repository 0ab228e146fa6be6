"""The class-specific student: what it learns from, and what learns from it."""

import psis_d2.modeling  # noqa: F401
from psis_d2.errors import UserError
from psis_d2.modeling.condinst import mask_head

import pytest
import torch

from model_builders import (
    CONDINST,
    annotated_boxes,
    condinst_model,
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


def test_the_student_alone_is_used_at_test_time():
    model = condinst_model(TS).eval()
    batch = partial_batch([[True, True]])

    def masks():
        with torch.no_grad():
            return model.inference(batch, annotated_boxes(batch), False)[0].pred_masks.tensor

    before = masks()
    torch.nn.init.normal_(model.mask_head.controller.conv.weight, std=1.0)
    assert torch.equal(masks(), before)
    torch.nn.init.normal_(model.mask_head.student.conv.weight, std=1.0)
    assert not torch.equal(masks(), before)


def test_without_its_teacher_a_student_cannot_be_trained():
    keys = ("PSIS.CONDINST.STUDENT", True, "PSIS.TEACHER_STUDENT.STUDENT_ONLY", True)
    model = tiny_model(*CONDINST, *keys)
    assert model.mask_head.controller is None
    with pytest.raises(UserError, match="cannot be trained; set it to False"):
        training_losses(model, partial_batch(MIXED))
