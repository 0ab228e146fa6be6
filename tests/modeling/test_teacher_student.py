"""Teacher-student heads: every pixel of the student's targets, gradients, any head as teacher."""

import psis_d2  # noqa: F401
from psis_d2.errors import UserError
from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.framed_masks import FramedMasks
from psis_d2.modeling.mask_heads.base import Needs
from psis_d2.modeling.mask_heads.teacher_student import (
    resize_map,
)
from psis_d2.modeling.pseudo_masks import PseudoMasks

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_mask_head
from detectron2.structures import Boxes

from drawn_heads import (
    EXPECTED,
    SEEN_CELLS,
    TEACHER,
    drawing,
    losses_of,
    scene,
    targets_of,
)
from model_builders import (
    HOURGLASS,
    MASKX,
    SHAPEMASK,
    SHAPEPROP,
    TEACHER_STUDENT,
    annotated_boxes,
    partial_batch,
    tiny_config,
    tiny_model,
    training_losses,
)

KEY = "PSIS.TEACHER_STUDENT"


@pytest.mark.parametrize("kind", EXPECTED)
def test_every_pixel_of_the_student_s_target(kind):
    head, context = scene(kind)
    unseen, seen, other_seen, other_unseen = targets_of(head, context)
    assert torch.equal(unseen, drawing(EXPECTED[kind]))
    # regions with a mask learn it, whatever the teacher says: S in a region larger than its box
    assert torch.equal(seen, drawing(SEEN_CELLS) - drawing(SEEN_CELLS.replace("S", ".")))
    assert torch.equal(other_seen, F.pad(torch.ones(4, 8), (0, 0, 0, 4)))
    # in image 1 nothing is cleaned: teacher .8, student .4
    assert other_unseen.eq(1).all()


@pytest.mark.parametrize("kind", EXPECTED)
def test_without_cleaning_the_teacher_has_the_last_word(kind):
    head, context = scene(kind)
    head.pseudo_masks = PseudoMasks(kind, cleaning=False, crf=head.pseudo_masks.crf)
    raw = targets_of(head, context)[0]
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[1:6, 1:7] = True
    inside &= drawing(SEEN_CELLS) == 0
    assert torch.equal(raw * inside, drawing(EXPECTED[kind]))
    assert raw[~inside].sum() > 20


def test_masks_that_training_must_not_see_change_nothing():
    head, context = scene("interaction")
    clean, _ = losses_of(head, context)
    for target in context.targets:
        target.gt_masks.tensor[~target.gt_has_mask] ^= True
    dirty, _ = losses_of(head, context)
    assert all(torch.equal(clean[name], dirty[name]) for name in clean)


def test_a_threshold_of_its_own():
    head, context = scene()
    head.pseudo_masks = PseudoMasks("threshold", threshold=0.85)
    expected = drawing(EXPECTED["threshold"]) * (drawing(TEACHER) > 0.8)
    assert torch.equal(targets_of(head, context)[0], expected)


def test_a_teacher_of_finer_cells_is_averaged():
    """A cell's four teacher cells say .9, .9, .9, .1: .7 on average; .1, .1, .1, .9: .3."""
    fine = torch.full((4, 16, 16), 0.9)
    fine[0, ::2, ::2] = 0.1
    fine[0, 6:8, 6:8] = torch.tensor([[0.9, 0.1], [0.1, 0.1]])
    head, context = scene(teacher=fine)
    expected = torch.zeros(8, 8)
    expected[1:6, 1:7] = 1
    expected[drawing(SEEN_CELLS) > 0] = 0
    expected[3, 3] = 0
    assert torch.equal(targets_of(head, context)[0], expected)


def test_resizing_keeps_means_and_interpolates():
    maps = torch.rand(2, 1, 6, 6)
    assert torch.allclose(resize_map(maps, 3), F.avg_pool2d(maps, 2))
    assert torch.equal(resize_map(maps, 6), maps)
    ramp = torch.tensor([[0.0, 1.0], [0.0, 1.0]])[None, None]
    row = torch.tensor([0.0, 0.25, 0.75, 1.0])
    assert torch.allclose(resize_map(ramp, 4)[0, 0], row.expand(4, 4))


# ------------------------------------------------------------------------------ the losses


@pytest.mark.parametrize("channels", ["own_class", "all"])
def test_student_loss_by_loops(channels):
    """Eq. 3: one-hot targets; sums over channels, means over cells, then over regions."""
    head, context = scene(channels=channels, student_weight=0.5, pseudo_weight=0.25)
    losses, _ = losses_of(head, context)
    targets = targets_of(head, context)
    logits = head.student.logits.detach()
    total = 0.0
    for k, (label, weight) in enumerate(zip([2, 0, 0, 2], [0.25, 1, 1, 0.25], strict=True)):
        for c in range(3):
            if c != label and channels == "own_class":
                continue
            target = targets[k] if c == label else torch.zeros(8, 8)
            cells = F.binary_cross_entropy_with_logits(logits[k, c], target)
            total += weight * cells.item()
    assert losses["loss_mask"].item() == pytest.approx(0.5 * total / 4, rel=1e-5)


