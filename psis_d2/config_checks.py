"""What a config key may be: every value is checked before a run reads any data.

A key is declared once, in :mod:`psis_d2.config`, with its default and its check. Here are the kinds
of checks, and :func:`check_values`, which turns down a config with a wrong value.
"""

import ast
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psis_d2.errors import UserError, did_you_mean

from detectron2.config import CfgNode


@dataclass(frozen=True)
class Check(ABC):
    """A kind of values. Subclasses say what it must be, and whether a value is."""

    @abstractmethod
    def wants(self) -> str:
        """The end of the sentence "it must be ..."."""

    @abstractmethod
    def accepts(self, value: Any) -> bool:
        """Whether a value is of this kind."""

    def fault(self, key: str, value: Any) -> str:
        """The sentence that turns down a value; "" for a good one."""
        if self.accepts(value):
            return ""
        return f"{key} is {_shown(value)}; it must be {self.wants()}."


@dataclass(frozen=True)
class Flag(Check):
    """True or False."""

    def wants(self) -> str:
        return "True or False"

    def accepts(self, value: Any) -> bool:
        return type(value) is bool


@dataclass(frozen=True)
class Number(Check):
    """A finite number from `low` to `high`, both included unless `above` and `below` say else."""

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False

    def wants(self) -> str:
        bounds = []
        if self.low > -math.inf:
            bounds.append(f"{'above' if self.above else 'at least'} {self.low}")
        if self.high < math.inf:
            bounds.append(f"{'below' if self.below else 'at most'} {self.high}")
        kind = "a whole number" if self.whole else "a finite number"
        return f"{kind}, {' and '.join(bounds)}" if bounds else kind

    def accepts(self, value: Any) -> bool:
        if type(value) is not int and (self.whole or type(value) is not float):
            return False
        high_enough = value > self.low if self.above else value >= self.low
        low_enough = value < self.high if self.below else value <= self.high
        return math.isfinite(value) and high_enough and low_enough


@dataclass(frozen=True)
class Choice(Check):
    """One of a few words."""

    choices: tuple[str, ...]

    def wants(self) -> str:
        return f"one of {', '.join(choice or repr('') for choice in self.choices)}"

    def accepts(self, value: Any) -> bool:
        return type(value) is str and value in self.choices

    def fault(self, key: str, value: Any) -> str:
        if self.accepts(value):
            return ""
        hint = did_you_mean(str(value), self.choices)
        return f"{key} is {_shown(value)}; choose {self.wants()}{hint}."


@dataclass(frozen=True)
class JsonFile(Check):
    """The path of a json, known by the end of its name."""

    def wants(self) -> str:
        return "a file that ends in .json"

    def accepts(self, value: Any) -> bool:
        return type(value) is str and value.lower().endswith(".json")


@dataclass(frozen=True)
class ChoiceOrJson(Choice):
    """One of a few words, or the path of a json."""

    def wants(self) -> str:
        return f"{super().wants()}, or {JsonFile().wants()}"

    def accepts(self, value: Any) -> bool:
        return super().accepts(value) or JsonFile().accepts(value)


@dataclass(frozen=True)
class Text(Check):
    """A string: a name, or the path of a file."""

    empty: bool = False

    def wants(self) -> str:
        return "a text" if self.empty else "a text that is not empty"

    def accepts(self, value: Any) -> bool:
        return type(value) is str and (self.empty or bool(value.strip()))


@dataclass(frozen=True)
class List(Check):
    """A list with `least` to `most` entries, each as `item` wants it."""

    item: Check
    least: int = 0
    most: float = math.inf

    def wants(self) -> str:
        count = f"exactly {self.least}" if self.least == self.most else f"at least {self.least}"
        counted = f" of {count} entries" if self.least else ""
        return f"a list{counted}, each of them {self.item.wants()}"

    def accepts(self, value: Any) -> bool:
        return (
            isinstance(value, (list, tuple))
            and self.least <= len(value) <= self.most
            and all(map(self.item.accepts, value))
        )


@dataclass(frozen=True)
class Rows(Check):
    """Lists of a fixed length, as ``TEST.EXPECTED_RESULTS`` has them."""

    items: tuple[Check, ...]
    example: str

    def wants(self) -> str:
        return f"a list of lists like {self.example}"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, (list, tuple)) and all(
            isinstance(row, (list, tuple))
            and len(row) == len(self.items)
            and all(check.accepts(entry) for check, entry in zip(self.items, row, strict=True))
            for row in value
        )


@dataclass(frozen=True)
class Options(Check):
    """KEY, VALUE, KEY, VALUE, ... as on the command line; :func:`check_values` looks at them."""

    def wants(self) -> str:
        return "a list of keys of the config and their values by turns"

    def accepts(self, value: Any) -> bool:
        return (
            isinstance(value, (list, tuple))
            and len(value) % 2 == 0
            and all(type(key) is str for key in value[::2])
        )


