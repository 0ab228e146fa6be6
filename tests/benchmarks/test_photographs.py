"""What so many photographs are worth: rows, one after the other."""

import csv
import subprocess
import sys

from benchmarks.measure import ROOT
from tiny_coco import TinyCoco, polygon


def test_the_filled_box_by_hand_and_only_once(tmp_path):
    coco = TinyCoco(tmp_path)
    image = coco.image()
    coco.add(image, 0, [0, 0, 20, 20])  # its mask fills its box
    coco.add(image, 1, [40, 40, 20, 20], polygon([40, 40, 10, 20]))  # half of it
    coco.register()
    seen, rows = tmp_path / "seen.txt", tmp_path / "rows.csv"
    seen.write_text("class0\n")
    files = ["--train-json", coco.path, "--train-images", tmp_path]
    files += ["--val-json", coco.path, "--val-images", tmp_path, "--seen", seen, "--output", rows]
    command = [sys.executable, "benchmarks/photographs.py", "--config", "none.yaml", "--sizes"]
    command = [*command, *map(str, files)]

    printed = [
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    with open(rows, newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["config"] == "filled box"
    assert (row["iou_seen"], row["iou_unseen"], row["iou_all"]) == ("100.0", "50.0", "75.0")
    assert (row["iou75_seen"], row["iou75_unseen"]) == ("100.0", "0.0")
    assert "filled box" in printed[0]
    assert "filled box" not in printed[1]
