"""A teacher-student model goes on without its teacher, from the command line."""

import json

from psis_d2.cli import run_command
from psis_d2.errors import UserError

import pytest
import torch
import train_net
import yaml

from tiny_data import command_line, write_tiny_data

pytestmark = pytest.mark.usefixtures("catalogs")
TASKS = ("TEST.BOXES", "both")


def run(line):
    return train_net.main(train_net.parse_arguments(line))


def tool_line(line, output):
    """The flags of psis-d2 train that export-student has, and its own."""
    start = line.index("--num-gpus")
    return ["--output", str(output), *line[:start], *line[start + 2 :]]


CASES = {  # row: its opts, what is logged, the teacher's parameters
    "teacher_student": (
        (),
        ("loss_mask_teacher", "pseudo_masks/foreground"),
        "roi_heads.mask_head.teacher.",
    ),
    "boxinst_teacher_student": (
        ("PSIS.FCOS.SCORE_THRESH_TEST", 0.0),
        ("loss_student",),
        "mask_head.controller.",
    ),
}


@pytest.mark.parametrize("row", CASES)
def test_export_and_use(row, tmp_path, capsys):
    opts, logged, teacher = CASES[row]
    opts = (*TASKS, *opts)
    data = write_tiny_data(tmp_path / "data")
    config = {"config": f"{row}_shapes"}
    run(command_line(data, tmp_path / "train", *opts, **config))
    trained = json.loads((tmp_path / "train" / "results.json").read_text())
    metrics = (tmp_path / "train" / "metrics.json").read_text()
    assert all(name in metrics for name in logged)
    weights = tmp_path / "train" / "model_final.pth"

    output = tmp_path / "exported" / "student.pth"
    line = command_line(data, tmp_path / "x", *opts, "MODEL.WEIGHTS", weights, **config)
    run_command("export-student", tool_line(line, output))
    assert "student.yaml --eval-only" in capsys.readouterr().out
    before = torch.load(weights, weights_only=True)
    after = torch.load(output, weights_only=True)
    assert after.keys() == {"model", "psis_d2"}
    dropped = before["model"].keys() - after["model"].keys()
    assert dropped and all(name.startswith(teacher) for name in dropped)
    assert not any(name.startswith(teacher) for name in after["model"])
    assert all(torch.equal(x, before["model"][name]) for name, x in after["model"].items())
    assert [p.name for p in sorted(output.parent.iterdir())] == ["student.pth", "student.yaml"]

    written = output.with_suffix(".yaml")
    assert yaml.safe_load(written.read_text())["MODEL"]["WEIGHTS"] == str(output)
    flags = [f"--{split}-{kind}" for split in ("train", "val") for kind in ("json", "images")]
    files = [x for flag in flags for x in (flag, data[flag.split("-")[-1]])]
    base = ["--eval-only", "--num-gpus", "0", "--config-file", str(written), *files]
    run([*base, "OUTPUT_DIR", str(tmp_path / "again")])
    assert json.loads((tmp_path / "again" / "results.json").read_text()) == trained

    # what has been exported has nothing to leave out
    line[line.index("MODEL.WEIGHTS") + 1] = str(output)
    assert "has no teacher" in refuses(tool_line(line, tmp_path / "twice.pth"))


def refuses(line):
    with pytest.raises(UserError) as refusal:
        run_command("export-student", line)
    return str(refusal.value)


def test_what_cannot_be_exported(tmp_path):
    data = write_tiny_data(tmp_path / "data")
    config = {"config": "teacher_student_shapes"}
    line = command_line(data, tmp_path / "x", **config)
    assert "add MODEL.WEIGHTS FILE" in refuses(tool_line(line, tmp_path / "a.pth"))
    assert "ends in .pth" in refuses(tool_line(line, tmp_path / "a.pt"))
    line += ["MODEL.WEIGHTS", str(tmp_path / "none.pth")]
    assert "none.pth does not exist" in refuses(tool_line(line, tmp_path / "a.pth"))
    torch.save({"model": {"pixel_mean": torch.ones(3, 1, 1)}}, tmp_path / "none.pth")
    sentence = refuses(tool_line(line, tmp_path / "a.pth"))
    assert "has weights for 0 of the " in sentence
    assert not (tmp_path / "a.pth").exists()
