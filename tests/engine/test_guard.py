"""A failure beside the training costs nothing of it."""

import os
import signal

import psis_d2  # noqa: F401
from psis_d2.engine import Trainer, resources
from psis_d2.engine.guard import SaveBeforeEvaluation
from psis_d2.engine.setup import build_config
from psis_d2.errors import UserError

import pytest
import torch
import train_net
from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer

from tiny_data import command_line, write_tiny_data

pytestmark = pytest.mark.usefixtures("catalogs")
QUICK = ("DATALOADER.NUM_WORKERS", 0, "SOLVER.MAX_ITER", 3, "SEED", 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def trainer(data, tmp_path):
    """Makes trainers of one folder; evaluations do what ``evaluate`` holds, and are counted."""

    def make(*opts, resume=False, evaluate=lambda: None, hooks=()) -> Trainer:
        line = command_line(data, tmp_path / "out", *QUICK, *opts, config="agnostic_shapes")

        class Watched(Trainer):
            evaluations = 0

            @classmethod
            def test(cls, cfg, model, evaluators=None):
                cls.evaluations += 1
                evaluate()
                return {}

        torch.manual_seed(0)
        made = Watched(build_config(train_net.parse_arguments(line)))
        made.resume_or_load(resume)
        made.register_hooks(hooks)
        return made

    return make


def failing():
    raise ZeroDivisionError("a fault of the evaluation")


def test_metrics_of_a_training_are_bounded(trainer, monkeypatch):
    monkeypatch.setattr(resources, "_HISTORY", 2)
    run = trainer()
    run.train()
    histories = run.storage.histories()
    assert {len(histories[name].values()) for name in ("total_loss", "lr")} == {2}


def test_a_checkpoint_is_written_before_an_evaluation(trainer, tmp_path):
    whole = trainer("TEST.EVAL_PERIOD", 2)
    kinds = [type(hook) for hook in whole._hooks]
    before = kinds.index(SaveBeforeEvaluation), kinds.index(PeriodicCheckpointer)
    assert max(before) < kinds.index(EvalHook)
    whole.train()
    assert whole.evaluations == 2
    expected = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["model"]
    for file in (tmp_path / "out").glob("*.pth"):
        file.unlink()

    with pytest.raises(ZeroDivisionError):
        trainer("TEST.EVAL_PERIOD", 2, evaluate=failing).train()
    assert [p.name for p in (tmp_path / "out").glob("*.pth")] == ["model_before_evaluation.pth"]
    resumed = trainer("TEST.EVAL_PERIOD", 2, resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    assert resumed.evaluations == 2  # the one that failed is made again
    model = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(model[name], value) for name, value in expected.items())


def test_the_last_evaluation_comes_after_the_last_checkpoint(trainer, tmp_path):
    with pytest.raises(ZeroDivisionError):
        trainer(evaluate=failing).train()
    assert [p.name for p in (tmp_path / "out").glob("*.pth")] == ["model_final.pth"]


class InLastIteration(HookBase):
    """Calls something before the last iteration."""

    def __init__(self, call):
        self.call = call

    def before_step(self):
        if self.trainer.iter == self.trainer.max_iter - 1:
            self.call()


def refuse():
    raise UserError("The image is of cheese.")


def test_an_evaluation_that_is_done_is_not_made_again(trainer, tmp_path):
    run = trainer("TEST.EVAL_PERIOD", 2, hooks=[InLastIteration(refuse)])
    with pytest.raises(SystemExit):
        run.train()
    assert run.evaluations == 1
    resumed = trainer("TEST.EVAL_PERIOD", 2, resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    assert resumed.evaluations == 1  # the last one


def test_a_run_that_failed_in_its_last_iteration_is_not_evaluated(trainer):
    """Detectron2 evaluates whenever the last iteration was begun."""
    run = trainer(hooks=[InLastIteration(refuse)])
    with pytest.raises(SystemExit) as end:
        run.train()
    assert end.value.code == "The image is of cheese."
    assert run.evaluations == 0


def test_a_signal_during_an_evaluation_does_not_wait(trainer, tmp_path):
    reached = []

    def stop():
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append("after the signal")

    run = trainer("TEST.EVAL_PERIOD", 2, evaluate=stop)
    with pytest.raises(SystemExit) as end:
        run.train()
    assert end.value.code == 143
    assert reached == []
    assert run.evaluations == 1
    assert trainer(resume=True).start_iter == 2


def test_a_signal_during_an_iteration_waits_for_its_end(trainer):
    stop = InLastIteration(lambda: os.kill(os.getpid(), signal.SIGTERM))
    run = trainer("SOLVER.MAX_ITER", 2, hooks=[stop])
    with pytest.raises(SystemExit) as end:
        run.train()
    assert end.value.code == 143
    assert run.evaluations == 0
    assert run.checkpointer.saved_iteration == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