def test_teacher_loss_is_that_of_its_own_on_annotated_regions():
    head, context = scene(teacher_weight=3.0)
    losses, _ = losses_of(head, context)
    targets = targets_of(head, context)[[1, 2]]
    expected = F.binary_cross_entropy_with_logits(torch.full((2, 8, 8), 0.8).logit(), targets)
    assert losses["loss_mask_teacher"].item() == pytest.approx(3 * expected.item(), rel=1e-5)
    assert losses.keys() == {"loss_mask", "loss_mask_teacher"}


def test_gradients_are_where_they_should_be_and_nowhere_else():
    head, context = scene("interaction")
    losses, _ = losses_of(head, context)
    teacher, student = head.teacher.logits, head.student.logits

    of_teacher = torch.autograd.grad(
        losses["loss_mask_teacher"], [teacher, student], retain_graph=True, allow_unused=True
    )
    assert of_teacher[1] is None
    assert of_teacher[0][[0, 3]].eq(0).all()  # regions without a mask
    assert of_teacher[0][[1, 2]].ne(0).all()

    of_student = torch.autograd.grad(
        losses["loss_mask"], [teacher, student], retain_graph=True, allow_unused=True
    )
    assert of_student[0] is None  # not through pseudo masks either
    own = of_student[1][range(4), [2, 0, 0, 2]]
    # the cross-entropy's gradient, of which the mean with the student's own mask is no part
    targets = targets_of(head, context)
    probabilities = student.detach()[range(4), [2, 0, 0, 2]].sigmoid()
    assert torch.allclose(own, (probabilities - targets) / (4 * 64), atol=1e-7)
    others = of_student[1].clone()
    others[range(4), [2, 0, 0, 2]] = 0
    assert others.eq(0).all()


def test_all_channels_learn_if_all_have_a_target():
    head, context = scene(channels="all")
    losses, _ = losses_of(head, context)
    (gradient,) = torch.autograd.grad(losses["loss_mask"], head.student.logits)
    targets = torch.zeros(4, 3, 8, 8)
    targets[range(4), [2, 0, 0, 2]] = targets_of(head, context)
    expected = (head.student.logits.detach().sigmoid() - targets) / (4 * 64)
    assert torch.allclose(gradient, expected, atol=1e-7)


def test_features_learn_from_both_heads():
    """Regions without a mask: from the student alone."""
    cfg = tiny_config(*TEACHER_STUDENT)
    torch.manual_seed(0)
    head = build_mask_head(cfg, ShapeSpec(channels=16, height=4, width=4)).train()
    _, context = scene()
    features = torch.randn(4, 16, 4, 4, requires_grad=True)
    context = RegionContext(
        regions=context.regions, features=features, pool=None, targets=context.targets
    )
    losses, _ = losses_of(head, context)
    by_head = {
        name: torch.autograd.grad(loss, features, retain_graph=True)[0].flatten(1).abs().sum(1) > 0
        for name, loss in losses.items()
    }
    assert by_head["loss_mask"].tolist() == [True, True, True, True]
    assert by_head["loss_mask_teacher"].tolist() == [False, True, True, False]


def test_warm_start_learns_from_true_masks_alone():
    head, context = scene(warm_start=2)
    annotated = context.select(context.has_mask)
    for iteration, expected in ((0, annotated), (1, annotated), (2, context)):
        losses, storage = losses_of(head, context, iteration)
        reference, _ = losses_of(scene()[0], expected)
        assert torch.equal(losses["loss_mask"], reference["loss_mask"])
        assert ("pseudo_masks/foreground" in storage.latest()) == (iteration == 2)
    unseen = context.select(~context.has_mask)
    losses, _ = losses_of(head, unseen)
    assert all(loss.item() == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.eq(0).all() for p in head.parameters())


def test_the_share_of_foreground_is_logged():
    head, context = scene()
    _, storage = losses_of(head, context)
    share = (drawing(EXPECTED["threshold"]).sum() + 64) / 128
    assert storage.latest()["pseudo_masks/foreground"][0] == pytest.approx(share.item())


def test_the_teacher_predicts_as_in_a_test_and_goes_on_in_training():
    head, context = scene()
    head.teacher.regularize.eval()  # a part that somebody keeps so
    losses_of(head, context)
    assert head.teacher.asked_for == [([1, 2], True), ([0, 3], False)]
    assert head.teacher.training
    assert not head.teacher.regularize.training
    assert head.student.asked_for == [([0, 1, 2, 3], True)]


