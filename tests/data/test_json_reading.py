"""The parser of data sets is json's, but for what it packs."""

import json
from array import array

import psis_d2  # noqa: F401
from psis_d2.data import json_reading
from psis_d2.data.json_reading import find_list, pack_polygons, parse_dataset

import pytest

TEXTS = [
    '{"annotations": [{"id": 1, "a": {"b": [1, 2.5]}}, {"id": 2}], "images": []}',
    ' {\n"images" : [ {"x": "}, {"} ] , "annotations" :\t[ {"s": "}, {"} ,\r\n{"id": 3} ] } \n',
    '{"annotations": [], "info": null}',
    '{"annotations": [1, "two", [3, {"four": 4}, {"five": 5}], {"six": 6}, {"seven": 7}]}',
    '{"annotations": {"id": 1}, "annotations": [{"id": 2, "id": 3}]}',
    '{"annotations": [{"id": NaN}, {"id": 18446744073709551617}, {"id": -9223372036854775809}]}',
    '{"annotations": [{"image_id": 1180591620717411303424}, {"image_id": 1.0}, {"id": 2}]}',
    '{"annotations": [{"ids": [{"id": 1}, {"id": 2}]}, {"id": 3}]}',
    '{"annotations": [{"name": "\\u00e9\\ud83d\\ude00 \\ud800"}, {"name": "é"}]}',
    '{"info": {"annotations": [{"id": 1}]}}',
    "{}",
    '[{"annotations": [{"id": 1}]}]',
    "3",
]
BROKEN = [
    *("", "{", '{"annotations"', '{"annotations": [', '{"annotations": [{"id": 1}', "{1: 2}"),
    *('{"annotations": [{"id": 1},]}', '{"annotations": [{"id": 1} {"id": 2}]}', '{"a": 1,}'),
    *('{"annotations": [{"id": 1}]} more', '{"annotations": [{"id": 1}]', '{"a" 1}'),
]


@pytest.fixture(params=["json", "orjson"], autouse=True)
def parser(request, monkeypatch):
    """With and without orjson, which gets as little as possible at a time."""
    monkeypatch.setattr(json_reading, "_CHUNK", 1)
    if request.param == "json":
        monkeypatch.setattr(json_reading, "orjson", None)
    elif json_reading.orjson is None:
        pytest.skip("orjson is not installed")


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_says_what_json_says(text):
    seen = []
    found = parse_dataset(text, lambda entry: seen.append(entry) or entry)
    expected = json.loads(text)
    assert repr(found) == repr(expected)  # NaN equals nothing
    entries = expected.get("annotations") if isinstance(expected, dict) else None
    assert repr(seen) == repr(entries if isinstance(entries, list) else [])


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_wrong_is_said_as_json_says_it(text):
    with pytest.raises(ValueError) as expected:
        json.loads(text)
    with pytest.raises(ValueError) as found:
        parse_dataset(text, lambda entry: entry)
    assert str(found.value) == str(expected.value)


def test_entries_are_packed_in_their_order():
    text = json.dumps({"annotations": [{"id": k} for k in range(500)], "images": [{"id": 1}]})
    found = parse_dataset(text, lambda entry: entry["id"])
    assert found == {"annotations": list(range(500)), "images": [{"id": 1}]}


def test_polygons_of_plain_numbers_become_arrays():
    plain, odd = [0, 1.5, 2, 3, 4, 5], [0, 1, 2, 3, 4, None]
    packed = pack_polygons([plain, odd, [1, 2], [0, 1, 2, 3, 4, True], [10**400] * 6, 7])
    assert packed == [array("d", plain), odd, [1, 2], [0, 1, 2, 3, 4, True], [10**400] * 6, 7]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"images": [{"a": 1}], "categories" : [{"id": 1}]}', [{"id": 1}]),
        ('{"categories": [{"id": 1}], "info": "\\"categories\\""}\n', [{"id": 1}]),
        ('{"categories": [{"id": 1}], "info": {"categories": []}}', None),
        ('{"categories": [{"id": 1}], "images": [', None),
        ('{"categories": [{"id": 1}', None),
        ('{"categories": 3}', None),
        ('{"categories" 3}', None),
        ("{}", None),
        ("[]", None),
    ],
)
def test_one_list_without_the_rest(text, found):
    assert find_list(text, "categories") == found
