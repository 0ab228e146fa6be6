"""One run at a time in a folder. That a second process is refused is in test_processes.py."""

import json
import os
import socket

import psis_d2  # noqa: F401
from psis_d2.engine import lock
from psis_d2.engine.lock import locked
from psis_d2.errors import UserError

import pytest


def leave(folder, seconds=0.0, **holder):
    """A lock's file as another process left it."""
    path = folder / "run.lock"
    path.write_text(json.dumps(holder))
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - seconds))


def test_a_lock_says_who_holds_it_and_goes(tmp_path):
    folder = tmp_path / "new"
    with locked(str(folder)):
        held = json.loads((folder / "run.lock").read_text())
        assert held == {"host": socket.gethostname(), "pid": os.getpid()}
        with locked(str(folder)):  # an evaluation in the same run
            pass
        assert (folder / "run.lock").exists()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}'])
def test_what_a_killed_run_left_is_no_lock(tmp_path, content):
    (tmp_path / "run.lock").write_text(content)
    with locked(str(tmp_path)):
        pass
    leave(tmp_path, host=socket.gethostname(), pid=1)
    with locked(str(tmp_path)):
        pass


def test_a_run_on_another_machine_counts_while_it_shows_life(tmp_path):
    leave(tmp_path, host="elsewhere", pid=3)
    with pytest.raises(UserError, match="in use by process 3 on elsewhere"), locked(str(tmp_path)):
        pass
    leave(tmp_path, seconds=lock._SILENCE + 1, host="elsewhere", pid=3)
    with locked(str(tmp_path)):
        pass


def test_without_locks_of_the_file_system_the_process_is_looked_for(tmp_path, monkeypatch):
    def unsupported(*args):
        raise OSError("No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", unsupported)
    leave(tmp_path, host=socket.gethostname(), pid=os.getppid())
    with pytest.raises(UserError, match=f"process {os.getppid()} on"), locked(str(tmp_path)):
        pass
    leave(tmp_path, host=socket.gethostname(), pid=2**22 + 1)  # more than Linux gives
    with locked(str(tmp_path)):
        pass


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match=r"out cannot be written \(File exists\); give another"):
        locked(str(tmp_path / "out")).__enter__()


def test_no_folder_is_no_lock():
    with locked(""), locked("s3://bucket/run"):
        pass
