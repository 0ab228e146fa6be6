"""A loss that is not a number ends training with the names of its images and the batch itself."""

import re

import psis_d2  # noqa: F401
from psis_d2.engine import Trainer
from psis_d2.engine.non_finite import FiniteLosses, plain
from psis_d2.engine.setup import build_config

import numpy as np
import pytest
import torch
import train_net
from detectron2.engine import SimpleTrainer
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from benchmarks.stand_in import DEVICE, StandInDevice
from tiny_data import command_line, write_tiny_data

pytestmark = pytest.mark.usefixtures("catalogs")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_data(tmp_path_factory.mktemp("tiny"))


def diverge(data, folder, *opts, spoil) -> str:
    """The sentence of a run that `spoil` makes diverge."""
    line = command_line(data, folder, "DATASETS.TEST", "[]", "DATALOADER.NUM_WORKERS", 0, *opts)
    trainer = Trainer(build_config(train_net.parse_arguments(line)))
    trainer.resume_or_load(False)
    spoil(trainer.model)
    with pytest.raises(SystemExit) as end:
        trainer.train()
    return end.value.code


def spoil_losses(model):
    def forward(batch):
        losses = type(model).forward(model, batch)
        return losses | {"loss_mask": losses["loss_mask"] * float("nan")}

    model.forward = forward


def spoil_weights(model):
    for parameter in model.backbone.parameters():
        torch.nn.init.constant_(parameter, 1e30)


def test_the_images_are_named_and_the_batch_is_written(data, tmp_path):
    sentence = diverge(data, tmp_path, spoil=spoil_losses)
    assert "not finite in iteration 0 (loss_mask nan) on the images " in sentence
    names = re.findall(r"\d{3}\.png", sentence)
    assert len(names) == 2
    assert "look at these annotations, or lower SOLVER.BASE_LR" in sentence
    path = tmp_path / "non_finite_batch_0000000_rank0.pth"
    assert str(path) in sentence
    content = torch.load(path, weights_only=True)
    assert content["iteration"] == 0
    assert np.isnan(content["losses"]["loss_mask"])
    assert np.isfinite(content["losses"]["loss_rpn_cls"])
    assert [sample["file_name"][-7:] for sample in content["batch"]] == names
    for sample in content["batch"]:
        assert sample["image"].shape == (3, 64, 64)
        assert sample["instances"]["gt_boxes"].shape == (2, 4)
        assert set(sample["instances"]) >= {"gt_classes", "gt_masks", "gt_has_mask"}


def test_frozen_statistics_are_blamed_and_detectron2s_own_checks_are_sentences(data, tmp_path):
    sentence = diverge(data, tmp_path, "MODEL.RESNETS.NORM", "FrozenBN", spoil=spoil_weights)
    assert "frozen statistics without weights" in sentence
    assert "MODEL.RESNETS.NORM" in sentence
    assert "\n" not in sentence


def test_finite_losses_pass():
    trainer = object.__new__(type("Loop", (FiniteLosses, SimpleTrainer), {}))
    written = []
    SimpleTrainer.write_metrics, original = (
        staticmethod(lambda losses, *args: written.append(losses)),
        SimpleTrainer.write_metrics,
    )
    try:
        trainer._write_metrics({"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, 0.1)
        with pytest.raises(FloatingPointError) as error:
            trainer._write_metrics({"a": torch.tensor(1.0), "b": torch.tensor(torch.inf)}, 0.1)
    finally:
        SimpleTrainer.write_metrics = staticmethod(original)
    assert len(written) == 1
    assert error.value.losses == {"a": 1.0, "b": float("inf")}


def test_losses_are_waited_for_once(monkeypatch):
    trainer = object.__new__(type("Loop", (FiniteLosses, SimpleTrainer), {}))

    def written(losses, *_):
        assert {name: loss.item() for name, loss in losses.items()} == {"a": 1.0, "b": 2.0}

    monkeypatch.setattr(SimpleTrainer, "write_metrics", staticmethod(written))
    with StandInDevice() as device:
        losses = {"a": torch.ones((), device=DEVICE), "b": torch.full((), 2.0, device=DEVICE)}
        trainer._write_metrics(losses, 0.1)
        assert device.total == 1, device.places()


def test_a_sample_is_plain(tmp_path):
    boxes = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    polygons = PolygonMasks([[np.array([0.0, 0, 1, 0, 1, 1])]])
    instances = Instances((4, 5), gt_boxes=Boxes(boxes), gt_masks=polygons)
    sample = {"image_id": 3, "instances": instances, "masks": BitMasks(torch.ones(1, 4, 5))}
    torch.save(
        plain(sample | {"other": object(), "flag": None, "size": (4, 5)}), tmp_path / "a.pth"
    )
    read = torch.load(tmp_path / "a.pth", weights_only=True)
    assert read["image_id"] == 3
    assert read["size"] == [4, 5]
    assert read["flag"] is None
    assert torch.equal(read["instances"]["gt_boxes"], boxes)
    assert read["instances"]["gt_masks"][0][0].tolist() == [0, 0, 1, 0, 1, 1]
    assert read["masks"].shape == (1, 4, 5)