def test_no_region_at_all():
    head, context = scene()
    nothing = context.select(torch.zeros(4, dtype=torch.bool))
    losses, storage = losses_of(head, nothing)
    assert losses.keys() == {"loss_mask", "loss_mask_teacher"}
    assert all(loss.item() == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.eq(0).all() for p in head.parameters())
    assert storage.latest() == {}


# ------------------------------------------------------------------------------ any head teaches


def as_teacher(keys):
    """The keys of a method, with its head as the teacher."""
    renamed = (f"{KEY}.TEACHER" if key == "MODEL.ROI_MASK_HEAD.NAME" else key for key in keys)
    return (*renamed, *TEACHER_STUDENT)


def test_the_heads_needs_are_passed_on():
    def needs(*keys):
        return tiny_model(*keys).roi_heads.mask_head.needs

    assert needs(*TEACHER_STUDENT) == Needs()
    assert needs(*TEACHER_STUDENT, f"{KEY}.POSTPROCESS", "crf") == Needs(images=True)
    assert needs(*as_teacher(SHAPEPROP)) == Needs(sampled=True)
    assert needs(*as_teacher(SHAPEPROP), f"{KEY}.STUDENT", "MaskXMaskHead") == Needs(
        sampled=True, box_predictor=True
    )
    assert needs(*as_teacher(SHAPEMASK)) == Needs(wide_frames=True)
    only = (f"{KEY}.STUDENT_ONLY", True)
    assert needs(*as_teacher(MASKX), *only) == Needs()
    assert needs(*as_teacher(SHAPEMASK), *only) == Needs(wide_frames=True)


def test_two_heads_need_what_either_needs_on_the_frames_of_the_first():
    first = Needs(sampled=True, box_features=True, canonical_frame=7)
    second = Needs(images=True, box_predictor=True, wide_frames=True, canonical_frame=9)
    assert first | second == Needs(True, True, True, True, False, 7)
    assert second | first == Needs(True, True, True, True, True, 9)


