"""Which trained models there are: ``zoo.json``, and private lists beside it.

Imports neither PyTorch nor Detectron2.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from psis_d2.errors import UserError
from psis_d2.model_zoo.download import cache_folder, is_offline, read_url

logger = logging.getLogger(__name__)

BUILTIN = Path(__file__).resolve().parent / "zoo.json"
PREFIX = "psis_d2://"
_FORMAT = 1


@dataclass(frozen=True)
class Model:
    """One trained model.

    Attributes:
        name: what stands behind ``psis_d2://``.
        config: name of the config that it was trained with, see :mod:`psis_d2.model_zoo.configs`.
        urls: where its file is, tried in order: ``https:``, ``hf:``, or ``file:``; in a list, a
            relative one begins at the list, on a disk or a server.
        sha256: of the file.
        size: of the file, in bytes.
        commit: of this project's code that trained it.
        data: what it was trained and measured on.
        split: which categories had masks, as ``PSIS.SEEN_CLASSES``.
        metrics: {task: {metric: value}} as an evaluation writes it.
        command: the command that measured them.
        license: of the weights.
        note: what else a user of them has to know: terms of the data, of what they started from.
    """

    name: str
    config: str
    urls: tuple[str, ...]
    sha256: str
    size: int
    commit: str = ""
    data: str = ""
    split: str = ""
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    command: str = ""
    license: str = ""
    note: str = ""

    @property
    def file_name(self) -> str:
        """Name of the file in the cache; it changes with the content."""
        suffix = os.path.splitext(urlsplit(self.urls[0]).path)[1] or ".pth"
        return f"{self.name}_{self.sha256[:8]}{suffix}"


def models() -> dict[str, Model]:
    """All models by name: those of ``PSIS_D2_ZOO`` first, then those that psis_d2 brings along.

    ``PSIS_D2_ZOO`` names files or URLs, separated by commas; a name in an earlier one hides the
    same name in a later one.

    Raises:
        UserError: a list cannot be read.
    """
    sources = [part.strip() for part in os.environ.get("PSIS_D2_ZOO", "").split(",")]
    found: dict[str, Model] = {}
    for source in [*filter(None, sources), str(BUILTIN)]:
        for model in read_zoo(source):
            found.setdefault(model.name, model)
    return found


def find_model(name: str) -> Model:
    """A model by its name, with or without ``psis_d2://``.

    Raises:
        UserError: there is none of that name.
    """
    name = name.removeprefix(PREFIX)
    known = models()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "psis-d2 zoo list names all."
        raise UserError(f"There is no trained model '{name}' in the zoo; {hint}")
    return known[name]


def read_zoo(source: str) -> list[Model]:
    """Read a list of models.

    Args:
        source: a file, or an address; the last copy of the latter serves where it is not reached.

    Raises:
        UserError: it is not there or not such a list.
    """
    remote = "://" in source and not source.startswith("file:")
    text = _read_remote(source) if remote else _read_local(source)
    try:
        content = json.loads(text)
        if content["format"] != _FORMAT:
            raise UserError(
                f"The model zoo {source} has format {content['format']}, this psis_d2 reads "
                f"{_FORMAT}; update the older of the two."
            )
        base = source if remote else Path(source.removeprefix("file:")).absolute().as_uri()
        return [_parse(row, base) for row in content["models"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"The model zoo {source} cannot be used ({type(error).__name__}: {error}); compare it "
            "with psis_d2/model_zoo/zoo.json."
        ) from error


def write_row(path: str, model: Model) -> None:
    """Add a model to a list, which is made if it is missing, in place of one of the same name.

    Raises:
        UserError: the list is there but cannot be read, or it cannot be written.
    """
    from psis_d2.files import written_at_once

    content = {"format": _FORMAT, "models": []}
    if os.path.exists(path):
        read_zoo(path)  # says what is wrong
        content = json.loads(_read_local(path))
    rows = [row for row in content["models"] if row["name"] != model.name]
    content["models"] = sorted([*rows, dataclasses.asdict(model)], key=lambda row: row["name"])
    try:
        with written_at_once(path) as file:
            file.write(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror or error}).") from error


def _parse(row: dict, base: str) -> Model:
    fields = {f.name for f in dataclasses.fields(Model)}
    if unknown := row.keys() - fields:
        raise ValueError(f"unknown key {min(unknown)}")
    urls = tuple(_resolve(url, base) for url in row["urls"])
    model = Model(**{**row, "urls": urls})
    # It becomes a file's name.
    if not re.fullmatch(r"\w[\w.-]*", model.name):
        raise ValueError(f"the name {model.name!r} has other than letters, digits, '_', '.', '-'")
    if not re.fullmatch(r"[0-9a-f]{64}", model.sha256):
        raise ValueError(f"the sha256 of {model.name} is not 64 hexadecimal digits")
    if not urls or type(model.size) is not int or model.size <= 0:
        raise ValueError(f"{model.name} has no urls or no size in bytes")
    return model


def _resolve(url: str, base: str) -> str:
    """An address as a whole; relative ones begin at the list, wherever that is."""
    if url.startswith("hf://"):
        return url
    relative = url.startswith("file:") and not url.startswith("file:/")
    return urljoin(base, url.removeprefix("file:") if relative else url)


def _read_local(source: str) -> str:
    try:
        return Path(source.removeprefix("file:")).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"The model zoo {source} cannot be read ({reason}); correct PSIS_D2_ZOO or the file."
        ) from error


def _read_remote(source: str) -> str:
    """The text at an address, or the copy of the last time."""
    from hashlib import sha256

    from psis_d2.files import written_at_once

    copy = cache_folder() / f"zoo-{sha256(source.encode()).hexdigest()[:16]}.json"
    if not is_offline():
        try:
            text = read_url(source).decode("utf-8")
            with written_at_once(str(copy)) as file:
                file.write(text)
            return text
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "reason", None) or error
    else:
        reason = "PSIS_D2_OFFLINE is set"
    if copy.is_file():
        if not is_offline():
            logger.warning("%s is not reached (%s): its last copy is used.", source, reason)
        return copy.read_text(encoding="utf-8")
    raise UserError(
        f"The model zoo {source} cannot be read ({reason}), and there is no copy of it; correct "
        "PSIS_D2_ZOO or check the network."
    )
