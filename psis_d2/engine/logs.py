"""Logs that cannot be written end a run with a sentence."""

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator

from psis_d2.errors import UserError, as_user_error


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
