"""Files that are there as a whole or not at all."""

import contextlib
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator
from typing import IO

_UNFINISHED = re.compile(r"\.(?P<host>[\w-]+)\.(?P<pid>\d+)\.[0-9a-f]{12}\.part$")
# Whether a process of another machine still runs cannot be asked; no file takes a day to write.
_FOREIGN_AGE = 24 * 3600


@contextlib.contextmanager
def written_at_once(path: str, binary: bool = False) -> Iterator[IO]:
    """Open a file that gets its name only when the block has ended well.

    The content goes to another name in the same folder, which is made if it is missing, and from
    there to the disk before the file is renamed: a power cut leaves the old file or the new one. An
    exception in the block leaves whatever had the name before. What a killed process left behind is
    removed by :func:`remove_unfinished`.

    Args:
        path: a local path.
        binary: open for bytes; otherwise for UTF-8 text, in which half of a surrogate pair, as a
            json may hold it, is spelled out.
    """
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    unfinished = f"{path}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:12]}.part"
    try:
        options = (
            {"mode": "wb"}
            if binary
            else {"mode": "w", "encoding": "utf-8", "errors": "backslashreplace"}
        )
        with open(unfinished, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        _sync_folder(folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(unfinished)
        raise


def remove_unfinished(folder: str) -> list[str]:
    """Remove what processes that are gone left of :func:`written_at_once`, here and below.

    Files of processes that still run stay, and for a day those of other machines that share the
    folder. Files that cannot be removed stay, too.

    Returns:
        The paths of the removed files.
    """
    removed = []
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            match = _UNFINISHED.search(name)
            if match is None or _may_be_written(path, match["host"], int(match["pid"])):
                continue
            with contextlib.suppress(OSError):
                os.remove(path)
                removed.append(path)
    return removed


def _host() -> str:
    return re.sub(r"[^\w-]", "-", socket.gethostname())[:20] or "host"


def _may_be_written(path: str, host: str, pid: int) -> bool:
    """Whether the process that began a file may still write it."""
    if host != _host():
        with contextlib.suppress(OSError):
            return time.time() - os.path.getmtime(path) < _FOREIGN_AGE
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs, but belongs to somebody else
        return True
    return True


def _sync_folder(folder: str) -> None:
    """Bring a folder's names to the disk, on systems that can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
