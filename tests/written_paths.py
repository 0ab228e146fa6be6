"""Which files and folders a piece of code writes, wherever they are."""

import contextlib
import os
import sys
from collections.abc import Iterator

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Events, and how many of their arguments are paths.
_CHANGES = {"os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.rename": 2, "os.link": 2}
_CHANGES |= {"os.symlink": 2, "os.chmod": 1, "shutil.rmtree": 1}
_listening: list[list[str]] = []


def _hear(event: str, arguments: tuple) -> None:
    if not _listening:
        return
    paths = ()
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
        paths = arguments[:1]
    elif event in _CHANGES:
        # What comes with the number of an open folder is below one that has had its own event.
        below = isinstance(arguments[-1], int) and arguments[-1] >= 0
        paths = () if below else arguments[: _CHANGES[event]]
    for path in paths:
        if isinstance(path, (str, bytes, os.PathLike)):  # not one that is open already
            _listening[-1].append(os.path.realpath(os.fsdecode(path)))


sys.addaudithook(_hear)  # which cannot be taken away again


@contextlib.contextmanager
def written_paths() -> Iterator[list[str]]:
    """The absolute paths of all that Python code writes, makes, renames or removes in the block."""
    found: list[str] = []
    _listening.append(found)
    try:
        yield found
    finally:
        _listening.remove(found)
