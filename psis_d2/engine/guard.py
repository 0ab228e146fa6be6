"""Training that ends well: with a sentence, a checkpoint and a status, whatever happens."""

import contextlib
import logging
from collections.abc import Iterator

from psis_d2.engine import signals
from psis_d2.engine.cut_off_evaluation import EvaluationsOnce
from psis_d2.engine.logs import failing_with_the_disk
from psis_d2.engine.non_finite import explain, is_non_finite
from psis_d2.engine.resources import (
    allow_open_files,
    check_disk,
    checkpoint_bytes,
    forget_old_metrics,
)
from psis_d2.engine.signals import Interruption, SignalGate
from psis_d2.errors import LostProcess, UserExit, as_user_error

from detectron2.engine import HookBase
from detectron2.engine.hooks import BestCheckpointer, EvalHook
from detectron2.utils import comm

logger = logging.getLogger(__name__)

# So long other processes go on after a signal, for the main one to write its checkpoint.
_FOLLOW_SECONDS = 20.0


class SaveBeforeEvaluation(HookBase):
    """Writes ``model_before_evaluation.pth``, so that a failure there costs no training.

    It is left out where the iteration has a checkpoint already.

    Args:
        period: as of the evaluation, in iterations; 0 = only at the end, when the model is saved.
    """

    def __init__(self, period: int):
        self.period = period

    def after_step(self):
        trainer, done = self.trainer, self.trainer.iter + 1
        if self.period <= 0 or done % self.period or done == trainer.max_iter:
            return
        if trainer.checkpointer.saved_iteration != trainer.iter:
            trainer.checkpointer.save("model_before_evaluation", iteration=trainer.iter)


class GuardedTraining:
    """A part of a ``DefaultTrainer``, before it in the list of base classes.

    * Bad input, a full disk, a killed worker or process, and losses that are not finite leave
      Detectron2's loop as an exit with a sentence, which it does not log as a crash.
    * SIGTERM and SIGINT end training after the iteration, with a checkpoint, or at once during
      evaluation, before which there was one; the status is 143 or 130.
    * A run that has failed is not evaluated.
    """

    _failed = False

    def before_train(self):
        self._gate = SignalGate(on_signal=signals.tell_parent)
        self._block = contextlib.ExitStack()  # from here to the end of after_train
        self._block.enter_context(self._gate)
        self._block.enter_context(failing_with_the_disk())
        with self._ending_well():
            forget_old_metrics(self.storage)
            allow_open_files(self.cfg.DATALOADER.NUM_WORKERS)
            if comm.is_main_process():
                self._check_disk()
            super().before_train()

    def before_step(self):
        with self._ending_well(), self._gate.deferring():
            super().before_step()

    def run_step(self):
        with self._ending_well(), self._gate.deferring():
            try:
                super().run_step()
            except Exception as error:
                if not is_non_finite(error):
                    raise
                batch = getattr(self._loader, "batch", [])
                raise explain(error, batch, self.cfg, self.model, self.iter) from error

    def after_step(self):
        with self._ending_well(), self._gate.deferring():
            evaluates = True
            for hook in self._hooks:
                if isinstance(hook, EvalHook):
                    evaluates = not self._gate.received
                    if evaluates:
                        with self._gate.deferring(False):
                            hook.after_step()
                elif evaluates or not isinstance(hook, EvaluationsOnce):
                    hook.after_step()
            main = comm.is_main_process()
            if self._gate.received and (main or self._gate.seconds() > _FOLLOW_SECONDS):
                self._stop()

    def after_train(self):
        # where nothing was left to train, the loop counts one too many
        self.iter = min(self.iter, self.max_iter)
        try:
            if not self._failed:
                with self._ending_well():
                    super().after_train()
                return
            self.storage.iter = self.iter
            for hook in self._hooks:
                if not isinstance(hook, (EvalHook, BestCheckpointer)):
                    # What failed once fails again: writers have one more line to write.
                    with contextlib.suppress(Exception):
                        hook.after_train()
        finally:
            self._block.close()

    @contextlib.contextmanager
    def _ending_well(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._failed = True
            sentence = as_user_error(error)
            if sentence is None:
                raise
            if isinstance(sentence, LostProcess) and self._gate.received:
                raise Interruption(self._gate.received) from None  # it was asked to end, too
            raise UserExit(sentence) from None
        except BaseException:
            self._failed = True
            raise

    def _stop(self) -> None:
        if self.checkpointer.saved_iteration != self.iter:
            self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
        logger.warning("Stopped by a signal after iteration %d; --resume goes on.", self.iter)
        raise Interruption(self._gate.received)

    def _check_disk(self) -> None:
        cfg = self.cfg
        period = cfg.SOLVER.CHECKPOINT_PERIOD
        count = 1 + self.max_iter // period - self.start_iter // period
        count += bool(cfg.TEST.EVAL_PERIOD)
        size = checkpoint_bytes(self.checkpointer.model, self._trainer.optimizer)
        check_disk(cfg.OUTPUT_DIR, size, count)
