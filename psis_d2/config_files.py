"""Config files and KEY VALUE words, turned down with one sentence where they cannot be used."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from psis_d2.config import RENAMED_KEYS
from psis_d2.config_checks import check_value, decoded, value_of
from psis_d2.config_rules import PART_OPTIONS, check_config, checked_keys
from psis_d2.errors import UserError, did_you_mean

import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

_BASE = "_BASE_"


def merge_file(cfg: CfgNode, path: str) -> None:
    """Merge a config file, and the ones that it is based on, into a config.

    Python objects, which Detectron2 would build from a file, are not.

    Raises:
        UserError: a file is missing or no YAML, or a key or a value is wrong.
    """
    _merge(cfg, _read(path, ()), f" in {path}")


def merge_options(cfg: CfgNode, options: Sequence[Any], origin: str = "") -> None:
    """Merge KEY, VALUE, KEY, VALUE, ... into a config.

    Args:
        cfg: the config, changed in place.
        options: as on the command line.
        origin: " in ...", if they come from elsewhere.

    Raises:
        UserError: a key is unknown or has no value, or a value is wrong.
    """
    if len(options) % 2:
        raise UserError(
            f"The KEY VALUE pairs{origin} have {options[-1]} without a partner; give every key one "
            "value, in quotes if it has spaces."
        )
    for key, value in zip(options[::2], options[1::2], strict=True):
        tree = {}
        node = tree
        *path, name = str(key).split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[name] = value
        _merge(cfg, tree, origin)


def check_part_options(cfg: CfgNode) -> None:
    """Turn down keys and values that only a part of the model is built with.

    Raises:
        UserError: as :func:`merge_options` and :func:`check_config`.
    """
    for key in PART_OPTIONS:
        part = cfg.clone()
        part.defrost()
        merge_options(part, list(value_of(cfg, key)), f" in {key}")
        check_config(part)


def _merge(cfg: CfgNode, tree: Mapping, origin: str) -> None:
    fitting = _fit(cfg, tree, "", origin)
    try:
        cfg.merge_from_other_cfg(CfgNode(fitting))
    except (KeyError, ValueError, AssertionError) as error:  # as yacs turns down values
        reason = str(error.args[0] if error.args else error).rstrip(".")
        raise UserError(f"A value{origin} cannot be used ({reason}); correct it.") from error


def _fit(node: CfgNode, tree: Mapping, prefix: str, origin: str) -> dict:
    """The tree with numbers as the config has them; every key of it is one of the config."""
    fitting = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if name not in node:
            raise UserError(_unknown(key, node, prefix, origin))
        known = node[name]
        if isinstance(known, CfgNode):
            if not isinstance(value, Mapping):
                raise UserError(
                    f"{key}{origin} is {value!r}, but it is a group of keys ({', '.join(known)}); "
                    "set one of those."
                )
            fitting[name] = _fit(known, value, f"{key}.", origin)
            continue
        if isinstance(value, Mapping):
            raise UserError(f"{key}{origin} is one value and has no keys below it; write {key}: X.")
        value = decoded(value)
        if type(known) is float:
            value = _as_float(value)
        check_value(checked_keys(), key, value, origin)
        fitting[name] = value
    return fitting


def _as_float(value: Any) -> Any:
    # 1 is as good as 1.0, and nan, which no literal spells, has a check to name it.
    if type(value) is int or (isinstance(value, str) and value.lower().lstrip("+-") in _NOT_FINITE):
        return float(value)
    return value


_NOT_FINITE = ("nan", "inf", "infinity")


def _unknown(key: str, node: CfgNode, prefix: str, origin: str) -> str:
    if key in RENAMED_KEYS:
        return f"{key}{origin} is called {RENAMED_KEYS[key]} now; use that name."
    siblings = [f"{prefix}{name}" for name in node]
    hint = did_you_mean(key, siblings)
    return f"{key}{origin} is no config key{hint}; correct the name or leave it out."


def _read(path: str, above: tuple[str, ...]) -> dict:
    """A file as a tree, merged over the files that its ``_BASE_`` names."""
    based = f", which {above[-1]} is based on," if above else ""
    if path in above:
        raise UserError(f"The config file {path} is based on itself; correct its {_BASE}.")
    if PathManager.isdir(path):
        raise UserError(f"The config file {path}{based} is a folder; name a file in it.")
    if not PathManager.isfile(path):
        way_out = f"correct the {_BASE}" if above else "see configs/"
        raise UserError(f"The config file {path}{based} does not exist; {way_out}.")
    tree = _parsed(path)
    bases = tree.pop(_BASE, [])
    merged: dict = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise UserError(f"{_BASE} in {path} is {base!r}; it must be the path of a config file.")
        base = os.path.expanduser(base)
        if "://" not in base:  # relative to the file that names it
            base = os.path.normpath(os.path.join(os.path.dirname(path), base))
        _overlay(_read(base, (*above, path)), merged)
    _overlay(tree, merged)
    return merged


def _overlay(tree: Mapping, below: dict) -> None:
    for key, value in tree.items():
        if isinstance(value, Mapping) and isinstance(below.get(key), dict):
            _overlay(value, below[key])
        else:
            below[key] = value


def _parsed(path: str) -> dict:
    try:
        with PathManager.open(path, "r", encoding="utf-8-sig") as file:
            tree = yaml.safe_load(file)
    except UnicodeDecodeError as error:
        raise UserError(f"The config file {path} is not text; name a YAML file.") from error
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"The config file {path} cannot be read ({reason}).") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(
            f"The config file {path} is no YAML ({_reason(error)}); correct it there."
        ) from error
    if tree is None:
        raise UserError(f"The config file {path} is empty; write keys and values, as in configs/.")
    if not isinstance(tree, dict):
        raise UserError(
            f"The config file {path} is a {type(tree).__name__} and not keys with values, as in "
            "configs/; correct it."
        )
    for key in _keys(tree):
        if not isinstance(key, str):
            raise UserError(f"The config file {path} has a key {key!r}, which is no name.")
    return tree


def _keys(tree: Mapping) -> Iterator[Any]:
    for key, value in tree.items():
        yield key
        if isinstance(value, Mapping):
            yield from _keys(value)


def _reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    what = " ".join(str(getattr(error, "problem", None) or error).split())
    if "\\t" in what:
        what += ": indent with spaces, not with tabs"
    return f"line {mark.line + 1}: {what}" if mark else what
