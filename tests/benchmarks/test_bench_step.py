"""The benchmark of steps: its columns belong together."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_step.py"
OTHERS = ("ms of the head", "ms loader", "ms evaluation")  # no parts of a step


@pytest.mark.slow
def test_parts_add_up_and_mask_rcnn_is_the_measure(tmp_path):
    words = [sys.executable, str(SCRIPT), "--threads", "1", "--size", "64", "--seconds", "0"]
    words += ["--configs", "maskrcnn_agnostic_R50", "--save", str(tmp_path)]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    (path,) = [x for x in tmp_path.glob("*.csv") if "waits" not in x.name]
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["mode"]) for row in rows] == [
        (model, mode)
        for model in ("Mask R-CNN", "maskrcnn_agnostic_R50")
        for mode in ("train", "test")
    ]
    for row in rows:
        excess = float(row["x time"]) - float(row["x GFLOP"])
        assert float(row["excess"]) == pytest.approx(excess, abs=0.011)
        parts = [float(row[f"GFLOP {x}"]) for x in ("backbone", "proposals", "box head", "head")]
        assert sum(parts) == pytest.approx(float(row["GFLOP"]), abs=0.25) and min(parts) > 0
        times = [float(v) for k, v in row.items() if k.startswith("ms ") and k not in OTHERS and v]
        assert sum(times) == pytest.approx(float(row["ms"]), rel=0.01)
    plain, agnostic = rows[0], rows[2]
    assert plain["x time"] == plain["x GFLOP"] == "1.00"
    # Half of the objects have a mask; at test, as many boxes have one.
    assert float(agnostic["GFLOP head"]) < 0.7 * float(plain["GFLOP head"])
    assert float(rows[3]["GFLOP head"]) == pytest.approx(float(rows[1]["GFLOP head"]), rel=0.05)
