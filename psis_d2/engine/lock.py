"""One run at a time in a folder."""

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from typing import TextIO

from psis_d2.errors import UserError

_NAME = "run.lock"
_BEAT = 15.0  # seconds between two signs of life
_SILENCE = 6 * _BEAT  # a run on another machine that was silent for so long is gone
_mine: set[str] = set()  # folders that this process holds


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Hold a folder for this process; another run that wants it is refused.

    The lock is the kernel's, on the file ``run.lock``, and goes with the process, however that
    ends. The file says who holds it, and is touched every 15 seconds: on file systems that share
    files but not locks, a file that a machine has not touched for 90 seconds counts for nothing.

    Args:
        folder: made if it is missing; "" and addresses of other storage are not locked.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    path = os.path.join(os.path.realpath(folder), _NAME)
    if not folder or "://" in folder or path in _mine:
        yield
        return
    try:
        os.makedirs(folder, exist_ok=True)
        lock = _open_lock(folder, path)
    except OSError as error:
        raise UserError(
            f"OUTPUT_DIR {folder} cannot be written ({error.strerror or error}); give another one."
        ) from error
    with lock:
        _mine.add(path)
        ended = threading.Event()
        threading.Thread(target=_beat, args=(path, ended), daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            _mine.discard(path)
            with contextlib.suppress(OSError):
                os.remove(path)


def _open_lock(folder: str, path: str) -> TextIO:
    """The lock's file, held as long as it is open."""
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (its owner closes it)
    try:
        holder, silent = _read(file), _seconds_since(folder, file)
        try:
            # Not flock: workers of a killed process would inherit that lock and hold it on.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refusal(folder, holder) from None
        except OSError:  # a file system without locks
            if _may_run(holder, silent):
                raise _refusal(folder, holder) from None
        if not os.path.exists(path) or not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            # its holder removed it a moment ago
            file.close()
            return _open_lock(folder, path)
        host = socket.gethostname()
        if holder.get("host") not in (None, host) and silent < _SILENCE:
            raise _refusal(folder, holder)
        file.truncate(0)
        json.dump({"host": host, "pid": os.getpid()}, file)
        file.flush()
        return file
    except BaseException:
        file.close()
        raise


def _read(file) -> dict:
    file.seek(0)
    try:
        holder = json.load(file)
    except ValueError:  # nobody, or cut off
        return {}
    return holder if isinstance(holder, dict) else {}


def _seconds_since(folder: str, file) -> float:
    """Age of a file by the clock of the machine that keeps it."""
    with tempfile.TemporaryFile(dir=folder) as now:
        return os.fstat(now.fileno()).st_mtime - os.fstat(file.fileno()).st_mtime


def _may_run(holder: dict, silent: float) -> bool:
    if holder.get("host") != socket.gethostname():
        return bool(holder) and silent < _SILENCE
    try:
        os.kill(int(holder["pid"]), 0)
    except (ProcessLookupError, KeyError, TypeError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _beat(path: str, ended: threading.Event) -> None:
    while not ended.wait(_BEAT):
        with contextlib.suppress(OSError):
            os.utime(path)


def _refusal(folder: str, holder: dict) -> UserError:
    who = f"process {holder.get('pid', '?')} on {holder.get('host', 'another machine')}"
    return UserError(
        f"OUTPUT_DIR {folder} is in use by {who}; wait for that run to end (a machine that crashed "
        f"counts for {_SILENCE:.0f} seconds), or give another OUTPUT_DIR."
    )
