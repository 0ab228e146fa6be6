"""Files that appear as a whole or not at all, and what killed writers leave behind."""

import multiprocessing
import os
import subprocess
import sys

from psis_d2.files import remove_unfinished, written_at_once

import pytest


@pytest.mark.parametrize(("binary", "old", "new"), [(False, "old", "new"), (True, b"\0o", b"\0n")])
def test_the_name_has_the_old_content_until_the_block_ends(tmp_path, binary, old, new):
    path = tmp_path / "deep" / "file"

    def read():
        return path.read_bytes() if binary else path.read_text()

    with written_at_once(str(path), binary) as file:
        file.write(old)
        assert not path.exists()
    with written_at_once(str(path), binary) as file:
        file.write(new)
        file.flush()
        assert read() == old
    assert read() == new
    assert os.listdir(path.parent) == ["file"]


def test_an_exception_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), written_at_once(str(path)) as file:
        file.write("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append("fsync") or fsync(handle))
    monkeypatch.setattr(os, "replace", lambda *names: calls.append("replace") or replace(*names))
    with written_at_once(str(tmp_path / "file")) as file:
        file.write("x")
    assert calls == ["fsync", "replace", "fsync"]


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_stays(tmp_path):
    code = (
        "import os, sys; from psis_d2.files import written_at_once\n"
        "with written_at_once(sys.argv[1]) as file: os.kill(os.getpid(), 9)"
    )
    target = str(tmp_path / "sub" / "a.json")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, target], env=environment)
    (left,) = os.listdir(tmp_path / "sub")
    assert left.endswith(".part")
    with written_at_once(target) as file:
        file.write("whole")
        assert remove_unfinished(str(tmp_path)) == [str(tmp_path / "sub" / left)]
    assert os.listdir(tmp_path / "sub") == ["a.json"]


def test_unfinished_files_of_another_machine_stay_for_a_day(tmp_path):
    names = [f"a.elsewhere.7.{'0' * 12}.part", f"b.elsewhere.7.{'0' * 12}.part", "mine.part"]
    for name in names:
        (tmp_path / name).write_text("")
    two_days_ago = (tmp_path / names[0]).stat().st_mtime - 2 * 24 * 3600
    os.utime(tmp_path / names[1], (two_days_ago, two_days_ago))
    assert remove_unfinished(str(tmp_path)) == [str(tmp_path / names[1])]
    assert sorted(os.listdir(tmp_path)) == [names[0], names[2]]


def _write_often(path, letter):
    for _ in range(50):
        with written_at_once(path) as file:
            file.write(letter * 1000)


def test_two_processes_that_write_one_file_leave_it_whole(tmp_path):
    path = str(tmp_path / "file")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(path, letter)) for letter in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    with open(path) as file:
        assert file.read() in ("a" * 1000, "b" * 1000)
    assert os.listdir(tmp_path) == ["file"]
