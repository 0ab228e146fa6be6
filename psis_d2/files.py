"""Files that are there as a whole or not at all."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from typing import IO


@contextlib.contextmanager
def written_at_once(path: str, binary: bool = False) -> Iterator[IO]:
    """Open a text file, or a binary one, that gets its name only when the block has ended well.

    The content goes to another name in the same folder, which is made if it is missing. An
    exception in the block leaves whatever had the name before.
    """
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    unfinished = f"{path}.{uuid.uuid4().hex[:12]}.part"
    try:
        how = {"mode": "wb"} if binary else {"mode": "w", "encoding": "utf-8"}
        with open(unfinished, **how) as file:
            yield file
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(unfinished)
        raise
