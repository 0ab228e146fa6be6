"""Comparing and matching lists of category names, wherever two of them meet."""

from collections.abc import Sequence
from itertools import zip_longest


def differing_names(ours: Sequence[str], theirs: Sequence[str], limit: int = 5) -> str:
    """Where two lists of category names differ, for a message.

    Returns:
        The first ``limit`` differences by place, such as ``'cat' / 'lion', 'bird'`` (a name alone
        has no counterpart); "" if the lists are equal.
    """
    pairs = [(a, b) for a, b in zip_longest(ours, theirs) if a != b]
    shown = [" / ".join(f"'{name}'" for name in pair if name is not None) for pair in pairs[:limit]]
    if len(pairs) > limit:
        shown.append(f"and {len(pairs) - limit} more")
    return ", ".join(shown)


def match_names(names: Sequence[str], class_names: Sequence[str]) -> list[int | None]:
    """The place of each name among the classes, None for a name that is none of them."""
    places = {name: place for place, name in enumerate(class_names)}
    return [places.get(name) for name in names]
