"""The one exception that speaks to the person at the keyboard."""

import contextlib
import difflib
import errno
import re
import signal
import sys
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. ``str(error)`` is one sentence that names the thing and how to fix it.

    Entry points print it as ``error: <sentence>`` and exit with status 2 instead of showing a
    traceback; everything else that goes wrong is a fault of the code and keeps its traceback.
    """

    status = 2
    """Exit status of an entry point that it ends."""


class LostProcess(UserError):
    """Another process of the run is gone or does not answer."""

    status = 1


class UserExit(SystemExit):
    """A :class:`UserError` on its way out of a loop that logs exceptions as crashes, but not exits.

    Detectron2's training loop does so.
    """

    def __init__(self, error: UserError):
        super().__init__(str(error))
        self.error = error


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """A hint at the word that is spelled most alike: " (did you mean X?)", or "" if none is."""
    words = [candidate for candidate in words if candidate]
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if not near:  # the same letters in another case are unlike to difflib
        near = [candidate for candidate in words if candidate.lower() == word.lower()]
    return f" (did you mean {near[0]}?)" if near else ""


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """Turn down a value that is not among the choices of its config key.

    Raises:
        UserError: naming the key, the value and the choices.
    """
    choices = tuple(choices)
    if value not in choices:
        hint = did_you_mean(str(value), choices)
        raise UserError(f"{key} is '{value}'; choose one of {', '.join(choices)}{hint}.")


@contextlib.contextmanager
def exit_on_user_error():
    """Run an entry point's body; on a :class:`UserError` print its sentence and exit with 2.

    What :func:`as_user_error` knows ends the same way, and so does a ``SystemExit`` with a
    sentence. An interrupt from the keyboard ends with status 130.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGINT)
    except SystemExit as error:
        if not isinstance(error.code, str):
            raise
        _exit(getattr(error, "error", UserError(error.code)))
    except Exception as error:
        sentence = as_user_error(error)
        if sentence is None:
            raise
        _exit(sentence)


def _exit(error: UserError) -> None:
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(error.status)


_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (.+?)\.|)"
)
_LOST = ("gloo/transport", "gloo/rendezvous", "Connection closed by peer", "NCCL", "TCPStore")


def as_user_error(error: BaseException) -> UserError | None:
    """The sentence for an exception that a machine and not the code is to blame for.

    These are: a full disk, a file that may not be read or written, too many open files, a killed
    worker of the data loader, and a process of the run that is gone.

    Returns:
        `error` itself if it is a :class:`UserError`, None for all that deserves a traceback.
    """
    if isinstance(error, UserError):
        return error
    text = str(error)
    if isinstance(error, OSError):
        what = f"{error.filename}" if error.filename else "a file"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return UserError(
                f"The disk is full: {what} cannot be written ({error.strerror}); make room, or go "
                "on in another OUTPUT_DIR."
            )
        if error.errno in (errno.EACCES, errno.EROFS):
            return UserError(
                f"{what[0].upper()}{what[1:]} cannot be used ({error.strerror}); check the path "
                "and its permissions."
            )
    if "Too many open files" in text or "received 0 items of ancdata" in text:
        return UserError(
            "Too many files are open for this shell's limit, which the data loader's workers need; "
            "raise it (ulimit -n 4096) or lower DATALOADER.NUM_WORKERS."
        )
    if sentence := _killed_worker(error):
        return sentence
    if not isinstance(error, (RuntimeError, OSError)):
        return None
    if "shared memory" in text or "/torch_" in text:
        return UserError(
            "The data loader's workers have no room in shared memory; enlarge /dev/shm (docker run "
            "--shm-size 8g) or lower DATALOADER.NUM_WORKERS."
        )
    if type(error).__name__.startswith("Dist") or any(word in text for word in _LOST):
        reason = re.sub(r"^\[[^]]*\]\s*", "", text.splitlines()[0])[:120].rstrip(".")
        return LostProcess(
            f"Another process of this run is gone or does not answer ({reason}); see what it said, "
            "and go on with --resume."
        )
    return None


def _killed_worker(error: BaseException | None) -> UserError | None:
    """PyTorch raises from a signal's handler, so anywhere, and others may have wrapped it."""
    sentence = None
    while error is not None:
        worker = _WORKER.search(str(error)) if isinstance(error, RuntimeError) else None
        if worker:
            how = f"was killed by a signal ({worker[2]})" if worker[2] else "has ended unexpectedly"
            sentence = UserError(
                f"The data loader's worker process {worker[1]} {how}, most often for want of "
                "memory; lower DATALOADER.NUM_WORKERS or the batch, and go on with --resume."
            )
        error = error.__cause__ or error.__context__
    return sentence
