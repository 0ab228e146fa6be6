"""Files from the network, of which nothing is used before its hash is right.

A file is downloaded under another name, goes on where an earlier attempt stopped, and gets its name
when size and SHA-256 are those of the list. Several processes may ask for the same file: one
downloads, the others wait. Imports neither PyTorch nor Detectron2.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import logging
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from psis_d2.errors import UserError

from filelock import FileLock
from tqdm import tqdm

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte
_ATTEMPTS = 3  # that bring nothing new, of one address


class Failed(Exception):
    """An address does not give the file; the text says why."""

    again = False
    """Whether it may, when it is asked once more."""
    status = 0
    """What an HTTP server answered."""


def cache_folder() -> Path:
    """Where downloads are kept: ``PSIS_D2_CACHE``, else ``psis_d2`` in the user's cache folder."""
    if chosen := os.environ.get("PSIS_D2_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "psis_d2"


def is_offline() -> bool:
    """Whether ``PSIS_D2_OFFLINE`` forbids the network."""
    return os.environ.get("PSIS_D2_OFFLINE", "0") not in ("", "0")


def sha256_of(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()  # hashlib.file_digest is new in Python 3.11
    with open(path, "rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def fetch(urls: Sequence[str], *, file_name: str, sha256: str, size: int) -> Path:
    """A file on this machine with the wanted content.

    Args:
        urls: where it is, tried in order: ``http(s):``, ``hf:``, or ``file:``, which is used where
            it is.
        file_name: its name in the cache.
        sha256: what its content must have.
        size: in bytes.

    Raises:
        UserError: it cannot be had; the sentence has the reason of every address.
    """
    target = cache_folder() / file_name
    if _is_right(target, sha256, size):
        return target
    reasons = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if _is_right(target, sha256, size):  # another process was faster
                return target
            target.unlink(missing_ok=True)
            for url in urls:
                try:
                    return _from_url(url, target, sha256, size)
                except Failed as error:
                    if url != urls[-1]:
                        logger.warning("%s: %s; trying the next address.", url, error)
                    reasons.append(f"{_host(url)}: {error}")
    except OSError as error:
        room = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "check"
        raise UserError(
            f"{file_name} cannot be written to {target.parent} ({error.strerror or error}); {room} "
            "there, or choose another folder by PSIS_D2_CACHE."
        ) from error
    hint = (
        "unset PSIS_D2_OFFLINE, or put the file there by other means"
        if is_offline()
        else "check the network, or put the file there by other means"
    )
    raise UserError(
        f"{file_name} is not in {target.parent} and cannot be downloaded ({'; '.join(reasons)}); "
        f"{hint}."
    )


def read_url(url: str) -> bytes:
    """The content at an address, of a few megabytes at most.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
            return response.read(1 << 24)
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(str(error)) from error


def fetch_from_hub(url: str) -> Path:
    """A file of the Hugging Face hub, in the cache that all of its users share.

    Args:
        url: ``hf://org/repo/path/of/file``, or ``hf://org/repo@revision/path/of/file``.

    Raises:
        UserError: the address is none, or huggingface_hub is not installed.
        Failed: the hub does not give the file.
    """
    organization, _, rest = url.removeprefix("hf://").partition("/")
    repository, _, path = rest.partition("/")
    repository, _, revision = repository.partition("@")
    if not (organization and repository and path):
        raise UserError(f"The address {url} is incomplete; give hf://ORG/REPO/FILE.")
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise UserError(
            f"{url} needs huggingface_hub, which is not installed; run: pip install huggingface_hub"
        ) from error
    try:
        return Path(
            huggingface_hub.hf_hub_download(
                f"{organization}/{repository}",
                path,
                revision=revision or None,
                local_files_only=is_offline(),
            )
        )
    # Of requests, httpx, the file system and the hub itself, by version.
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        raise Failed(text.splitlines()[0]) from error


def _from_url(url: str, target: Path, sha256: str, size: int) -> Path:
    scheme = urlsplit(url).scheme
    if scheme == "file":
        path = Path(unquote(urlsplit(url).path))
        if not path.is_file():
            raise Failed(f"{path} does not exist")
    elif scheme == "hf":
        path = fetch_from_hub(url)
    elif scheme in ("http", "https"):
        if is_offline():
            raise Failed("PSIS_D2_OFFLINE is set")
        return _download(url, target, sha256, size)
    else:
        raise Failed(f"'{scheme}:' is not among http, https, hf and file")
    if not _is_right(path, sha256, size):
        raise Failed(f"{path} is not the file that the zoo means (its SHA-256 is another)")
    return path


def _download(url: str, target: Path, sha256: str, size: int) -> Path:
    """Download to ``<target>.part``, check, rename."""
    part = target.with_name(f"{target.name}.part")
    resumed = part.exists()
    furthest, failures = _size(part), 0
    while failures < _ATTEMPTS:
        if _size(part) < size:
            try:
                _append(url, part, size)
            except Failed as error:
                failures = failures + 1 if _size(part) <= furthest else 0
                furthest = max(furthest, _size(part))
                if failures == _ATTEMPTS or not error.again:
                    raise
                continue
        if _is_right(part, sha256, size):
            os.replace(part, target)
            return target
        found = sha256_of(part)
        part.unlink()
        if not resumed:
            raise Failed(f"its content is another (SHA-256 {found[:8]}..., not {sha256[:8]}...)")
        resumed = False  # what was there before may have been wrong: once more, from the beginning
    raise Failed("the connection breaks again and again")


def _append(url: str, part: Path, size: int) -> None:
    """Read an address to the end of a file that may have its first bytes.

    Raises:
        Failed: the address does not give the rest; with ``again``, it may when asked once more.
        OSError: the file cannot be written. It is removed then.
    """
    start = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "psis_d2"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        with _network_errors():
            response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except Failed as error:
        if start and error.status == 416:  # there is no such rest: once more, from the beginning
            part.unlink(missing_ok=True)
            error.again = True
        raise
    with response:
        goes_on = response.status == 206 and _begins_at(response, start)
        try:
            room = shutil.disk_usage(part.parent).free
            if room < size - start * goes_on:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with (
                open(part, "ab" if goes_on else "wb") as file,
                tqdm(
                    total=size,
                    initial=start * goes_on,
                    desc=part.name.removesuffix(".part"),
                    unit="B",
                    unit_scale=True,
                    disable=None,  # where nobody looks
                ) as bar,
            ):
                while True:
                    with _network_errors():
                        chunk = response.read(_CHUNK)
                    if not chunk:
                        break
                    file.write(chunk)
                    bar.update(len(chunk))
                    if file.tell() > size:
                        break  # it is another file, however long
        except OSError:
            part.unlink(missing_ok=True)
            raise
    if _size(part) < size:
        raise _again(f"the connection ended after {_size(part)} of {size} bytes")


@contextlib.contextmanager
def _network_errors() -> Iterator[None]:
    """Turn what goes wrong with a connection into :class:`Failed`."""
    try:
        yield
    except urllib.error.HTTPError as error:
        failed = Failed(f"the server answers {error.code} {error.reason}")
        failed.again, failed.status = error.code >= 500, error.code
        raise failed from error
    except urllib.error.URLError as error:
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise Failed(f"no connection ({reason})") from error
    except (http.client.HTTPException, OSError) as error:
        raise _again(f"the connection broke ({str(error) or type(error).__name__})") from error


def _again(text: str) -> Failed:
    error = Failed(text)
    error.again = True
    return error


def _begins_at(response, start: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_right(path: Path, sha256: str, size: int) -> bool:
    return path.is_file() and _size(path) == size and sha256_of(path) == sha256


def _host(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else parts.scheme


def state_of(model) -> tuple[str, Path | None]:
    """Whether a model's file is on this machine, without looking for it elsewhere.

    Args:
        model: a :class:`~psis_d2.model_zoo.catalog.Model`.

    Returns:
        "right", "wrong" (it is another file) or "not here", and the file.
    """
    places = [cache_folder() / model.file_name]
    places += [Path(unquote(urlsplit(u).path)) for u in model.urls if urlsplit(u).scheme == "file"]
    there = [path for path in places if path.is_file()]
    for path in there:
        if _is_right(path, model.sha256, model.size):
            return "right", path
    return ("wrong", there[0]) if there else ("not here", None)