def test_the_student_sees_what_the_teacher_sees():
    """ShapeMask looks around the box, also when it is no longer there."""
    crop = ("PSIS.SHAPEMASK.CROP", "fixed", "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 16)
    for extra in ((), (f"{KEY}.STUDENT_ONLY", True)):
        model = tiny_model(*as_teacher(SHAPEMASK), *crop, *extra).eval()
        head = model.roi_heads.mask_head
        boxes = Boxes(torch.tensor([[10.0, 10, 30, 40]]))
        assert head.frames(boxes, (64, 64)).area() > boxes.area()
        assert model.roi_heads.mask_pooler.canonical_box_size == 16 * 16
        batch = partial_batch([[True]])
        with torch.no_grad():
            found = model.inference(batch, annotated_boxes(batch), do_postprocess=False)
        assert isinstance(found[0].pred_masks, FramedMasks)


def test_one_stage_detectors_refuse_a_teacher_that_reads_box_weights():
    config = "quick/Base-shapes-FCOS.yaml"
    with pytest.raises(UserError, match="TeacherStudentMaskHead reads the weights of a box predi"):
        tiny_model(*as_teacher(MASKX), config=config)
    model = tiny_model(*TEACHER_STUDENT, f"{KEY}.POSTPROCESS", "crf", config=config)
    losses = training_losses(model, partial_batch([[True, False, True], [False, True]]))
    assert {"loss_mask", "loss_mask_teacher"} <= losses.keys()


def test_the_crf_runs_in_a_model_on_images_of_different_sizes():
    model = tiny_model(*TEACHER_STUDENT, f"{KEY}.POSTPROCESS", "crf")
    batch = partial_batch([[True, False, True]]) + partial_batch([[False, True]], size=96)
    losses = training_losses(model, batch)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert losses["loss_mask"] > 0


def test_stronger_teachers():
    """Paper Tab. 3; the student stays as it is."""
    shape = ShapeSpec(channels=16, height=14, width=14)
    options = ["MODEL.ROI_MASK_HEAD.NUM_CONV", 12, "PSIS.FCN_UPSAMPLINGS", 2]
    head = build_mask_head(tiny_config(*TEACHER_STUDENT, f"{KEY}.TEACHER_OPTS", options), shape)
    plain = build_mask_head(tiny_config(*TEACHER_STUDENT), shape)
    assert len(head.teacher.trunk) == 12
    assert len(plain.teacher.trunk) == len(head.student.trunk) == 4
    _, context = scene()
    context = RegionContext(
        regions=context.regions,
        features=torch.randn(4, 16, 14, 14),
        pool=None,
        targets=context.targets,
    )
    assert head.teacher.predict(context).shape == (4, 1, 56, 56)
    assert head.predict(context).shape == (4, 1, 28, 28)
    assert head.student.predict_all(context).shape == (4, 20, 28, 28)
    losses, _ = losses_of(head, context)
    assert all(loss.isfinite() for loss in losses.values())


def test_the_student_has_a_config_of_its_own():
    options = ["MODEL.ROI_MASK_HEAD.NUM_CONV", 1]
    cfg = tiny_config(*TEACHER_STUDENT, f"{KEY}.STUDENT_OPTS", options)
    head = build_mask_head(cfg, ShapeSpec(channels=16, height=14, width=14))
    assert len(head.student.trunk) == 1
    assert head.student.predictor[-1].out_channels == 20
    assert head.teacher.predictor[-1].out_channels == 1
    assert cfg.MODEL.ROI_MASK_HEAD.NUM_CONV == 4


# ------------------------------------------------------------------------------ the student alone


def test_a_student_alone_predicts_the_same_and_has_no_teacher():
    model = tiny_model(*TEACHER_STUDENT).eval()
    student = tiny_model(*TEACHER_STUDENT, f"{KEY}.STUDENT_ONLY", True, seed=1).eval()
    names = {name for name, _ in student.named_parameters()}
    assert not any("teacher" in name for name in student.state_dict())
    assert {n for n, _ in model.named_parameters()} - names == {
        f"roi_heads.mask_head.teacher.{n}"
        for n, _ in model.roi_heads.mask_head.teacher.named_parameters()
    }
    missing, unexpected = student.load_state_dict(model.state_dict(), strict=False)
    assert missing == []
    batch = partial_batch([[True, False]])
    for given in (None, annotated_boxes(batch)):
        with torch.no_grad():
            one, other = (m.inference(batch, given)[0]["instances"] for m in (model, student))
        assert torch.equal(one.pred_masks, other.pred_masks)


def test_the_teacher_can_be_asked_at_test_time():
    model = tiny_model(*TEACHER_STUDENT, f"{KEY}.PREDICT_WITH", "teacher").eval()
    head = model.roi_heads.mask_head
    alone = tiny_model(seed=1).eval()  # a class-agnostic head
    alone.load_state_dict(model.state_dict(), strict=False)
    alone.roi_heads.mask_head.load_state_dict(head.teacher.state_dict())
    batch = partial_batch([[True, False]])
    with torch.no_grad():
        one, other = (
            m.inference(batch, annotated_boxes(batch))[0]["instances"] for m in (model, alone)
        )
    assert torch.equal(one.pred_masks, other.pred_masks)


def test_a_student_alone_cannot_be_trained():
    model = tiny_model(*TEACHER_STUDENT, f"{KEY}.STUDENT_ONLY", True)
    with pytest.raises(UserError, match="STUDENT_ONLY True builds a model without a teacher"):
        training_losses(model, partial_batch([[True]]))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ((f"{KEY}.TEACHER", "NoHead"), "TEACHER is 'NoHead'; choose one of .*FCNMaskHead"),
        ((f"{KEY}.TEACHER", "TeacherStudentMaskHead"), "TEACHER is 'TeacherStudentMaskHead'"),
        ((f"{KEY}.STUDENT", "MaskRCNNConvUpsampleHead"), "STUDENT is 'MaskRCNNConvUpsampleHead'"),
        ((f"{KEY}.POSTPROCESS", "none"), "choose one of threshold, interaction, crf"),
        ((f"{KEY}.STUDENT_CHANNELS", "some"), "choose one of own_class, all"),
        ((f"{KEY}.PREDICT_WITH", "both"), "choose one of student, teacher"),
        (
            (f"{KEY}.PREDICT_WITH", "teacher", f"{KEY}.STUDENT_ONLY", True),
            "with STUDENT_ONLY True there is none",
        ),
        ((f"{KEY}.TEACHER_OPTS", ["MODEL.NO_SUCH_KEY", 1]), "TEACHER_OPTS is .*MODEL.NO_SUCH_KEY"),
        ((f"{KEY}.STUDENT_OPTS", ["MODEL.ROI_MASK_HEAD.NUM_CONV"]), "STUDENT_OPTS is .*by turns"),
    ],
)
def test_bad_settings(keys, words):
    with pytest.raises(UserError, match=words):
        tiny_model(*TEACHER_STUDENT, *keys)


def test_all_channels_need_a_head_that_has_them():
    keys = (f"{KEY}.STUDENT", "HourglassMaskHead", f"{KEY}.STUDENT_CHANNELS", "all")
    model = tiny_model(*HOURGLASS, *TEACHER_STUDENT, *keys)
    with pytest.raises(UserError, match="HourglassMaskHead predicts 1 a region"):
        training_losses(model, partial_batch([[True, False]]))