@dataclass(frozen=True)
class Fixed(Check):
    """A key of Detectron2 that psis_d2 has no use for: the default alone, and the reason."""

    value: Any
    reason: str

    def wants(self) -> str:
        return repr(self.value)

    def accepts(self, value: Any) -> bool:
        if isinstance(self.value, (list, tuple)):  # a file has no tuples
            return isinstance(value, (list, tuple)) and list(value) == list(self.value)
        return type(value) is type(self.value) and value == self.value

    def fault(self, key: str, value: Any) -> str:
        if self.accepts(value):
            return ""
        return f"{key} is {_shown(value)}, but {self.reason}; leave it {self.value!r}."


def flag() -> Flag:
    """True or False."""
    return Flag()


def number(low=-math.inf, high=math.inf, *, above: bool = False, below: bool = False) -> Number:
    """A finite number in a range; `above` and `below` leave out its ends."""
    return Number(low, high, above=above, below=below)


def whole(low=-math.inf, high=math.inf) -> Number:
    """A whole number in a range, its ends included."""
    return Number(low, high, whole=True)


def one_of(*choices: str) -> Choice:
    """One of a few words."""
    return Choice(choices)


def json_file() -> JsonFile:
    """The path of a json."""
    return JsonFile()


def one_of_or_json(*choices: str) -> ChoiceOrJson:
    """One of a few words, or the path of a json."""
    return ChoiceOrJson(choices)


def text(empty: bool = False) -> Text:
    """A string; `empty` allows ""."""
    return Text(empty)


def list_of(item: Check, least: int = 0, most: float = math.inf) -> List:
    """A list of `least` to `most` entries."""
    return List(item, least, most)


def needs(*conditions: tuple[str, Any]) -> dict:
    """The key has an effect only where one of these (key, value or :class:`Check`) is so."""
    return {"needs": conditions}


def read_with(key: str) -> dict:
    """The key is read before the model is built, by what that other key switches on."""
    return {"read_with": key}


@dataclass(frozen=True)
class Key:
    """What is known of a config key.

    Attributes:
        default: its value, unless a config file says otherwise.
        check: what it may be; None is an omission, which the tests report.
        of_model: whether it is the model's: nobody else reads it.
        needs: see :func:`needs`.
        read_with: see :func:`read_with`.
    """

    default: Any
    check: Check | None
    of_model: bool = True
    needs: tuple[tuple[str, Any], ...] = ()
    read_with: str = ""


class Keys:
    """Collects declarations of the form ``node.NAME = default, check``.

    Args:
        table: where they go, by full name.
        prefix: of the names.
        of_model: see :class:`Key`.
    """

    def __init__(self, table: dict[str, Key], prefix: str, of_model: bool = True):
        vars(self).update(_table=table, _prefix=prefix, _of_model=of_model)

    def __setattr__(self, name: str, declared: Any) -> None:
        checked = isinstance(declared, tuple) and isinstance(declared[1], Check)
        default, check, *more = declared if checked else (declared, None)
        options = {key: value for option in more for key, value in option.items()}
        key = Key(default, check, self._of_model, **options)
        self._table[f"{self._prefix}.{name}"] = key


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value, or the node, of a full name; KeyError if there is none."""
    for part in key.split("."):
        if not isinstance(cfg, Mapping):
            raise KeyError(key)
        cfg = cfg[part]
    return cfg


def decoded(value: Any) -> Any:
    """A value as a config takes it: words of a command line or a file may spell a literal."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def check_value(keys: Mapping[str, Key], key: str, value: Any, origin: str = "") -> None:
    """Turn down a wrong value of one key, which comes from `origin`, " in FILE".

    Raises:
        UserError: naming the key, the value and what it must be.
    """
    check = keys[key].check if key in keys else None
    if check and (sentence := check.fault(f"{key}{origin}", value)):
        raise UserError(sentence)


def check_values(cfg: CfgNode, keys: Mapping[str, Key]) -> None:
    """Turn down a config with a wrong value, or with one that nothing makes use of.

    Args:
        cfg: the config, complete.
        keys: what is known of its keys, by full name.

    Raises:
        UserError: one sentence about the first of them.
    """
    for key, known in keys.items():
        value = value_of(cfg, key)
        check_value(keys, key, value)
        unmet = [x for x in known.needs if not _is_so(value_of(cfg, x[0]), x[1])]
        if value != known.default and known.needs and len(unmet) == len(known.needs):
            wanted = " or ".join(
                f"{other} {setting.wants() if isinstance(setting, Check) else setting}"
                for other, setting in known.needs
            )
            raise UserError(
                f"{key} is {_shown(value)}, which has an effect only with {wanted}; set that, or "
                f"leave {key.rpartition('.')[2]} {_shown(known.default)}."
            )


def _is_so(value: Any, setting: Any) -> bool:
    return setting.accepts(value) if isinstance(setting, Check) else value == setting


def _shown(value: Any) -> str:
    shown = f"'{value}'" if isinstance(value, str) else repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
