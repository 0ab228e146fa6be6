"""CondInst and BoxInst: supervision, memory, what is logged, test time."""

import logging
import math
import weakref

import psis_d2.modeling  # noqa: F401
from psis_d2.errors import UserError
from psis_d2.evaluation.given_box_models import GivenBoxModel, ShrunkBoxModel
from psis_d2.modeling.condinst import mask_head
from psis_d2.modeling.condinst.meta_arch import mask_middles
from psis_d2.modeling.condinst.monitor import BoxMaskMonitor
from psis_d2.modeling.detectors.dense import ProposalSelection

import pytest
import torch
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model_builders import (
    annotated_boxes,
    condinst_model,
    dynamic_queries,
    flip_masks,
    partial_batch,
    tiny_model,
    training_losses,
)

MIXED = [[True, False, False], [True, True], []]
ALL_LOSSES = {"loss_mask", "loss_projection", "loss_pairwise"}


def mask_losses(model, batch):
    losses = training_losses(model, batch)
    return {
        k: v for k, v in losses.items() if k not in ("loss_cls", "loss_box_reg", "loss_centerness")
    }


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ("condinst", {"loss_mask"}),
        ("boxinst", ALL_LOSSES - {"loss_mask"}),
        ("boxinst_mixed", ALL_LOSSES),
        ("boxinst_teacher_student", ALL_LOSSES | {"loss_student"}),
    ],
)
def test_every_parameter_trains_with_and_without_instances(config, names):
    model = condinst_model(config)
    for flags in (MIXED, [[False], []], [[True], [True]], [[], []]):
        batch = partial_batch(flags)
        for item in batch:
            item["image"][:] = 90  # of one color: there are pairs
        losses = training_losses(model, batch)
        assert names == {k for k in losses if k in ALL_LOSSES | {"loss_student"}}
        assert all(x.isfinite() for x in losses.values())
        model.zero_grad()
        sum(losses.values()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        has = {"loss_mask": any(map(any, flags)), "loss_student": any(flags)}
        unmasked = not all(map(all, flags))
        of_box = any(flags) if config == "boxinst" else unmasked
        has |= {"loss_projection": of_box, "loss_pairwise": of_box}
        for name in names:
            assert (losses[name].item() != 0) == has[name], (name, flags)


def test_masks_matter_where_they_should():
    def losses(config, flip):
        batch = partial_batch(MIXED)
        return mask_losses(condinst_model(config), flip_masks(batch) if flip else batch)

    for config in ("condinst", "boxinst_mixed"):
        assert losses(config, False)["loss_mask"] != losses(config, True)["loss_mask"]
    plain, flipped = losses("boxinst", False), losses("boxinst", True)
    assert {k: v.item() for k, v in plain.items()} == {k: v.item() for k, v in flipped.items()}
    mixed, flipped = losses("boxinst_mixed", False), losses("boxinst_mixed", True)
    for name in ("loss_projection", "loss_pairwise"):
        assert torch.equal(mixed[name], flipped[name])


def test_pairwise_loss_grows_and_leaves_the_bottom_out():
    batch = partial_batch([[False] * 3])
    batch[0]["image"][:] = 90  # of one color
    full = training_losses(condinst_model("boxinst"), batch)["loss_pairwise"]
    grown = training_losses(condinst_model("boxinst", "PAIRWISE_WARMUP", 10), batch)
    assert full > 0
    torch.testing.assert_close(grown["loss_pairwise"] * 10, full)
    none = training_losses(condinst_model("boxinst", "BOTTOM_PIXELS", 64), batch)
    assert none["loss_pairwise"] == 0
    similar = condinst_model("boxinst", "BOTTOM_PIXELS", 10)._similar(batch[0], (32, 32))
    # Rows of two pixels: the centers of 27 are above row 54, the next one's is on it.
    assert similar[0].any(dim=1).tolist() == [True] * 27 + [False] * 5
    batch[0]["height"] = 32  # the input is twice as large: ten rows of it are twenty
    similar = condinst_model("boxinst", "BOTTOM_PIXELS", 10)._similar(batch[0], (32, 32))
    assert similar[0].any(dim=1).sum() == 22


def test_masks_of_a_batch_are_learned_and_found_again_in_given_boxes():
    model = condinst_model("condinst", "LOCATIONS_PER_IMAGE", 8)
    batch = partial_batch([[True]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for step in range(40):
        found = training_losses(model, batch, seed=step)
        losses.append(found["loss_mask"].item())
        optimizer.zero_grad()
        sum(found.values()).backward()
        optimizer.step()
    assert losses[0] > 0.6
    assert losses[-1] < 0.25
    model.eval()
    with torch.no_grad():
        found = model.inference(batch, annotated_boxes(batch))[0]["instances"]
        best = model.inference(batch, do_postprocess=False)[0][:1]
        given = Instances((64, 64), pred_boxes=best.pred_boxes, pred_classes=best.pred_classes)
        again = model.inference(batch, [given], do_postprocess=False)[0]
    truth = batch[0]["instances"].gt_masks.tensor
    assert (found.pred_masks & truth).sum() / (found.pred_masks | truth).sum() > 0.6
    # The detector's own box leads back to the location that it was predicted at.
    torch.testing.assert_close(again.pred_masks.tensor, best.pred_masks.tensor)


# ---- memory -------------------------------------------------------------------------------------


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that live at a time."""

    def __init__(self):
        super().__init__()
        self.known, self.live, self.peak = set(), 0, 0

    def _free(self, key, size):
        self.known.discard(key)
        self.live -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self.known:
                self.known.add(key)
                self.live += size
                weakref.finalize(storage, self._free, key, size)
        self.peak = max(self.peak, self.live)
        return result


def head_and_arguments(n, at_a_time, config="boxinst_mixed"):
    model = condinst_model(config, "INSTANCES_AT_A_TIME", at_a_time, "IN_FEATURES", ["p3", "p4"])
    head = model.mask_head
    torch.manual_seed(0)
    maps = [torch.randn(2, 16, 32, 32), torch.randn(2, 16, 16, 16)]
    tower = [x.clone().requires_grad_() for x in maps]
    corner = torch.randint(0, 40, (n, 2))
    cells = torch.cat([corner, corner + 20], dim=1)
    targets = mask_head.MaskTargets(
        cells=cells,
        has_mask=torch.arange(n) % 3 == 0,
        truth_rows=torch.arange(n) % 4,
        truth=torch.rand(4, 64, 64),
        seen=torch.rand(2, 64, 64) > 0.5,
        similar=torch.zeros(2, 4, 64, 64, dtype=torch.bool),
    )
    targets.similar[:, :, 2:60, 2:60] = torch.rand(2, 4, 58, 58) > 0.5
    return head, (maps, tower, dynamic_queries(n), targets)


def test_memory_does_not_grow_with_the_number_of_instances():
    mask = 4 * 64 * 64
    peaks = {}
    for n, at_a_time in ((100, 50), (500, 50), (150, 0)):
        head, arguments = head_and_arguments(n, at_a_time)
        with PeakMemory() as memory, EventStorage():
            sum(head.losses(*arguments).values()).backward()
        assert memory.peak > 5 * mask * min(n, at_a_time or n)
        peaks[n] = memory.peak
    # Beyond the first fifty, an instance costs its filters and patches, less than half a mask.
    assert (peaks[500] - peaks[100]) / 400 < 0.5 * mask
    assert (peaks[150] - peaks[100]) / 100 > 5 * mask  # against fifty at a time


@pytest.mark.parametrize("config", ["boxinst_mixed", "boxinst_teacher_student"])
def test_parts_give_the_loss_and_gradient_of_the_whole(config):
    results = []
    for at_a_time in (0, 7, 30):
        head, (maps, tower, *rest) = head_and_arguments(30, at_a_time, config)
        with EventStorage() as storage:
            losses = head.losses(maps, tower, *rest)
            logged = {k: v for k, (v, _) in storage.latest().items()}
        sum(losses.values()).backward()
        grads = [p.grad for p in head.parameters()] + [x.grad for x in tower]
        results.append((losses, logged, grads))
        assert all(x.ne(0).any() for x in grads[-2:])
    for losses, logged, grads in results[1:]:
        torch.testing.assert_close(losses, results[0][0])
        assert logged == pytest.approx(results[0][1])
        torch.testing.assert_close(grads, results[0][2], atol=1e-5, rtol=1e-3)


# ---- what is logged -----------------------------------------------------------------------------


def test_logged_ratios_by_hand():
    """All masks fill the image, all colors are alike."""
    model = condinst_model("boxinst")
    torch.nn.init.zeros_(model.mask_head.controller.conv.weight)
    model.mask_head.controller.conv.bias.data[-1] = 5.0
    batch = partial_batch([[True, False]])
    batch[0]["image"][:] = 90
    with EventStorage() as storage:
        model(batch)
    logged = {k: v for k, (v, _) in storage.latest().items()}
    assert logged["masks/box_fill"] == pytest.approx(1.0)
    assert 0.8 < logged["masks/positive_pairs"] <= 1.0  # fewer at the image's edge
    batch[0]["image"] = torch.randint(0, 256, (3, 64, 64)).to(torch.uint8)
    model.mask_head.controller.conv.bias.data[-1] = -5.0
    with EventStorage() as storage:
        model(batch)
    logged = {k: v for k, (v, _) in storage.latest().items()}
    assert logged["masks/box_fill"] == 0
    assert logged["masks/positive_pairs"] < 0.1


def test_collapse_is_said_once_a_period(caplog):
    monitor = BoxMaskMonitor(0.9, start=5, period=10)
    caplog.set_level(logging.WARNING)
    said = []
    with EventStorage() as storage:
        for iteration in range(40):
            storage.iter = iteration
            caplog.clear()
            monitor.update(0.3, 1.0 if iteration < 30 else 0.2)
            said += [iteration] * len(caplog.records)
            for record in caplog.records:
                assert "Masks fill 100 % of their boxes" in record.getMessage()
                assert "30 % of the pairs" in record.getMessage()
    assert said == [5, 15, 25]
    quiet = BoxMaskMonitor(0.9, start=0)
    with EventStorage():
        caplog.clear()
        quiet.update(0.3, 0.6)
    assert not caplog.records


# ---- test time ----------------------------------------------------------------------------------


def test_masks_of_detections_and_of_given_boxes():
    model = condinst_model("boxinst").eval()
    model.proposal_generator.test_selection = type(model.proposal_generator.test_selection)(
        0.0, 20, 0.6, 5
    )
    batch = partial_batch([[True, False], [True]])
    for item in batch:
        item["height"], item["width"] = 96, 80
        item["instances"].gt_ids = 7 + torch.arange(len(item["instances"]))
    with torch.no_grad():
        outputs = [x["instances"] for x in model(batch)]
        assert [len(x) for x in outputs] == [5, 5]
        raw = model.inference(batch, do_postprocess=False)
        given = [x["instances"] for x in GivenBoxModel(model)(batch)]
        shrunk = [x["instances"] for x in ShrunkBoxModel(model, lambda boxes, _: boxes)(batch)]
    for found in (*outputs, *given, *shrunk):
        assert found.pred_masks.shape == (len(found), 96, 80)
        assert found.pred_masks.dtype == torch.bool
        assert not found.has("anchor_rows")
    assert all(x.image_size == (64, 64) for x in raw)
    assert [x.gt_ids.tolist() for x in given] == [[7, 8], [7]]
    assert [x.pred_classes.tolist() for x in given] == [
        item["instances"].gt_classes.tolist() for item in batch
    ]


def test_an_image_without_a_detection():
    model = condinst_model("boxinst").eval()
    model.proposal_generator.test_selection = ProposalSelection(math.inf, 10, 0.6, 10)
    with torch.no_grad():
        found = model(partial_batch([[], []]))
    assert all(x["instances"].pred_masks.shape == (0, 64, 64) for x in found)


# ---- bad configs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("PSIS.CONDINST.SUPERVISION", "some"), "choose one of masks, boxes, mixed"),
        (("PSIS.CONDINST.STUDENT", True), "STUDENT learns from true masks"),
        (("MODEL.PROPOSAL_GENERATOR.NAME", "PartialRPN"), "needs FCOS"),
        (("MODEL.MASK_ON", False), "use GeneralizedRCNN for a detector alone"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(UserError, match=words):
        tiny_model(*options, config="quick/boxinst_shapes.yaml")


def test_middles_of_masks_by_hand():
    target = partial_batch([[True, False, True]])[0]["instances"]
    target.gt_boxes.tensor[:] = torch.tensor([[0.0, 0, 6, 4], [8, 8, 12, 20], [30, 30, 40, 40]])
    masks = torch.zeros_like(target.gt_masks.tensor)
    # An L of five pixels: its middles are at x 0.5 (three), 1.5, 2.5 and y 0.5, 1.5, 2.5 (three).
    masks[0, :3, 0] = masks[0, 2, 1:3] = True
    masks[1, 50:, 50:] = True  # must not be read
    target.gt_masks.tensor[:] = masks
    expected = [[(3 * 0.5 + 1.5 + 2.5) / 5, (0.5 + 1.5 + 3 * 2.5) / 5], [10, 14], [35, 35]]
    torch.testing.assert_close(mask_middles(target), torch.tensor(expected))  # the last is empty
    assert target.gt_boxes.tensor[0].tolist() == [0, 0, 6, 4]


@pytest.mark.parametrize("config", ["condinst", "boxinst_mixed", "boxinst"])
def test_locations_lie_around_masks_where_training_sees_them(config):
    """Masks at the right end of wide boxes, of which every second may not be seen."""

    def positives(center_of):
        model = condinst_model(config, "CENTER_OF", center_of)
        batch = partial_batch([[True, False]])
        target = batch[0]["instances"]
        target.gt_boxes.tensor[:] = torch.tensor([[0.0, 0, 64, 24], [0, 32, 64, 56]])
        target.gt_masks.tensor[:] = False
        target.gt_masks.tensor[0, :24, 48:] = target.gt_masks.tensor[1, 32:56, 48:] = True
        matched = []
        detector = model.proposal_generator
        original = detector.match_locations
        detector.match_locations = lambda anchors, targets: (
            matched.append((detector.locations(anchors).centers, original(anchors, targets))),
            matched[-1][1],
        )[1]
        training_losses(model, batch)
        centers, rows = matched[0]
        return [centers[rows[0] == k, 0].mean().item() for k in (0, 1)]

    assert positives("box") == pytest.approx([32, 32])
    # BoxInst reads no mask.
    assert positives("mask") == pytest.approx([32 if config == "boxinst" else 56, 32], abs=1)


def test_released_grids_are_those_of_the_whole_model():
    model = condinst_model("condinst", "RELEASED_GRIDS", True)
    batch = partial_batch([[True, True]])
    recorded = []
    losses = model.mask_head.losses
    model.mask_head.losses = lambda *args: (recorded.append(args[3]), losses(*args))[1]
    training_losses(model, batch)
    masks = batch[0]["instances"].gt_masks.tensor
    stride = model.mask_head.mask_stride
    picked = masks[:, stride // 2 :: stride, stride // 2 :: stride].float()
    assert torch.equal(recorded[0].truth, picked)
    model.eval()
    model.proposal_generator.test_selection = ProposalSelection(0.0, 20, 0.6, 5)
    found = model.inference(batch, do_postprocess=False)[0]
    assert found.pred_masks.released
