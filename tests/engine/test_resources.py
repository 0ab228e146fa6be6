"""What a run needs of the machine: estimates by hand, and refusals before the work."""

import ctypes
import os
import platform
import resource
import subprocess
import sys
from collections import namedtuple

import psis_d2  # noqa: F401
from psis_d2.engine import resources
from psis_d2.engine.checkpoint import Checkpointer
from psis_d2.errors import UserError

import pytest
import torch
from detectron2.utils.events import EventStorage

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("optimizer", "copies"),
    [
        (lambda p: torch.optim.SGD(p, lr=1.0), 1),
        (lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9), 2),
        (lambda p: torch.optim.AdamW(p, lr=1.0), 3),
    ],
)
def test_size_of_a_checkpoint(tmp_path, optimizer, copies):
    model = torch.nn.Linear(1000, 100)
    optimizer = optimizer(model.parameters())
    size = resources.checkpoint_bytes(model, optimizer)
    assert size == copies * (1000 * 100 + 100) * 4
    model(torch.ones(1, 1000)).sum().backward()
    optimizer.step()
    Checkpointer(model, str(tmp_path), optimizer=optimizer).save("model")
    assert (tmp_path / "model.pth").stat().st_size == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize(("free", "count"), [(10, 1), (19, 2), (19, 5)])
def test_no_room_for_the_first_checkpoints(monkeypatch, free, count):
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda path: Usage(0, 0, free * 10**6 - 1))
    with pytest.raises(UserError, match=f"writes {count} checkpoints of 10.0 MB, and .* are free"):
        resources.check_disk("out", 10**7, count)


def test_room_for_some_is_a_warning_and_for_all_nothing(monkeypatch, caplog):
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda path: Usage(0, 0, 5 * 10**7))
    resources.check_disk("out", 10**7, 5)
    assert caplog.text == ""
    resources.check_disk("out", 10**7, 6)
    assert "will be full before the end" in caplog.text
    resources.check_disk("s3://bucket/run", 10**12, 9)
    resources.check_disk("", 10**12, 9)


def test_open_files_are_raised_to_what_is_allowed(monkeypatch):
    limits = {"now": (100, 300)}
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda which, new: limits.update(now=new))
    resources.allow_open_files(14)
    assert limits["now"] == (300, 300)
    with pytest.raises(UserError, match="allows 300 open files, and 15 workers .* need some 304"):
        resources.allow_open_files(15)
    limits["now"] = (1024, resource.RLIM_INFINITY)
    resources.allow_open_files(15)
    assert limits["now"] == (65536, resource.RLIM_INFINITY)


def test_a_metric_keeps_its_last_values_only(monkeypatch):
    monkeypatch.setattr(resources, "_HISTORY", 3)
    with EventStorage() as storage:
        resources.forget_old_metrics(storage)
        for value in range(5):
            storage.put_scalar("loss", value)
    history = storage.history("loss")
    assert [value for value, _ in history.values()] == [2, 3, 4]
    assert (history.latest(), history.median(2), history.global_avg()) == (4, 3.5, 2)


RESIDENT = """
import resource
from psis_d2.engine.resources import keep_freed_memory
import torch

def resident_after_freeing(size):
    with open("/proc/self/statm", encoding="ascii") as file:
        before = int(file.read().split()[1])
    block = torch.ones(size, dtype=torch.uint8)
    del block
    with open("/proc/self/statm", encoding="ascii") as file:
        return (int(file.read().split()[1]) - before) * resource.getpagesize()

size = 200 * 10**6
assert resident_after_freeing(size) < size / 10, "the system has it again"
assert keep_freed_memory()
assert resident_after_freeing(size) > size * 0.9, "it is kept"
resident_after_freeing(size)  # another place, where what lies between them may go
assert resident_after_freeing(size) < size / 10, "the same pages serve the next block"
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_freed_memory_is_kept():
    """In a process of its own: the settings last as long as that."""
    names = ("MALLOC_", "GLIBC_TUNABLES")
    env = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    subprocess.run([sys.executable, "-c", RESIDENT], env=env, check=True)


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_the_allocators_settings_in_the_environment_stay(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("the allocator was touched"))
    assert not resources.keep_freed_memory()


def test_other_allocators_are_left_alone(monkeypatch):
    for variable in [v for v in os.environ if v.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())  # a C library without mallopt
    assert not resources.keep_freed_memory()
