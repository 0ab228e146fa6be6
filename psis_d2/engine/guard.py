"""Training that ends well: with a sentence, a checkpoint and a status, whatever happens."""

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator

from psis_d2.engine import signals
from psis_d2.engine.non_finite import explain, is_non_finite
from psis_d2.engine.resources import allow_open_files, check_disk, checkpoint_bytes
from psis_d2.engine.signals import Interruption, SignalGate
from psis_d2.errors import LostProcess, UserError, UserExit, as_user_error

from detectron2.engine import HookBase
from detectron2.engine.hooks import BestCheckpointer, EvalHook
from detectron2.utils import comm

logger = logging.getLogger(__name__)

_LOGGERS = ("detectron2", "fvcore", "psis_d2")
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
        self._gate.__enter__()
        self._thread_hook = threading.excepthook
        threading.excepthook = _quiet_about_disks(threading.excepthook)
        _let_logs_fail()
        with self._ending_well():
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
            for hook in self._hooks:
                if not isinstance(hook, EvalHook):
                    hook.after_step()
                elif not self._gate.received:
                    with self._gate.deferring(False):
                        hook.after_step()
            main = comm.is_main_process()
            if self._gate.received and (main or self._gate.seconds() > _FOLLOW_SECONDS):
                self._stop()

    def after_train(self):
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
            threading.excepthook = self._thread_hook
            self._gate.__exit__()

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


def _quiet_about_disks(otherwise):
    """An ``excepthook``: what TensorBoard's thread cannot write, its next call raises."""

    def hook(args):
        if not isinstance(args.exc_value, OSError) or as_user_error(args.exc_value) is None:
            otherwise(args)

    return hook


def _let_logs_fail() -> None:
    """Raise what goes wrong in writing a log, instead of printing a traceback for every line."""
    for name in _LOGGERS:
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.handleError = _log_failure(handler)


def _log_failure(handler: logging.StreamHandler):
    def fail(record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        sentence = as_user_error(error) if isinstance(error, OSError) else None
        if sentence is not None:
            if handler.stream not in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):
                    handler.stream.close()  # now, or Python tries again at its end
            name = getattr(handler.stream, "name", "the log")
            raise UserError(
                f"The disk is full: {name} cannot be written ({error.strerror}); make room and go "
                "on with --resume."
            )
        if not getattr(handler.stream, "closed", False):
            logging.Handler.handleError(handler, record)

    return fail
