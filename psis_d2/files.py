"""Files that are there as a whole or not at all."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from typing import IO


@contextlib.contextmanager
def written_at_once(path: str, mode: str = "w") -> Iterator[IO]:
    """Open a file that gets its name only when the block has ended well.

    The content goes to another name in the same folder, which is made if it is missing. An
    exception in the block leaves whatever had the name before.

    Args:
        path: the file.
        mode: "w" for text, "wb" for bytes.
    """
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    unfinished = f"{path}.{uuid.uuid4().hex[:12]}.part"
    try:
        with open(unfinished, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(unfinished)
        raise
