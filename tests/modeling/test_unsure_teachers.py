"""What helps against teachers that are not sure: trust, a slow teacher, a late start."""

import psis_d2  # noqa: F401
from psis_d2.modeling.losses import select_class
from psis_d2.modeling.pseudo_masks import trust_in

import pytest
import torch
import torch.nn.functional as F

from drawn_heads import losses_of, scene, targets_of
from model_builders import TEACHER_STUDENT, partial_batch, tiny_model, training_losses


@pytest.mark.parametrize("trust", ["cells", "masks"])
def test_cells_of_pseudo_masks_count_by_their_trust(trust):
    head, context = scene("threshold", trust=trust)
    found = losses_of(head, context)[0]["loss_mask"].item()
    plain, _ = scene("threshold")
    logits, classes = head.predict(context), context.classes
    targets = targets_of(plain, context)
    cells = F.binary_cross_entropy_with_logits(
        select_class(logits, classes), targets, reduction="none"
    )
    for row in (~context.has_mask).nonzero()[:, 0].tolist():
        p = head.teacher.predict(context)[row, 0].sigmoid()
        cells[row] *= trust_in(trust, p[None], targets[row][None])[0]
    assert found == pytest.approx(cells.mean().item(), rel=1e-5)
    assert found != losses_of(plain, context)[0]["loss_mask"].item()


def test_the_slow_teacher_follows_and_makes_the_pseudo_masks():
    key = "PSIS.TEACHER_STUDENT"
    model = tiny_model(*TEACHER_STUDENT, f"{key}.MOMENTUM", 0.75)
    head = model.roi_heads.mask_head
    start = [p.clone() for p in head.slow_teacher.parameters()]
    with torch.no_grad():
        for p in head.teacher.parameters():
            p += 4
    batch = partial_batch([[True, False], [False]])
    training_losses(model, batch)
    for slow, before in zip(head.slow_teacher.parameters(), start, strict=True):
        torch.testing.assert_close(slow, before + 1)
        assert not slow.requires_grad
    # What the student learns depends on the slow one alone.
    asked = []
    predict = head.slow_teacher.predict
    head.slow_teacher.predict = lambda context: asked.append(len(context)) or predict(context)
    training_losses(model, batch)
    assert len(asked) == 1
    assert asked[0] > 0
    student = tiny_model(*TEACHER_STUDENT, f"{key}.MOMENTUM", 0.75, f"{key}.STUDENT_ONLY", True)
    assert student.roi_heads.mask_head.slow_teacher is None


def test_pseudo_masks_wait_for_the_teachers_loss():
    head, context = scene("threshold", warm_loss=0.5)
    losses, _ = losses_of(head, context)
    first = losses["loss_mask_teacher"].item()
    assert head.taught.item() == pytest.approx(first)
    head.warm_loss = first * 1.01
    enough, _ = losses_of(head, context)
    head.warm_loss = first * 0.99
    waiting, _ = losses_of(head, context)
    plain = losses_of(scene("threshold")[0], context)[0]
    annotated = losses_of(scene("threshold", warm_start=1)[0], context)[0]
    assert torch.equal(enough["loss_mask"], plain["loss_mask"])
    assert torch.equal(waiting["loss_mask"], annotated["loss_mask"])
    assert not torch.equal(plain["loss_mask"], annotated["loss_mask"])
    head.teacher_weight = 0.5  # the mean is of the loss itself
    losses_of(head, context)
    assert head.taught.item() == pytest.approx(first)
