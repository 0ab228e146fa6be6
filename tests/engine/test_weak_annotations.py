"""Boxes and points of objects without a mask, from a json to the losses of a run."""

import json
from pathlib import Path

import psis_d2  # noqa: F401

import pytest
import train_net

from tiny_data import command_line, write_tiny_data


@pytest.mark.slow
def test_a_run_learns_from_boxes_and_points_of_a_json(tmp_path):
    data = write_tiny_data(tmp_path / "data")
    content = json.loads(Path(data["json"]).read_text())
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation.update(
            point_coords=[[x + w / 2, y + h / 2], [x + 0.1, y + 0.1]], point_labels=[1, 0]
        )
    Path(data["json"]).write_text(json.dumps(content))
    weak = ("PSIS.BOX_LOSSES", True, "PSIS.POINTS", True, "PSIS.PAIRWISE_WARMUP", 0)
    line = command_line(data, tmp_path / "out", *weak, config="agnostic_shapes")
    train_net.main(train_net.parse_arguments(line))
    metrics = [json.loads(x) for x in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    found = next(x for x in metrics if "loss_points" in x)
    assert all(found[name] > 0 for name in ("loss_projection", "loss_pairwise", "loss_points"))
    assert "objects learn from" in (tmp_path / "out" / "log.txt").read_text()
