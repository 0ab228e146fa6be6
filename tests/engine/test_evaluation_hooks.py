"""The best checkpoint, pictures of predictions, and Weights & Biases."""

import sys
import types

import psis_d2.modeling  # noqa: F401
from psis_d2.engine.best_checkpoint import BestCheckpoint
from psis_d2.engine.checkpoint import Checkpointer
from psis_d2.engine.pictures import ValidationPictures
from psis_d2.engine.wandb_writer import WandbWriter
from psis_d2.errors import UserError

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

NAN = float("nan")


class Run:
    """A trainer's side of hooks: evaluations whose results are given."""

    def __init__(self, folder, hook):
        self.model = torch.nn.Linear(1, 1)
        self.checkpointer = Checkpointer(self.model, str(folder))
        self.hook, self.iter, self.max_iter = hook, 0, 100
        hook.trainer = self

    def evaluate(self, *results: dict):
        with EventStorage() as self.storage:
            for result in results:
                torch.nn.init.constant_(self.model.weight, self.iter)
                self.storage.iter = self.iter
                if result:
                    self.storage.put_scalars(**result, smoothing_hint=False)
                self.hook.after_step()
                self.iter += 1

    def best(self) -> tuple[float, int]:
        """Weight and iteration of the file."""
        stored = torch.load(f"{self.checkpointer.save_dir}/model_best.pth", weights_only=True)
        return stored["model"]["weight"].item(), stored["iteration"]


def unseen(*values) -> list[dict]:
    return [{"segm_unseen/AP": value, "segm_all/AP": 50.0} for value in values]


def test_the_best_evaluation_is_kept(tmp_path):
    run = Run(tmp_path, BestCheckpoint("auto"))
    run.evaluate(*unseen(3.0, 7.0), {}, *unseen(5.0, NAN, 7.0))
    assert run.best() == (1.0, 1)
    assert run.hook.best == 7.0


def test_the_checkpoint_to_resume_from_stays(tmp_path):
    run = Run(tmp_path, BestCheckpoint("auto"))
    run.checkpointer.save("model_0000099")
    run.evaluate(*unseen(3.0))
    assert run.checkpointer.get_checkpoint_file().endswith("model_0000099.pth")


def test_a_resumed_run_knows_the_best(tmp_path):
    run = Run(tmp_path, BestCheckpoint("auto"))
    run.evaluate(*unseen(7.0))
    resumed = Run(tmp_path, BestCheckpoint("auto"))
    resumed.hook.load_state_dict(run.hook.state_dict())
    resumed.iter = 5
    resumed.evaluate(*unseen(6.0))
    assert resumed.best() == (0.0, 0)
    other = BestCheckpoint("segm_all/AP")
    other.load_state_dict(run.hook.state_dict())
    assert other.best is None


@pytest.mark.parametrize(
    "measured, chosen",
    [
        ({"segm_all/AP": 1.0, "segm_unseen/AP": 2.0}, "segm_unseen/AP"),
        ({"segm_all/AP": 1.0, "segm_unseen/AP": NAN}, "segm_all/AP"),  # every category has masks
        ({"gtbox_all/AP": 1.0, "gtbox_unseen/AP": 2.0}, "gtbox_unseen/AP"),
        ({"voc/segm_unseen/AP": 1.0, "coco/segm_all/AP": 2.0}, "voc/segm_unseen/AP"),
        ({"total_loss": 1.0}, None),
    ],
)
def test_what_auto_is(measured, chosen, tmp_path):
    hook = BestCheckpoint("auto")
    Run(tmp_path, hook).evaluate(measured)
    assert hook.best == (None if chosen is None else measured[chosen])


def test_a_metric_that_is_not_measured(tmp_path):
    run = Run(tmp_path, BestCheckpoint("segm_unsen/AP"))
    run.evaluate({})
    with pytest.raises(
        UserError, match="'segm_unsen/AP', which .*; choose one of segm_all/AP, seg"
    ):
        run.evaluate(*unseen(1.0))


