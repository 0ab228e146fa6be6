"""Configs by name: ``configs/`` of a checkout, or the copy that an installed package brings along.

Imports neither PyTorch nor Detectron2.
"""

import difflib
import os
from pathlib import Path

from psis_d2.errors import UserError

_HERE = Path(__file__).resolve().parent


def configs_folder() -> Path:
    """Where the configs are.

    ``setup.py`` copies them into the package that it builds; a checkout and an editable
    installation have the one source beside the package.
    """
    inside = _HERE / "configs"
    return inside if inside.is_dir() else _HERE.parents[1] / "configs"


def config_names() -> list[str]:
    """Names of all configs, sorted: their paths without ``.yaml``, such as ``shapeprop_R50``.

    The files that others only build on, ``Base-*.yaml``, are left out.
    """
    folder = configs_folder()
    paths = (path for path in folder.rglob("*.yaml") if not path.name.startswith("Base-"))
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in paths)


def get_config_file(config_path: str) -> str:
    """The path of a config.

    Args:
        config_path: its name, such as ``shapeprop_R50`` or ``quick/shapeprop_shapes``, with or
            without ``.yaml``.

    Raises:
        RuntimeError: there is none of that name, as Detectron2's function of this name says it.
    """
    path = configs_folder() / f"{config_path.removesuffix('.yaml')}.yaml"
    if not path.is_file():
        raise RuntimeError(f"{config_path} not available in Model Zoo!")
    return str(path)


def find_config_file(name_or_file: str) -> str:
    """The path of a config that a user gives as a file or by its name.

    Args:
        name_or_file: a file goes before a name; ``psis_d2://NAME`` is the config that a trained
            model has inside; "" stays "".

    Raises:
        UserError: it is neither.
    """
    if name_or_file.startswith("psis_d2://"):
        from psis_d2.model_zoo.checkpoints import config_file_of  # which imports this module

        return config_file_of(name_or_file)
    if not name_or_file or "://" in name_or_file or os.path.isfile(name_or_file):
        return name_or_file
    try:
        return get_config_file(name_or_file)
    except RuntimeError:
        name = os.path.basename(name_or_file).removesuffix(".yaml")
        last_words = {known.rpartition("/")[2]: known for known in config_names()}
        close = difflib.get_close_matches(name, last_words, n=1)
        hint = (
            f"did you mean {last_words[close[0]]}?" if close else "psis-d2 zoo configs lists all."
        )
        raise UserError(f"The config file {name_or_file} does not exist; {hint}") from None
