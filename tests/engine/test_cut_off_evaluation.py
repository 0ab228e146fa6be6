"""Which evaluation is done, and what was the best until then, outlives a run."""

import psis_d2.modeling  # noqa: F401
from psis_d2.engine.best_checkpoint import BestCheckpoint
from psis_d2.engine.cut_off_evaluation import FILE, EvaluationsOnce

import pytest
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage


class Evaluation(HookBase):
    """Counts, and measures what it is told."""

    def __init__(self, value=0.0):
        self.value, self.at = value, []

    def after_step(self):
        self.at.append(self.trainer.iter)
        self.trainer.storage.put_scalar("segm_all/AP", self.value, smoothing_hint=False)


class Run:
    """A trainer's side of the hooks; evaluations come every five iterations."""

    max_iter = 100

    def __init__(self, folder, start, value=0.0):
        self.iter = self.start_iter = start
        self.evaluation, self.best = Evaluation(value), BestCheckpoint("auto")
        self.saved = []
        self.best._save = self.saved.append
        self.hooks = [self.evaluation, self.best]
        self.hooks.append(EvaluationsOnce(5, str(folder), list(self.hooks)))
        for hook in self.hooks:
            hook.trainer = self
        with EventStorage(start) as self.storage:
            self.hooks[-1].before_train()

    def reach(self, iteration, hooks=3):
        """The end of an iteration, of which so many hooks get to act."""
        self.iter = iteration
        with EventStorage(iteration) as self.storage:
            for hook in self.hooks[:hooks]:
                hook.after_step()


def test_what_is_done_is_not_made_again_and_the_best_is_known(tmp_path):
    Run(tmp_path, 0, value=7.0).reach(4)
    resumed = Run(tmp_path, 5, value=3.0)
    assert resumed.evaluation.at == []
    assert (resumed.best.chosen, resumed.best.best) == ("segm_all/AP", 7.0)
    resumed.reach(9)
    assert resumed.saved == []


@pytest.mark.parametrize("hooks", [0, 1, 2])
def test_what_was_cut_off_is_made_again_under_its_number(tmp_path, hooks):
    Run(tmp_path, 0, value=7.0).reach(4, hooks)
    resumed = Run(tmp_path, 5, value=7.0)
    assert resumed.evaluation.at == resumed.saved == [4]
    assert resumed.storage.iter == 5
    assert Run(tmp_path, 5).evaluation.at == []


@pytest.mark.parametrize("start", [3, 100])
def test_nothing_is_due_between_evaluations_and_at_the_end(tmp_path, start):
    assert Run(tmp_path, start).evaluation.at == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"iteration": 5}',
        '{"iteration": 5, "best": {}}',
        '{"iteration": 4, "best": {}}',
    ],
)
def test_a_damaged_file_counts_for_nothing(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    assert Run(tmp_path, 5).evaluation.at == [4]


def test_a_new_run_removes_what_an_earlier_one_left(tmp_path):
    Run(tmp_path, 0).reach(4)
    Run(tmp_path, 0)
    assert Run(tmp_path, 5).evaluation.at == [4]
