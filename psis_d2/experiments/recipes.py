"""How the configs of the papers train: ``recipes.yaml``, with the source of each choice."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).with_name("recipes.yaml")
BATCH = "images a batch"
RATE = "rate"
ITERATIONS = ("iterations", "rate drops at", "warm-up iterations")
"""Choices that go with the batch: the rate in proportion, these in inverse proportion."""

_SOURCES = ("paper", "released")
_RECIPE_KEYS = {"id", "about", "sources", "configs", "choices"}
_CHOICE_KEYS = {"here", "why", *_SOURCES}


@dataclass(frozen=True)
class Choice:
    """A number, or a word, that a config resolves to.

    Attributes:
        what: its name.
        here: what it is here.
        published: what it is in ``paper`` and in the ``released`` code, of those that say.
        follows: those that `here` is the same as.
        why: the reason, where `follows` has none.
    """

    what: str
    here: Any
    published: Mapping[str, Any]
    follows: tuple[str, ...]
    why: str = ""


@dataclass(frozen=True)
class Recipe:
    """What some configs have in common.

    Attributes:
        id: its name.
        about: one line.
        sources: the ``paper``, with its section, and the ``released`` code; either may be missing.
        configs: their names.
        choices: in order.
    """

    id: str
    about: str
    sources: Mapping[str, str]
    configs: tuple[str, ...]
    choices: tuple[Choice, ...]


@functools.cache
def recipes() -> tuple[Recipe, ...]:
    """All recipes.

    Raises:
        ValueError: the file is not as its head says.
    """
    return tuple(map(_recipe, yaml.safe_load(FILE.read_text(encoding="utf-8"))))


def _recipe(content: Mapping) -> Recipe:
    name = content["id"]
    if strays := set(content) ^ _RECIPE_KEYS:
        raise ValueError(f"Recipe {name} has, or lacks, {', '.join(sorted(strays))}")
    batches = content["choices"].get(BATCH, {})
    choices = []
    for what, values in content["choices"].items():
        place = f"{what} of recipe {name}"
        published = {source: values[source] for source in _SOURCES if source in values}
        if "here" not in values or set(values) - _CHOICE_KEYS:
            raise ValueError(f"{place} has, or lacks, other keys than {', '.join(_CHOICE_KEYS)}")
        if strays := set(published) - set(content["sources"]):
            raise ValueError(f"{place} has a value of {', '.join(strays)}, which has no source")
        follows = tuple(
            source
            for source, value in published.items()
            if _same(what, values["here"], value, _ratio(what, batches, source))
        )
        if not follows and not values.get("why"):
            raise ValueError(f"{place} is nobody's, and nothing says why")
        choices.append(Choice(what, values["here"], published, follows, values.get("why", "")))
    names = ("id", "about", "sources")
    parts = {key: content[key] for key in names}
    return Recipe(**parts, configs=tuple(content["configs"]), choices=tuple(choices))


def _ratio(what: str, batches: Mapping, source: str) -> float:
    """The factor between a source's value and the same at the batch of here."""
    if source not in batches:
        return 1.0
    ratio = batches["here"] / batches[source]
    if what == RATE:
        return ratio
    return 1 / ratio if what in ITERATIONS else 1.0


def _same(what: str, here: Any, value: Any, ratio: float) -> bool:
    if ratio == 1.0:
        return here == value
    if isinstance(value, list):
        return len(here) == len(value) and all(
            _same(what, x, y, ratio) for x, y in zip(here, value, strict=True)
        )
    return abs(here - value * ratio) < 1e-6 * abs(here)
