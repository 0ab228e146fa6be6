"""Which exceptions are sentences, and what entry points do with them."""

import errno
import os

from psis_d2.errors import LostProcess, UserError, UserExit, as_user_error, exit_on_user_error

import pytest


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left", "a.json"), "disk is full: a.json cannot"),
        (OSError(errno.EFBIG, "File too large"), "disk is full: a file cannot"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), "Out cannot be used"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n 4096"),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n 4096"),
        (
            RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. Details ..."),
            "worker process 12 was killed by a signal (Killed), most often",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"),
            "worker process 12, 13 has ended unexpectedly",
        ),
        (
            RuntimeError("Unexpected bus error ... insufficient shared memory (shm)."),
            "enlarge /dev/shm",
        ),
    ],
)
def test_machines_are_to_blame(error, words):
    sentence = as_user_error(error)
    assert words in str(sentence)
    assert sentence.status == 2


def test_a_killed_worker_is_found_behind_other_errors():
    cause = RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")
    error = SystemError("a result with an exception set")
    error.__cause__ = cause
    assert "process 12 was killed by a signal (Killed)" in str(as_user_error(error))


def test_lost_processes_are_told_apart():
    error = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed")
    sentence = as_user_error(error)
    assert isinstance(sentence, LostProcess)
    assert "does not answer (Connection closed)" in str(sentence)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("DataLoader worker (pid 1) exited"),
        RuntimeError("shapes"),
        FileNotFoundError("x"),
    ],
)
def test_faults_keep_their_traceback(error):
    assert as_user_error(error) is None
    with pytest.raises(type(error)), exit_on_user_error():
        raise error


@pytest.mark.parametrize(
    ("error", "status", "printed"),
    [
        (UserError("So it is."), 2, "error: So it is.\n"),
        (LostProcess("It is gone."), 1, "error: It is gone.\n"),
        (UserExit(LostProcess("It is gone.")), 1, "error: It is gone.\n"),
        (SystemExit("So it is."), 2, "error: So it is.\n"),
        (SystemExit(5), 5, ""),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, "error: The disk is full"),
    ],
)
def test_entry_points_end_with_a_sentence_and_a_status(error, status, printed, capsys):
    with pytest.raises(SystemExit) as end, exit_on_user_error():
        raise error
    assert end.value.code == status
    assert capsys.readouterr().err.startswith(printed)
