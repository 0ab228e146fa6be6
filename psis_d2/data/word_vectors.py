"""Class embeddings from a text file of word vectors, such as GloVe's."""

import re

from psis_d2.errors import UserError

import numpy as np
import torch
from torch import Tensor

_MAX_SHOWN = 8


def read_class_vectors(path: str, class_names: list[str]) -> Tensor:
    """One vector for every class.

    A line of the file is a word and its numbers, with blanks between them. A class name of several
    words is looked up with underscores for blanks, and as the mean of its words' vectors if it is
    not there; the name as it stands goes before its lower case.

    Args:
        path: the text file, UTF-8; lines of words that no class needs are not parsed.
        class_names: by contiguous id.

    Returns:
        float32 [K, D].

    Raises:
        UserError: the file cannot be read, a line does not fit, or a class has no vector.
    """
    wanted = {spelling for name in class_names for group in _spellings(name) for spelling in group}
    vectors: dict[str, np.ndarray] = {}
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                word, _, rest = line.rstrip("\n").partition(" ")
                if word in wanted and word not in vectors:
                    vectors[word] = _parse(rest, f"Line {number} of the embedding file {path}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"Cannot read the embedding file {path} as UTF-8 text ({error}); give a text file with "
            "a line `name number number ...` for every class."
        ) from error
    lengths = {len(vector) for vector in vectors.values()}
    if len(lengths) > 1:
        raise UserError(
            f"The embedding file {path} has vectors of {min(lengths)} and of {max(lengths)} "
            "numbers; make all lines equally long."
        )
    found = [_vector_of(name, vectors) for name in class_names]
    missing = [n for n, vector in zip(class_names, found, strict=True) if vector is None]
    if missing:
        more = f" and {len(missing) - _MAX_SHOWN} more" * (len(missing) > _MAX_SHOWN)
        raise UserError(
            f"The embedding file {path} has no vector for {', '.join(missing[:_MAX_SHOWN])}{more}; "
            "add a line `name number number ...` for each, with underscores for blanks in the name."
        )
    return torch.from_numpy(np.stack(found))


def _spellings(name: str) -> list[list[str]]:
    """Ways to look a name up, the best first; each is a list of words to average."""
    joined = "_".join(name.split())
    words = re.findall(r"\w+", name.replace("_", " "))
    ways = [[joined], [joined.lower()], words, [word.lower() for word in words]]
    return [way for way in ways if way]


def _vector_of(name: str, vectors: dict[str, np.ndarray]) -> np.ndarray | None:
    for words in _spellings(name):
        if all(word in vectors for word in words):
            return np.mean([vectors[word] for word in words], axis=0, dtype=np.float32)
    return None


def _parse(numbers: str, where: str) -> np.ndarray:
    try:
        vector = np.array(numbers.split(), dtype=np.float32)
    except ValueError as error:
        raise UserError(f"{where} is not a word and numbers ({error}); correct it.") from error
    if len(vector) == 0 or not np.isfinite(vector).all():
        raise UserError(f"{where} is not a word and finite numbers; correct it.")
    return vector
