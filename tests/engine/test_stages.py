"""Stage-wise training: a detector first, then the mask head alone."""

import psis_d2  # noqa: F401
from psis_d2.engine import Trainer
from psis_d2.engine.setup import build_config
from psis_d2.errors import UserError

import pytest
import torch
import train_net
from detectron2.engine import HookBase

from tiny_data import command_line, write_tiny_data

pytestmark = pytest.mark.usefixtures("catalogs")
MASK_HEAD = "roi_heads.mask_head."
DETECTOR_ALONE = ("MODEL.MASK_ON", False, "TEST.BOXES", "detected")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_data(tmp_path_factory.mktemp("tiny"))


def config(data, output, *opts):
    line = command_line(
        data, output, "DATASETS.TEST", "[]", "PSIS.MLP_BRANCH_DIM", 2, *opts, config="maskx_shapes"
    )
    return build_config(train_net.parse_arguments(line))


def train(cfg, *hooks) -> Trainer:
    trainer = Trainer(cfg)
    trainer.resume_or_load(False)
    trainer.register_hooks(hooks)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def detector(data, tmp_path_factory):
    """Path of a first stage's checkpoint: two iterations of Faster R-CNN."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    output = tmp_path_factory.mktemp("stage1")
    cfg = config(data, output, *DETECTOR_ALONE)
    trainer = train(cfg)
    assert "loss_mask" not in trainer.storage.latest()
    for name in cfg.DATASETS.TRAIN:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)
    return output / "model_final.pth"


class Watch(HookBase):
    """Keeps the initial state; does what every evaluation does: all back to training mode."""

    def before_train(self):
        self.start = {k: v.clone() for k, v in self.trainer.model.state_dict().items()}

    def after_step(self):
        self.trainer.model.train()


def test_second_stage_changes_the_mask_head_alone(data, detector, tmp_path):
    keys = ("PSIS.TRAIN_ONLY", "mask_head", "MODEL.WEIGHTS", detector, "SOLVER.MAX_ITER", 3)
    watch = Watch()
    trainer = train(config(data, tmp_path, *keys, "MODEL.ROI_MASK_HEAD.NORM", "BN"), watch)
    before = torch.load(detector, weights_only=True)["model"]
    after = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert any("running_mean" in name for name in before)  # batch statistics count, too
    for name, value in before.items():
        assert torch.equal(after.pop(name), value), name
    assert all(name.startswith(MASK_HEAD) for name in after)
    assert any("running_mean" in name for name in after)
    for name, value in after.items():
        assert not torch.equal(value, watch.start[name]), name

    trained = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in trainer.model.named_parameters() if n.startswith(MASK_HEAD)}
    held = [p for group in trainer._trainer.optimizer.param_groups for p in group["params"]]
    assert len(held) == len(trained)
    losses = {name for name in trainer.storage.latest() if "loss" in name}
    assert losses <= {"loss_mask", "total_loss"}


def test_the_mask_branch_is_the_mask_head_and_the_fpn(data, detector, tmp_path):
    """And the maps below the FPN may be kept: nothing changes by that."""
    keys = ("PSIS.TRAIN_ONLY", "mask_branch", "MODEL.WEIGHTS", detector, "SOLVER.MAX_ITER", 3)
    trained = {}
    for name, kept in (("plain", ""), ("filled", tmp_path / "maps"), ("found", tmp_path / "maps")):
        train(config(data, tmp_path / name, *keys, "PSIS.KEEP_FEATURES", kept))
        trained[name] = torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"]
    assert list((tmp_path / "maps").rglob("*.float32"))
    before, after = torch.load(detector, weights_only=True)["model"], trained["filled"]
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed == {name for name in before if name.startswith("backbone.fpn_")}
    for name, value in after.items():
        assert torch.equal(value, trained["found"][name]), name
        # The maps of one image at a time are those of a batch but for rounding.
        torch.testing.assert_close(value, trained["plain"][name], atol=1e-4, rtol=1e-3)


def test_a_frozen_rpn_proposes_only_where_proposals_are_read(data, detector, tmp_path):
    keys = ("PSIS.TRAIN_ONLY", "mask_head", "MODEL.WEIGHTS", detector)
    for boxes, read in (("gt", False), ("proposals", True)):
        options = (*keys, "PSIS.MASK_TRAIN_BOXES", boxes)
        trainer = Trainer(config(data, tmp_path / boxes, *options))
        trainer.resume_or_load(False)
        model, calls = trainer.model, []
        head = model.proposal_generator.rpn_head
        head.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        trainer.train()
        assert bool(calls) == read
        assert trainer.storage.latest()["total_loss"][0] > 0
        model.eval().inference([{"image": torch.zeros(3, 64, 64), "height": 64, "width": 64}])
        assert calls


def test_second_stage_resumes(data, detector, tmp_path):
    keys = ("PSIS.TRAIN_ONLY", "mask_head", "MODEL.WEIGHTS", detector)
    train(config(data, tmp_path, *keys))
    trainer = Trainer(config(data, tmp_path, *keys, "SOLVER.MAX_ITER", 3))
    trainer.resume_or_load(True)
    assert trainer.start_iter == 2
    trainer.train()


def refusal(data, tmp_path, *keys) -> str:
    with pytest.raises(UserError) as error:
        Trainer(config(data, tmp_path, "PSIS.TRAIN_ONLY", "mask_head", *keys)).resume_or_load(False)
    return str(error.value)


def test_a_detector_that_was_never_trained_is_refused(data, detector, tmp_path):
    assert "give a trained one as MODEL.WEIGHTS" in refusal(data, tmp_path)
    weights = torch.load(detector, weights_only=True)["model"]
    backbone = {name: w for name, w in weights.items() if name.startswith("backbone.bottom_up")}
    torch.save(backbone, tmp_path / "backbone.pth")
    sentence = refusal(data, tmp_path, "MODEL.WEIGHTS", tmp_path / "backbone.pth")
    assert "has no weights for backbone.fpn_" in sentence
    assert "give a trained detector" in sentence


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("PSIS.TRAIN_ONLY", "box_head"), "'box_head'; choose one of mask_head, mask_branch"),
        (DETECTOR_ALONE, "set MODEL.MASK_ON True"),
    ],
)
def test_bad_options(data, tmp_path, keys, words):
    assert words in refusal(data, tmp_path, *keys)
