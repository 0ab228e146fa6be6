"""Rounds of training and labeling: what each learns from, and how a killed job goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from psis_d2.data.supervision import usable_segmentation
from psis_d2.errors import UserError
from psis_d2.inference.self_training import self_train

import pytest

from tiny_data import command_line, write_tiny_data

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("catalogs")


def arguments(data, output, *opts):
    """Of the command line: two iterations a round, a checkpoint after each."""
    line = command_line(data, output, *opts, config="agnostic_shapes")
    return [*line, "SOLVER.CHECKPOINT_PERIOD", "1", "SEED", "3", "DATALOADER.NUM_WORKERS", "0"]


def start(data, output):
    line = [sys.executable, "-m", "psis_d2", "self-train", "--rounds", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line += arguments(data, output, "PSIS.MISSING_MASK_WEIGHT", "0.5")
    with open(f"{output}.txt", "w") as log:  # a pipe that nobody reads would stop the process
        return subprocess.Popen(line, env=environment, stdout=log, stderr=subprocess.STDOUT)


def test_two_rounds_with_a_kill_between(tmp_path):
    data, out = write_tiny_data(tmp_path / "data"), tmp_path / "out"
    process = start(data, out)
    second = out / "round2" / "model_0000000.pth"
    deadline = time.monotonic() + 240
    while process.poll() is None and not second.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert second.exists(), Path(f"{out}.txt").read_text()
    first_log = (out / "round1" / "log.txt").read_text()
    model = (out / "round1" / "model_final.pth").read_bytes()
    masks = (out / "round1" / "masks.json").read_bytes()
    process = start(data, out)
    assert process.wait(timeout=240) == 0, Path(f"{out}.txt").read_text()
    # round 1 was not touched, round 2 went on
    assert (out / "round1" / "log.txt").read_text() == first_log
    assert (out / "round1" / "model_final.pth").read_bytes() == model
    assert (out / "round1" / "masks.json").read_bytes() == masks
    log = (out / "round2" / "log.txt").read_text()
    assert (
        "Starting training from iteration 1" in log or "Starting training from iteration 2" in log
    )
    assert "8 of 8 instances without an annotated mask learn from one, of weight 0.5" in log
    assert "masks: 4 of 12 instances keep theirs (1 of 3 categories seen)" in log
    assert "learn from one" not in first_log
    for k in (1, 2):
        content = json.loads((out / f"round{k}" / "masks.json").read_text())
        assert all(usable_segmentation(a["segmentation"], 64, 64) for a in content["annotations"])
        assert sum("score" in a for a in content["annotations"]) == 8
        results = json.loads((out / f"round{k}" / "results.json").read_text())
        assert results["gtbox_seen" if "gtbox_seen" in results else "segm_seen"]


def test_other_data_does_not_go_on(tmp_path):
    data, out = write_tiny_data(tmp_path / "data"), tmp_path / "out"
    out.mkdir()
    (out / "boxes.json").write_text("{}")
    opts = ["OUTPUT_DIR", str(out)]
    with pytest.raises(UserError, match="another self-train"):
        self_train(
            str(ROOT / "configs" / "quick" / "agnostic_shapes.yaml"),
            opts,
            num_gpus=0,
            train_json=data["json"],
            train_images=data["images"],
        )
    with pytest.raises(UserError, match="--rounds is 0"):
        self_train(rounds=0)
