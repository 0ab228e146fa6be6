"""The journal of a long job."""

from psis_d2.errors import UserError
from psis_d2.inference.journal import Journal

import pytest


def test_finished_items_are_there_again(tmp_path):
    journal = Journal(str(tmp_path / "j"), {"model": "a"})
    journal.add(3, {"x": [1, 2]})
    journal.add(0, None)
    journal.close()
    again = Journal(str(tmp_path / "j"), {"model": "a"})
    assert again.done == {0, 3}
    assert dict(again.items()) == {3: {"x": [1, 2]}, 0: None}


@pytest.mark.parametrize("lost", range(1, 12))
def test_a_line_that_was_cut_off_does_not_count(tmp_path, lost):
    journal = Journal(str(tmp_path / "j"), {})
    journal.add(1, "first")
    journal.add(2, "second")
    journal.close()
    path = tmp_path / "j" / "part-0.jsonl"
    path.write_bytes(path.read_bytes()[:-lost])
    again = Journal(str(tmp_path / "j"), {})
    assert again.done == {1}
    again.add(2, "anew")
    assert dict(again.items()) == {1: "first", 2: "anew"}


def test_processes_share_a_job_and_their_number_may_change(tmp_path):
    for rank in range(3):
        journal = Journal(str(tmp_path / "j"), {}, rank)
        journal.add(rank, f"of {rank}")
        journal.close()
    assert Journal(str(tmp_path / "j"), {}, 0).done == {0, 1, 2}


def test_work_of_another_job_is_refused(tmp_path):
    Journal(str(tmp_path / "j"), {"model": "a", "boxes": "b"}).close()
    with pytest.raises(UserError, match="another model; remove"):
        Journal(str(tmp_path / "j"), {"model": "c", "boxes": "b"})


def test_a_done_job_leaves_nothing(tmp_path):
    journal = Journal(str(tmp_path / "j"), {})
    journal.add(0, 1)
    journal.remove()
    assert list(tmp_path.iterdir()) == []
