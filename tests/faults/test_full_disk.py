"""A disk that is really full: one sentence, and once there is room the run ends as if nothing was.

The disk is a small tmpfs, which only root may mount. ``tests/engine/test_processes.py`` stands in
for it by a limit of a file's size and by ``/dev/full``.
"""

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from run_processes import Run
from tiny_data import command_line, write_tiny_data

OPTS = ("SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 2, "DATASETS.TEST", "[]")
OPTS += ("SEED", 3, "DATALOADER.NUM_WORKERS", 0)
DISK = 256 << 20  # seven checkpoints


@pytest.fixture
def disk(tmp_path):
    """A folder with a disk of its own, small enough to be filled."""
    folder = tmp_path / "disk"
    folder.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    try:
        subprocess.run(line, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The uninterrupted run: its folder."""
    folder = tmp_path_factory.mktemp("whole")
    with Run(line_of(data, folder / "out"), folder / "log") as run:
        assert run.status(300) == 0, run.text()[-3000:]
    return folder / "out"


def line_of(data, output: Path) -> list[str]:
    return command_line(data, output, *OPTS, config="agnostic_shapes")


def fill(folder: Path, left: int) -> None:
    """Fill a disk with one more file until so many bytes are left."""
    path = folder / f"filler{len(list(folder.glob('filler*')))}"
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while (room := shutil.disk_usage(folder).free - left) > 0:
            file.write(bytes(min(room, 1 << 20)))


def tensors(path: Path) -> dict[str, torch.Tensor]:
    content = torch.load(path, weights_only=True)
    kept = content["trainer"]["_trainer"]["optimizer"]["state"]
    kept = {f"{i} {key}": x for i, state in kept.items() for key, x in state.items()}
    return content["model"] | kept


# Bytes that are left: none at all for config.yaml and the logs, a little for the logs but not for a
# checkpoint. The last starts with room for all and loses it at the first checkpoint.
ROOM = {"no byte": 0, "a page": 4096, "logs alone": 200_000, "the first checkpoint": -1}


@pytest.mark.parametrize(
    "room",
    [
        pytest.param("no byte", marks=pytest.mark.faults),
        pytest.param("a page", marks=pytest.mark.faults),
        pytest.param("logs alone", marks=pytest.mark.faults),
        "the first checkpoint",
    ],
)
def test_a_full_disk_costs_nothing_once_there_is_room(data, whole, disk, tmp_path, room):
    size = (whole / "model_final.pth").stat().st_size
    line, left = line_of(data, disk / "out"), ROOM[room]
    # before the start a run asks for room for two checkpoints
    fill(disk, left if left >= 0 else int(2.5 * size))
    with Run(line, tmp_path / "log") as run:
        if left < 0:
            run.wait_for((disk / "out" / "last_checkpoint").exists, 300)
            fill(disk, 0)
        assert run.status(300) == 2
        (sentence,) = run.errors()
        words = ("disk is full", "cannot be written", "has no room")
        assert any(word in sentence for word in words), sentence
    there = sorted(path.name for path in (disk / "out").glob("model_*")) if left < 0 else []
    assert not list(disk.rglob("*.part"))
    for name in there:  # whatever has its name is whole
        tensors(disk / "out" / name)
    for path in disk.glob("filler*"):
        path.unlink()
    with Run(["--resume", *line], tmp_path / "log2") as run:
        assert run.status(300) == 0, run.text()[-3000:]
    resumed, expected = (tensors(x / "model_final.pth") for x in (disk / "out", whole))
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())
