"""Keep the checkpoint of the best evaluation."""

import logging
import math

from psis_d2.errors import UserError

from detectron2.engine import HookBase
from detectron2.utils import comm

logger = logging.getLogger(__name__)

# "auto" is the first that a run measures.
AUTO_METRICS = ("segm_unseen/AP", "gtbox_unseen/AP", "segm_all/AP", "gtbox_all/AP", "bbox_all/AP")
FILE = "model_best"


class BestCheckpoint(HookBase):
    """Writes ``model_best.pth`` whenever an evaluation is better than all before.

    Unlike Detectron2's, it remembers the best value in the checkpoints, so that a resumed run does
    not replace a good file by a worse one, and leaves the checkpoint to resume from what it is.
    Register it after the evaluation.

    Args:
        metric: ``<task>/<metric>`` (with several data sets ``<data set>/<task>/<metric>``), the
            higher the better, or ``auto`` for the first of ``AUTO_METRICS``.
    """

    def __init__(self, metric: str):
        self.metric = metric
        self.chosen = "" if metric == "auto" else metric
        self.best: float | None = None
        self._measured_at = -1

    def after_step(self):
        self._look()

    def after_train(self):
        self._look()

    def state_dict(self) -> dict:
        """What a resumed run has to know."""
        return {"metric": self.chosen, "best": self.best}

    def load_state_dict(self, state: dict) -> None:
        """The counterpart; a best value of another metric is forgotten."""
        if self.metric in ("auto", state["metric"]):
            self.chosen, self.best = state["metric"], state["best"]

    def _look(self) -> None:
        if not comm.is_main_process():
            return
        latest = self.trainer.storage.latest()
        self.chosen = self.chosen or _first_measured(latest)
        self._check_is_measured(latest)
        if self.chosen not in latest:
            return
        value, iteration = latest[self.chosen]
        if iteration == self._measured_at:
            return
        self._measured_at = iteration
        if math.isnan(value) or (self.best is not None and value <= self.best):
            return  # not a number: there was nothing to measure
        before, self.best = self.best, value
        self._save(iteration)
        logger.info(
            "%s %.2f at iteration %d is the best so far%s: %s.pth",
            *(self.chosen, value, iteration + 1),
            "" if before is None else f" (before: {before:.2f})",
            FILE,
        )

    def _check_is_measured(self, latest: dict) -> None:
        measured = [name for name in latest if name.endswith(("/AP", "/IoU"))]
        if measured and self.chosen and self.chosen not in latest:
            raise UserError(
                f"TEST.BEST_METRIC is '{self.metric}', which the evaluation does not measure; "
                f"choose one of {', '.join(sorted(measured))}."
            )

    def _save(self, iteration: int) -> None:
        checkpointer = self.trainer.checkpointer
        resumed = checkpointer.get_checkpoint_file() if checkpointer.has_checkpoint() else ""
        checkpointer.save(FILE, iteration=iteration)
        if resumed:
            checkpointer.tag_last_checkpoint(resumed.rsplit("/", 1)[-1])


def _first_measured(latest: dict) -> str:
    for wanted in AUTO_METRICS:
        for name, (value, _) in latest.items():
            if f"/{name}".endswith(f"/{wanted}") and not math.isnan(value):
                return name
    return ""
