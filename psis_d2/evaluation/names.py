"""Names of data sets as parts of file names and of metrics."""

import hashlib
import re

LONGEST = 60
"""Characters of a short name: with what is added, files and metrics stay below 100."""


def short_name(name: str) -> str:
    """A data set's name without slashes or other signs, of at most :data:`LONGEST` characters.

    A name of letters, digits, ``_``, ``.`` and ``-`` stays as it is. Of any other, such as one with
    the path of a json, the end is kept, and eight characters that depend on all of it are added,
    so that different names stay different wherever they are shortened.
    """
    if re.fullmatch(r"\w[\w.-]*", name, re.ASCII) and len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    plain = re.sub(r"[^A-Za-z0-9]+", "_", name.removesuffix(".json"))
    return f"{plain[-(LONGEST - 9) :].strip('_')}-{digest}".lstrip("-")
