"""Logs that cannot be written end a run; messages that are older than the log get into it."""

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator

from psis_d2.errors import UserError, as_user_error

# Messages that wait for the log, and the handlers that have had them.
_waiting: list[logging.LogRecord] = []
_had: list[logging.Handler] = []


class _Keeper(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _waiting.append(record)
        if record.levelno >= logging.WARNING and not (_had or logging.root.handlers):
            print(record.getMessage(), file=sys.stderr)  # as Python does where nobody takes it


@contextlib.contextmanager
def keeping_messages() -> Iterator[None]:
    """Keep what psis_d2 logs within the block for :func:`write_kept`; print its warnings at once.

    Data is read before there is a log, and then shared: what reading says is said once.
    """
    log = logging.getLogger("psis_d2")
    keeper, level = _Keeper(), log.level
    _waiting.clear()
    _had[:] = log.handlers
    log.addHandler(keeper)
    if not log.isEnabledFor(logging.INFO):
        log.setLevel(logging.INFO)
    try:
        yield
    except BaseException:
        _waiting.clear()
        raise
    finally:
        log.setLevel(level)
        log.removeHandler(keeper)


def write_kept() -> None:
    """Give the messages that were kept to the handlers that have come since."""
    for record in _waiting:
        for handler in logging.getLogger("psis_d2").handlers:
            if handler not in _had and record.levelno >= handler.level:
                handler.handle(record)
    _waiting.clear()


@contextlib.contextmanager
def failing_with_the_disk() -> Iterator[None]:
    """Within the block a full disk raises where a log's line is written.

    Python prints a traceback for every line instead. A thread that writes, as TensorBoard's, ends
    silently, and the next call to it raises its error.

    Raises:
        UserError: from any function that logs.
    """
    ours = "handleError" in vars(logging.StreamHandler)
    if ours:  # an evaluation or training within a run
        yield
        return
    thread_hook = threading.excepthook
    logging.StreamHandler.handleError = _fail
    threading.excepthook = lambda args: None if _is_of_disk(args.exc_value) else thread_hook(args)
    try:
        yield
    finally:
        del logging.StreamHandler.handleError
        threading.excepthook = thread_hook


def _is_of_disk(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and as_user_error(error) is not None


def _fail(handler: logging.StreamHandler, record: logging.LogRecord) -> None:
    error = sys.exc_info()[1]
    if _is_of_disk(error):
        if handler.stream not in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                handler.stream.close()  # now, or Python tries again at its end
        name = getattr(handler.stream, "name", "the log")
        raise UserError(
            f"The disk is full: {name} cannot be written ({error.strerror}); make room and go on "
            "with --resume."
        )
    if not getattr(handler.stream, "closed", False):
        logging.Handler.handleError(handler, record)
