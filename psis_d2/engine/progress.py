"""A live line for people who watch a run."""

import sys

from detectron2.engine import HookBase
from tqdm import tqdm


class ProgressLine(HookBase):
    """One line that says how far training is, how long it will take, and where the losses are.

    On a terminal the line moves; elsewhere it is printed every `period` iterations.
    """

    def __init__(self, period: int = 25):
        self.period = period

    def before_train(self):
        start, end = self.trainer.start_iter, self.trainer.max_iter
        self.bar = tqdm(
            total=end,
            initial=start,
            desc="training",
            unit="it",
            # without a terminal every refresh is a line in somebody's log
            miniters=1 if sys.stderr.isatty() else self.period,
            mininterval=0.1 if sys.stderr.isatty() else 0,
        )

    def after_step(self):
        histories = self.trainer.storage.histories()
        names = [n for n in ("total_loss", "loss_mask", "loss_propagating") if n in histories]
        self.bar.set_postfix(
            {name: f"{histories[name].median(20):.2f}" for name in names}, refresh=False
        )
        self.bar.update(1)

    def after_train(self):
        self.bar.close()
