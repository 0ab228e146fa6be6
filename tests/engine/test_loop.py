"""The training step: a batch in parts is the batch, and bfloat16 leaves the parameters alone."""

import psis_d2.modeling  # noqa: F401
from psis_d2.engine.launch import launch
from psis_d2.engine.loop import TrainingLoop, build_loop, split
from psis_d2.engine.trainer import laid_out
from psis_d2.errors import UserError

import pytest
import torch
from detectron2.utils.events import EventStorage

from model_builders import (
    CONTRASTMASK,
    CPMASK,
    HOURGLASS,
    MASKX,
    OPMASK,
    SHAPEMASK,
    SHAPEPROP,
    TEACHER_STUDENT,
    condinst_model,
    partial_batch,
    tiny_config,
    tiny_model,
)
from regression_workers import Regression, numbers, train, train_share_in_parts


@pytest.mark.parametrize(
    ("device", "choice", "last"),
    [("cpu", "cpu", True), ("cuda", "cpu", False), ("cuda", "always", True)],
)
def test_convolutions_are_laid_out_as_asked(device, choice, last):
    cfg = tiny_config("MODEL.DEVICE", device, "SOLVER.CHANNELS_LAST", choice)
    weight = laid_out(torch.nn.Conv2d(4, 4, 3), cfg).weight  # a layer on the CPU says as much
    assert weight.is_contiguous(memory_format=torch.channels_last) == last


@pytest.mark.parametrize("n, parts, sizes", [(8, 4, [2, 2, 2, 2]), (7, 3, [2, 3, 2])])
def test_parts_of_a_batch_add_up_to_it(n, parts, sizes):
    whole, divided = Regression(), Regression()
    batches = [numbers(n)] * 2
    logged = train(whole, batches)
    found = train(divided, batches, parts)
    assert divided.sizes == sizes * 2
    torch.testing.assert_close(divided.layer.weight, whole.layer.weight, rtol=1e-5, atol=1e-6)
    for name in ("total_loss", "loss_a", "loss_b"):
        assert found[name] == pytest.approx(logged[name], rel=1e-5)


def test_a_step_uses_no_gradient_of_the_step_before():
    model, fresh = Regression(), Regression()
    batch = numbers(4)
    loop = TrainingLoop(model, [batch, batch], torch.optim.SGD(model.parameters(), lr=0.0), 2)
    with EventStorage():
        loop.run_step()
        loop.run_step()
    sum(fresh(batch).values()).backward()
    torch.testing.assert_close(model.layer.weight.grad, fresh.layer.weight.grad)


def test_parts_of_a_mask_rcnn_are_its_batch():
    """Images with the same number of objects and masks, all of them drawn: no choice is left."""
    options = ("MODEL.RESNETS.NORM", "GN", "MODEL.RESNETS.STEM_OUT_CHANNELS", 32)
    options += ("MODEL.RPN.LOSS_WEIGHT", 0.0, "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 0.0)
    options += ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True, "PSIS.MASK_TRAIN_BOXES", "gt")
    batch = partial_batch([[True, True], [True, True]])
    gradients = []
    for parts in (1, 2):
        model = tiny_model(*options)
        train(model, [batch], parts)
        gradients.append([p.grad for p in model.roi_heads.mask_head.parameters()])
    for whole, divided in zip(*gradients, strict=True):
        torch.testing.assert_close(divided, whole, rtol=1e-3, atol=1e-5)
        assert whole.abs().max() > 0


def test_two_processes_in_parts_are_one_process(tmp_path):
    launch(train_share_in_parts, num_cpu_processes=2, args=(str(tmp_path),))
    whole = Regression()
    train(whole, [numbers(8)] * 2)
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pth")
        torch.testing.assert_close(found["weight"], whole.layer.weight.detach())
        assert found["exchanges"] == 2  # once a step, not once a part


def test_splitting():
    assert split(list("abcdef"), 3) == [["a", "b"], ["c", "d"], ["e", "f"]]
    assert split(list("abc"), 5) == [["a"], ["b"], ["c"]]
    assert split(list("abc"), 1) == [["a", "b", "c"]]


MODELS = {
    "agnostic": (),
    "shapeprop": SHAPEPROP,
    "cpmask": CPMASK,
    "maskx": MASKX,
    "hourglass": HOURGLASS,
    "opmask": OPMASK,
    "contrastmask": CONTRASTMASK,
    "weak": ("PSIS.BOX_LOSSES", True, "PSIS.POINTS", True, "PSIS.PAIRWISE_WARMUP", 0),
    "shapemask": SHAPEMASK,
    "teacher_student": TEACHER_STUDENT,
}


@pytest.mark.parametrize("name", [*MODELS, "condinst"])
def test_bfloat16_trains_every_model(name):
    model = condinst_model() if name == "condinst" else tiny_model(*MODELS[name])
    seen = []
    model.backbone.register_forward_hook(lambda *args: seen.append(args[2]))
    logged = train(model, [partial_batch([[True, False], [True]])] * 2, dtype=torch.bfloat16)
    losses = [value for key, value in logged.items() if "loss" in key]
    assert len(losses) > 3
    assert all(torch.isfinite(torch.tensor(losses)))
    assert {x.dtype for x in seen[0].values()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in model.parameters())


def build(*overrides):
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return build_loop(tiny_config(*overrides), model, [], optimizer)


def test_the_loop_of_a_config(caplog):
    assert (build().parts, build().dtype) == (1, None)
    assert build("SOLVER.ACCUMULATE", 4, "SOLVER.IMS_PER_BATCH", 8).parts == 4
    amp = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE")
    assert build(*amp, "bfloat16").dtype is torch.bfloat16
    assert build(*amp, "float16").dtype is None
    assert "needs a CUDA GPU: this run computes in float32" in caplog.text
    with pytest.raises(UserError, match="SOLVER.AMP.DTYPE is 'half'; choose one of float16, bfl"):
        build(*amp, "half")
    for parts in (0, 9):
        with pytest.raises(UserError, match=f"SOLVER.ACCUMULATE is {parts}, but a process has 8"):
            build("SOLVER.ACCUMULATE", parts, "SOLVER.IMS_PER_BATCH", 8)
