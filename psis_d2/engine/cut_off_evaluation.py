"""An evaluation during training that was cut off is made again when the run is resumed."""

import contextlib
import json
import logging
import os
from collections.abc import Sequence

from psis_d2.engine.best_checkpoint import BestCheckpoint
from psis_d2.files import written_at_once

from detectron2.engine import HookBase
from detectron2.utils import comm

logger = logging.getLogger(__name__)

FILE = "evaluated.json"


class EvaluationsOnce(HookBase):
    """Writes down which evaluation is done, and what was the best until then.

    The checkpoint that a run is resumed from is older than the evaluation of its iteration, so
    that it cannot say whether that one ended. Without this file the run would go on without it,
    and a worse evaluation would later count as the best. Register it after the hooks of
    evaluations.

    Args:
        period: of evaluations, in iterations.
        folder: of the file ``evaluated.json``; addresses of other storage get none.
        hooks: those that evaluate, and that look at the results.
    """

    def __init__(self, period: int, folder: str, hooks: Sequence[HookBase]):
        self.period = period
        self.path = "" if "://" in folder else os.path.join(folder, FILE)
        self.hooks = list(hooks)

    def before_train(self):
        """Evaluate what the last run did not get to."""
        start = self.trainer.start_iter
        if start <= 0:  # what an earlier run has left
            if self.path and comm.is_main_process():
                with contextlib.suppress(FileNotFoundError):
                    os.remove(self.path)
            return
        if not self._is_due(start):
            return
        done = self._read()
        # what the first process sees: others may be on machines without the file
        if comm.all_gather(done.get("iteration") == start)[0]:
            for hook in self._best():
                hook.load_state_dict(done["best"])
            return
        logger.warning("The evaluation after iteration %d did not end: it is made again.", start)
        self.trainer.iter = self.trainer.storage.iter = start - 1
        for hook in self.hooks:
            hook.after_step()
        self.after_step()
        self.trainer.storage.iter = start

    def after_step(self):
        done = self.trainer.iter + 1
        if self.path and self._is_due(done) and comm.is_main_process():
            best = [hook.state_dict() for hook in self._best()]
            with written_at_once(self.path) as file:
                json.dump({"iteration": done, "best": best[0] if best else {}}, file)

    def _is_due(self, done: int) -> bool:
        return done % self.period == 0 and done < self.trainer.max_iter

    def _best(self) -> list[BestCheckpoint]:
        return [hook for hook in self.hooks if isinstance(hook, BestCheckpoint)]

    def _read(self) -> dict:
        try:
            with open(self.path, encoding="utf-8") as file:
                content = json.load(file)
            state = content["best"]
            known = {"metric", "best"} <= state.keys() or not self._best()
            return content if known else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}  # none, cut off, or of something else
