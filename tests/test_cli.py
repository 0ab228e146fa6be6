"""The command psis-d2: its list of commands, its answers to mistakes, its speed of start."""

import subprocess
import sys
import types

from psis_d2 import __version__, cli
from psis_d2.cli import main, run_command, subcommands
from psis_d2.errors import UserError

import pytest

from tiny_data import write_tiny_data


def test_the_overview_has_a_short_line_for_every_command(capsys):
    assert main([]) == main(["--help"]) == 0
    printed = capsys.readouterr().out
    names = subcommands()
    assert {"train", "doctor", "export-student", "make-shape-priors", "demo"} <= names.keys()
    assert not any(name.startswith("_") for name in names)
    lines = [line.split(maxsplit=1) for line in printed.splitlines() if line.startswith("  ")]
    assert [name for name, _ in lines[: len(names)]] == list(names)
    for name, about in lines[: len(names)]:
        assert about.endswith(".") and len(about) <= 90, f"{name}: {about}"


@pytest.mark.parametrize("name", subcommands())
def test_every_command_has_help_with_its_own_name(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: psis-d2 {name} ")
    assert f"\n    psis-d2 {name}" in printed  # an example


@pytest.mark.parametrize(
    "word, hint", [("tarin", "did you mean 'train'?"), ("xyzzy", "psis-d2 --help lists")]
)
def test_an_unknown_command_is_one_sentence(word, hint, capsys):
    with pytest.raises(SystemExit) as stop:
        main([word, "--config-file", "x"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: psis-d2 has no command '{word}'; ") and hint in line


def test_a_status_is_passed_on(monkeypatch):
    monkeypatch.setattr("psis_d2.doctor.main", lambda: 1)
    assert main(["doctor"]) == 1


def fake_command(monkeypatch, **functions):
    module = types.ModuleType("psis_d2_fake_command", "Do something.")
    vars(module).update({"add_arguments": lambda parser: None, **functions})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cli, "subcommands", lambda: {"fake": module.__name__})


def test_a_missing_package_is_named_but_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def run(args):
        raise ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")

    fake_command(monkeypatch, run=run)
    with pytest.raises(UserError, match="psis-d2 fake needs torch, which is not installed"):
        run_command("fake")

    def run_ours(args):
        raise ModuleNotFoundError("No module named 'psis_d2.nothing'", name="psis_d2.nothing")

    fake_command(monkeypatch, run=run_ours)
    with pytest.raises(ModuleNotFoundError):
        run_command("fake")


def test_help_and_mistakes_import_neither_torch_nor_detectron2():
    code = """
import sys
from psis_d2.cli import main
for words in (["--help"], ["--version"], ["tarin"]):
    try:
        main(words)
    except SystemExit:
        pass
assert not {"torch", "detectron2"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"psis-d2 {__version__}" in done.stdout


def test_a_reader_that_stops_is_no_error():
    command = f"{sys.executable} -m psis_d2 zoo configs | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout.count("\n") == 1 and done.stderr == ""


def test_two_processes_from_python_m_in_another_folder(tmp_path):
    """A spawned process imports the entry point once more, under another name."""
    line = ["train", "--config-file", "quick/agnostic_shapes", "--num-gpus", "0"]
    data = write_tiny_data(tmp_path / "data")
    line += ["--train-json", data["json"], "--train-images", data["images"]]
    line += ["--num-cpu-processes", "2", "SOLVER.IMS_PER_BATCH", "3", "OUTPUT_DIR", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "psis_d2", *line],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    # What both of them turn down, where nothing but a started process could; the run says it once.
    assert done.returncode == 2, done.stderr[-3000:]
    assert done.stderr.count("error: SOLVER.IMS_PER_BATCH is 3 and cannot be shared evenly") == 1
    assert "Traceback" not in done.stderr