class OneBox(torch.nn.Module):
    """Finds the upper left quarter of any image, and once more without being sure."""

    def forward(self, batch):
        (item,) = batch
        h, w = item["height"], item["width"]
        masks = torch.zeros(2, h, w, dtype=torch.bool)
        masks[:, : h // 2, : w // 2] = True
        masks[1] = ~masks[1]
        found = Instances((h, w), scores=torch.tensor([0.9, 0.4]), pred_masks=masks)
        found.pred_boxes = Boxes(torch.tensor([[0.0, 0, w / 2, h / 2]] * 2))
        found.pred_classes = torch.tensor([0, 0])
        assert not self.training
        return [{"instances": found}]


def pictures(count: int = 2) -> ValidationPictures:
    blue = torch.zeros(3, 80, 120, dtype=torch.uint8)
    blue[0] = 200  # BGR
    items = [{"image": blue, "height": 400, "width": 600, "image_id": i} for i in range(3)]
    metadata = Metadata(name="pictures", thing_classes=["box"], thing_colors=[(250, 0, 0)])
    return ValidationPictures(
        period=2,
        model=OneBox().train(),
        loader=lambda: ([item] for item in items),
        metadata=metadata,
        image_format="BGR",
        count=count,
    )


def test_pictures_show_sure_predictions_on_the_image():
    hook = pictures()
    (batch, *_) = list(hook.loader())
    hook.model.eval()
    np.random.seed(0)  # of the color, as the hook does it: some are as blue as the image
    picture = hook.picture(batch)
    assert picture.shape == (3, 80, 120) and picture.dtype == np.uint8
    inside, outside = picture[:, 30, 45].astype(int), picture[:, 60, 100].astype(int)
    assert np.abs(outside - [0, 0, 200]).max() <= 2
    assert np.abs(inside - outside).max() > 20


def test_pictures_come_with_evaluations(tmp_path):
    run = Run(tmp_path, pictures())
    run.evaluate({}, {}, {}, {}, {})
    names = [(name, iteration) for name, _, iteration in run.storage._vis_data]
    assert names == [(f"validation/{k}", i) for i in (1, 3) for k in (0, 1)]
    assert run.hook.model.training


def test_pictures_leave_the_random_numbers_of_training_alone(tmp_path):
    run = Run(tmp_path, pictures())
    np.random.seed(7)
    wanted = np.random.rand()
    np.random.seed(7)
    run.evaluate({}, {}, {}, {})
    assert np.random.rand() == wanted
    drawn = [picture for _, picture, _ in run.storage._vis_data]
    assert np.array_equal(drawn[0], drawn[2])  # colors stay from one evaluation to the next


class FakeRun:
    def __init__(self):
        self.logged, self.finished = [], False

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    module = types.ModuleType("wandb")
    module.run = FakeRun()
    module.Image = lambda array: ("image", array.shape)

    def init(**options):
        module.options = options
        return module.run

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_scalars_and_pictures_once(wandb, tmp_path):
    writer = WandbWriter(project="psis", name="a", folder=str(tmp_path), config={"k": 1})
    assert wandb.options["project"] == "psis" and wandb.options["config"] == {"k": 1}
    with EventStorage() as storage:
        storage.put_scalar("loss", 2.0, smoothing_hint=False)
        storage.put_image("validation/0", np.zeros((3, 4, 5), dtype=np.uint8))
        writer.write()
        storage.clear_images()
        writer.write()
        storage.iter = 1
        storage.put_scalar("loss", 1.0, smoothing_hint=False)
        writer.write()
    writer.close()
    assert wandb.run.logged == [
        (0, {"loss": 2.0, "validation/0": ("image", (4, 5, 3))}),
        (1, {"loss": 1.0}),
    ]
    assert wandb.run.finished


def test_one_sentence_where_wandb_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="'psis', but the package wandb is not installed; run `pip"):
        WandbWriter(project="psis", name="", folder=str(tmp_path))
