"""Rules from one code base's parameter names to another's."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from psis_d2.errors import UserError

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """What becomes of parameters."""

    pattern: str
    """Regular expression of the whole name."""
    name: str | Callable[[re.Match], str] | None
    """The new name, as :meth:`re.Match.expand` reads it; None for what psis_d2 has no use for."""
    change: Callable[[Tensor], Tensor] | None = None
    """What is done to the values."""


@dataclass(frozen=True)
class Source:
    """A code base whose checkpoints can be converted."""

    rules: Sequence[Rule]
    """Of these the first that matches counts."""
    finish: Callable[[dict[str, Tensor], object], dict[str, Tensor]] | None = None
    """What takes more than one parameter, or the config: (renamed, cfg) to the final state."""
    options: tuple[str, ...] = ()
    """KEY, VALUE, ... that the converted weights have to be run with."""


def rename(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Apply rules to all parameters.

    Args:
        state: parameters by their names in the other code base.
        rules: of each name the first one that matches.

    Raises:
        UserError: no rule knows a name, or two parameters get the same.
    """
    renamed: dict[str, Tensor] = {}
    unknown = []
    for old, value in state.items():
        name = old.removeprefix("module.")  # of models saved inside their distributed wrapper
        for rule in rules:
            if match := re.fullmatch(rule.pattern, name):
                break
        else:
            unknown.append(old)
            continue
        if rule.name is None:
            continue
        new = rule.name(match) if callable(rule.name) else match.expand(rule.name)
        if new in renamed:
            raise UserError(f"The checkpoint has {new} twice, the second time as {old}.")
        renamed[new] = rule.change(value) if rule.change else value
    if unknown:
        more = f" and {len(unknown) - 3} more" * (len(unknown) > 3)
        raise UserError(
            f"The checkpoint has parameters that its source is not known to have: "
            f"{', '.join(unknown[:3])}{more}; name the source that it comes from."
        )
    return renamed


def background_last(rows: Tensor) -> Tensor:
    """Rows of classes, of which the first one is background: it goes to the end."""
    return torch.cat([rows[1:], rows[:1]])
