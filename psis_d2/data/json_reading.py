"""Read the json of a data set an annotation at a time, so that a large one needs little memory.

Python's parser makes an object of 24 bytes of every coordinate and keeps all of them until the file
is at its end. Here each annotation is packed as soon as it is parsed: its polygons become arrays of
8 bytes a coordinate, and what no one reads goes.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable

try:
    import orjson
except ImportError:  # only a matter of time
    orjson = None

_SPACE = re.compile(r"[ \t\n\r]*")
# Where one entry of a list may end and the next one begin.
_BORDER = re.compile(r"\}[ \t\n\r]*,[ \t\n\r]*\{")
# Characters that orjson gets at a time.
_CHUNK = 200_000
_IDS = ("id", "image_id", "category_id")
_NUMBERS = {int, float}
# What may be a polygon has at least three points; shorter lists are for the checks to judge.
_SHORTEST = 6


def parse_dataset(text: str, pack: Callable[[object], object]) -> object:
    """What ``json.loads`` gives, the entries of ``annotations`` packed.

    Args:
        text: of the file.
        pack: gets each entry of the list ``annotations`` of the outermost object, and returns what
            takes its place.

    Raises:
        ValueError, RecursionError: as ``json.loads`` does.
    """
    try:
        return _parse_object(text, pack)
    except (StopIteration, IndexError, ValueError):
        return json.loads(text)  # says what is wrong, and where


def _parse_object(text: str, pack: Callable[[object], object]) -> dict:
    scan = json.JSONDecoder().scan_once
    content: dict = {}
    place = _expect(text, 0, "{")
    if text[place] == "}":
        return _at_end(text, place + 1, content)
    while True:
        if text[place] != '"':
            raise ValueError("no key")
        key, place = scan(text, place)
        place = _expect(text, place, ":")
        if key == "annotations" and text[place] == "[":
            content[key], place = _parse_list(text, place, scan, pack)
        else:
            content[key], place = scan(text, place)
        place = _SPACE.match(text, place).end()
        if text[place] == "}":
            return _at_end(text, place + 1, content)
        place = _expect(text, place, ",")


def _parse_list(text: str, place: int, scan, pack) -> tuple[list, int]:
    skip = _SPACE.match
    entries: list = []
    place = _expect(text, place, "[")
    if text[place] == "]":
        return entries, place + 1
    place = _parse_chunks(text, place, pack, entries)
    while True:
        entry, place = scan(text, place)
        entries.append(pack(entry))
        place = skip(text, place).end()
        if text[place] == "]":
            return entries, place + 1
        place = _expect(text, place, ",")


def _parse_chunks(text: str, place: int, pack, entries: list) -> int:
    """Add entries of a list as far as orjson, if it is there, reads them as ``json`` does.

    Args:
        place: where an entry begins.

    Returns:
        Where the first entry begins that was not added; at least one is left.
    """
    while orjson is not None:
        border = _BORDER.search(text, place + _CHUNK)
        if border is None:
            break
        try:
            # What is a list so far ends between two entries, and not within one.
            chunk = orjson.loads(f"[{text[place : border.start() + 1]}]")
        except ValueError:  # not a border, or something that only json takes, such as NaN
            break
        # It makes floats of integers beyond 64 bits, and an id is to stay what it is.
        if any(type(x) is dict and float in [type(x.get(key)) for key in _IDS] for x in chunk):
            break
        entries.extend(map(pack, chunk))
        place = border.end() - 1
    return place


def _expect(text: str, place: int, character: str) -> int:
    """The place of what follows a character, with space around it."""
    place = _SPACE.match(text, place).end()
    if text[place] != character:
        raise ValueError(f"no {character}")
    return _SPACE.match(text, place + 1).end()


def _at_end(text: str, place: int, content: dict) -> dict:
    if _SPACE.match(text, place).end() != len(text):
        raise ValueError("more text")
    return content


def find_list(text: str, key: str) -> list | None:
    """A list of a json object without parsing the rest, None where a second look is needed.

    Args:
        text: of a file whose outermost value is an object.
        key: of the list. A text that has it twice may mean another one.
    """
    quoted = f'"{key}"'
    if text.count(quoted) != 1 or not text.rstrip().endswith("}"):
        return None
    try:
        place = _expect(text, text.index(quoted) + len(quoted), ":")
        found, _ = json.JSONDecoder().scan_once(text, place)
    except (StopIteration, IndexError, ValueError):
        return None
    return found if isinstance(found, list) else None


def pack_polygons(segmentation: list) -> list:
    """A list of polygons with those of plain numbers as ``array("d")``, the others as they are."""
    return [_pack(piece) for piece in segmentation]


def _pack(piece):
    if type(piece) is list and len(piece) >= _SHORTEST and set(map(type, piece)) <= _NUMBERS:
        try:
            return array("d", piece)
        except OverflowError:  # an integer that no float holds
            return piece
    return piece
