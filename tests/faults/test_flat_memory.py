"""A long training needs no more memory at its end than in its middle.

``PSIS_D2_MEMORY_MINUTES`` says how long it is: 5 minutes here, an hour for docs/reliability.md.
"""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from run_processes import Run, command
from tiny_data import command_line, write_tiny_data

pytestmark = pytest.mark.faults

MINUTES = float(os.environ.get("PSIS_D2_MEMORY_MINUTES", "5"))
SAMPLES = 600
ENDLESS = ("SOLVER.MAX_ITER", 10_000_000, "SOLVER.CHECKPOINT_PERIOD", 500, "SEED", 3)
ENDLESS += ("TEST.EVAL_PERIOD", 400, "DATALOADER.NUM_WORKERS", 1, "TEST.PICTURES", 2)


def resident(pid: int) -> int:
    """Bytes of memory that a process has, with what it shares."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    raise ProcessLookupError(pid)


def growth(times: Sequence[float], sizes: Sequence[float]) -> float:
    """Share by which the line through the second half of the samples rises over that half."""
    half = len(times) // 2
    x, y = np.asarray(times[half:], float), np.asarray(sizes[half:], float)
    slope = np.polyfit(x - x[0], y, 1)[0]
    return float(slope * (x[-1] - x[0]) / y.mean())


def test_growth_by_hand():
    assert growth([0, 1, 2, 3, 4, 5], [9, 9, 9, 100, 101, 102]) == pytest.approx(2 / 101)
    assert growth(range(10), [5] * 10) == pytest.approx(0)


def test_memory_stays_flat(tmp_path):
    """Of the training process and of its data loader's worker, evaluations and saves included."""
    data = write_tiny_data(tmp_path / "data", images=24)
    line = command_line(data, tmp_path / "out", *ENDLESS, config="agnostic_shapes")
    times, sizes = [], {"training": [], "worker": []}
    with Run(line, tmp_path / "log") as run:
        run.wait_for((tmp_path / "out" / "last_checkpoint").exists, 600)
        (worker, *_) = [pid for pid in run.family() if "resource_tracker" not in command(pid)]
        start = time.monotonic()
        while (now := time.monotonic() - start) < 60 * MINUTES:
            assert run.process.is_alive(), run.text()[-3000:]
            times.append(now)
            sizes["training"].append(resident(run.pid))
            sizes["worker"].append(resident(worker))
            time.sleep(60 * MINUTES / SAMPLES)
        os.kill(run.pid, signal.SIGTERM)
        assert run.status() == 143
        last = (tmp_path / "out" / "last_checkpoint").read_text()
    for name, values in sizes.items():
        print(
            f"{name}: {values[len(values) // 2] / 2**20:.1f} MB in the middle, "
            f"{values[-1] / 2**20:.1f} MB at the end of {MINUTES:g} minutes ({last}), "
            f"growth {100 * growth(times, values):.2f} % in the second half"
        )
    assert max(growth(times, values) for values in sizes.values()) < 0.01
