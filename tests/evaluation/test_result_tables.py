"""Results as text and as files."""

import math
import os

import psis_d2  # noqa: F401
from psis_d2.evaluation import flatten, format_results
from psis_d2.evaluation.base import class_groups, write_json

import pytest

RESULTS = {
    "segm_seen": {"AP": 12.345, "APl": math.nan},
    "segm_unseen": {"AP": 1.0, "APl": 0.0},
    "gtbox_unseen": {"IoU": 60.0, "N": 12.0},
}


def test_a_table_has_every_task_and_number():
    text = format_results(RESULTS)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line]
    assert ["measured", "categories", "AP", "APl"] in rows
    assert ["masks", "seen", "12.35", "nan"] in rows
    assert ["masks", "unseen", "1.00", "0.00"] in rows
    assert ["measured", "categories", "IoU", "N"] in rows
    assert ["masks in given boxes", "unseen", "60.00", "12"] in rows


def test_a_table_of_several_data_sets_and_of_none():
    text = format_results({"one": RESULTS, "two": {"bbox_all": {"AP": 7.0}}})
    assert text.startswith("one\n") and "\n\ntwo\n" in text
    assert format_results(RESULTS) in text and "7.00" in text
    assert "no results" in format_results({})
    assert "no results" in format_results({"one": {}, "two": RESULTS})


def test_flatten_joins_the_levels():
    flat = flatten({"one": {"segm_seen": {"AP": 1.0, "AP50": 2.0}}, "two": {"x": 3.0}})
    assert flat == {"one/segm_seen/AP": 1.0, "one/segm_seen/AP50": 2.0, "two/x": 3.0}


def test_groups_share_the_categories_out():
    assert class_groups([2, 0], 4) == {"seen": [0, 2], "unseen": [1, 3], "all": [0, 1, 2, 3]}
    assert class_groups([], 2) == {"unseen": [0, 1], "all": [0, 1]}
    with pytest.raises(ValueError, match="seen_ids"):
        class_groups([-1], 2)


def test_a_file_is_written_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "x.json"
    write_json(str(path), {"a": [1.5, math.nan, math.inf], 3: ("b", None)})
    before = path.read_text()
    assert before == '{"a": [1.5, null, null], "3": ["b", null]}'
    with pytest.raises(TypeError):
        write_json(str(path), {"a": 1, "b": object()})
    assert path.read_text() == before
    assert os.listdir(path.parent) == ["x.json"]
