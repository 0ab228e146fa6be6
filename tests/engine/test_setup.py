"""From a command line to a run: what is refused before it starts, and what its config holds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psis_d2  # noqa: F401
from psis_d2.engine import setup
from psis_d2.engine.expectations import settle_expectations, verify_expected
from psis_d2.engine.setup import build_config
from psis_d2.errors import UserError

import pytest
import train_net
from detectron2.data import DatasetCatalog, MetadataCatalog
from one_sentence import refusal

from tiny_data import command_line, write_tiny_data

ROOT = Path(__file__).parents[2]
QUICK = ROOT / "configs" / "quick"
pytestmark = pytest.mark.usefixtures("catalogs")
EXPECTED = [["segm_all", "AP", 50.0, 0.1], ["gtbox_seen", "IoU", 50.0, 0.1]]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_data(tmp_path_factory.mktemp("tiny"))


def configured(line):
    return build_config(train_net.parse_arguments([str(word) for word in line]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("TEST.BOXES gtt", "did you mean gt?"),
        ("TEST.MASKS grabcat", "did you mean grabcut?"),
        ("TEST.OVERLAP 3.0", "TEST.OVERLAP is 3.0"),
        ("TEST.BOX_SHRINK -1", "TEST.BOX_SHRINK is -1.0"),
        ("PSIS.FCN_UPSAMPLINGS 2", "would have no effect, since this model (GeneralizedRCNN, Par"),
        ("PSIS.TEACHER_STUDENT.TEACHER_OPTS ['PSIS.NO_SUCH',1]", "PSIS.NO_SUCH in PSIS.TEACHER"),
        ("MODEL.ROI_MASK_HEAD.NAME ShapPropMaskHead", "did you mean ShapePropMaskHead?"),
        ("TEST.AUG.ENABLED True", "psis_d2 tests every image once"),
        ("MODEL.KEYPOINT_ON True", "psis_d2 has no keypoints"),
    ],
)
def test_what_a_run_will_need_is_checked_before_data_is_read(options, words, tmp_path, monkeypatch):
    def reads(*_):
        raise AssertionError("data were read")

    if "would have no effect" not in words and "MASK_HEAD" not in options:
        monkeypatch.setattr(setup, "_use_data_files", reads)
    line = ["--config-file", QUICK / "shapeprop_shapes.yaml", "--num-gpus", "0"]
    assert words in refusal(configured, [*line, "OUTPUT_DIR", tmp_path, *options.split()])


def test_output_dirs_that_cannot_be_used(tmp_path, monkeypatch):
    line = ["--config-file", QUICK / "agnostic_shapes.yaml", "--num-gpus", "0", "OUTPUT_DIR"]
    file = tmp_path / "file"
    file.write_text("")
    assert f"but {file} is not a folder" in refusal(configured, [*line, file])
    assert f"but {file} is not a folder" in refusal(configured, [*line, file / "a" / "b"])
    assert "OUTPUT_DIR is ''" in refusal(configured, [*line, ""])
    assert configured([*line, tmp_path / "new" / "folder"]).OUTPUT_DIR
    assert not (tmp_path / "new").exists()  # nothing is made by looking
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert "is not a folder" in refusal(configured, [*line, tmp_path / "link" / "out"])
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root
    assert f"but {tmp_path} cannot be written to" in refusal(configured, [*line, tmp_path / "new"])


def test_an_output_dir_that_turns_out_not_to_be_writable(tmp_path, monkeypatch):
    line = ["--config-file", str(QUICK / "agnostic_shapes.yaml"), "--num-gpus", "0"]
    args = train_net.parse_arguments([*line, "OUTPUT_DIR", str(tmp_path / "out")])
    cfg = build_config(args)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(setup.tempfile, "TemporaryFile", full)
    with pytest.raises(UserError, match=r"out cannot be written to \(No space left on device\)"):
        setup.setup_run(cfg, args)


def test_the_config_of_a_run_can_be_used_again(data, tmp_path):
    """In another process, from another folder, without a word about its data files."""
    relative = {key: os.path.relpath(path) for key, path in data.items()}
    line = command_line(relative, tmp_path / "run", "SOLVER.MAX_ITER", 1, "TEST.BOXES", "gt")
    args = train_net.parse_arguments(line)
    train_net.main(args)
    own = tmp_path / "run" / "config.yaml"
    assert f"train:{relative['json']}" in own.read_text()
    again = ["--num-gpus", "0", "--config-file", str(own), "--eval-only"]
    again += ["MODEL.WEIGHTS", str(tmp_path / "run" / "model_final.pth")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_net.py"), *again, "OUTPUT_DIR", str(tmp_path / "eval")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "eval")
    )
    assert first == second


def test_data_files_of_a_config(data, tmp_path):
    line = command_line(data, tmp_path)
    cfg = configured(line)
    names = [f"{split}:{data['json']}" for split in ("train", "val")]
    registered = [[name, data["json"], data["images"]] for name in names]
    assert list(cfg.PSIS.DATA_FILES) == registered
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    (tmp_path / "run.yaml").write_text(cfg.dump())
    again = configured(["--config-file", tmp_path / "run.yaml", "--num-gpus", "0"])
    assert (again.PSIS, again.DATASETS) == (cfg.PSIS, cfg.DATASETS)
    assert again.MODEL.ROI_HEADS.NUM_CLASSES == 3
    assert set(names) <= set(DatasetCatalog)
    # other data from the command line take the place of these
    other = command_line(data, tmp_path)[4:8]
    assert other[0] == "--train-json"
    mine = configured(["--config-file", tmp_path / "run.yaml", "--num-gpus", "0", *other])
    assert mine.DATASETS.TEST == ()
    assert [name for name, *_ in mine.PSIS.DATA_FILES] == names[:1]


def settled(line) -> tuple[list, list[str]]:
    args = train_net.parse_arguments([str(word) for word in line])
    cfg = build_config(args)
    told = settle_expectations(cfg, args)
    return list(cfg.TEST.EXPECTED_RESULTS), told


def test_expected_results_are_of_the_data_of_their_file(data, tmp_path):
    line = command_line(data, tmp_path, config="agnostic_shapes")
    at = line.index("TEST.EXPECTED_RESULTS")
    rows, told = settled(line[:at] + line[at + 2 :])
    assert rows == []
    assert len(told) == 1
    assert "of other data" in told[0]
    here = ["--config-file", QUICK / "agnostic_shapes.yaml", "--num-gpus", "0"]
    here += ["OUTPUT_DIR", tmp_path]
    rows, told = settled(here)
    assert [row[0] for row in rows] == ["gtbox_seen", "gtbox_unseen", "bbox_all"]
    assert told == []
    assert settled([*here, "DATASETS.TEST", "[]"])[0] == []
    assert settled([*here, "DATASETS.TEST", "[]", "TEST.EXPECTED_RESULTS", EXPECTED])[0] == EXPECTED
    rows, told = settled([*here, "TEST.BOXES", "detected"])
    assert [row[0] for row in rows] == ["bbox_all"]
    assert "does not measure gtbox_seen, gtbox_unseen" in told[0]


def test_a_quick_config_on_own_data_ends_well(data, tmp_path):
    line = command_line(data, tmp_path, config="agnostic_shapes")
    at = line.index("TEST.EXPECTED_RESULTS")
    train_net.invoke_main(line[:at] + line[at + 2 :])
    assert "EXPECTED_RESULTS are those of other data" in (tmp_path / "log.txt").read_text()
    assert "EXPECTED_RESULTS: []" in (tmp_path / "config.yaml").read_text()


def test_expected_results_that_are_not_measured(data, tmp_path, caplog):
    line = command_line(data, tmp_path, "TEST.EXPECTED_RESULTS", EXPECTED, "TEST.BOXES", "both")
    cfg = configured(line)
    results = {"segm_all": {"AP": 50.05}, "gtbox_seen": {"AP": 1.0}}
    verify_expected(cfg, results)  # the one is met
    assert [x.getMessage() for x in caplog.records if x.levelname == "WARNING"] == [
        "TEST.EXPECTED_RESULTS has gtbox_seen IoU, which this run did not measure (its tasks: "
        "segm_all, gtbox_seen): not verified."
    ]
    verify_expected(cfg, {})
    with pytest.raises(SystemExit) as stop:
        verify_expected(cfg, {"segm_all": {"AP": 51.0}})
    assert stop.value.code == 1


def test_a_resumed_run_says_which_settings_it_keeps(data, tmp_path):
    options = ("DATASETS.TEST", "[]", "SOLVER.CHECKPOINT_PERIOD", 2)
    train_net.main(train_net.parse_arguments(command_line(data, tmp_path, *options)))
    again = ("SOLVER.MAX_ITER", 3, "SOLVER.BASE_LR", 0.002)
    line = ["--resume", *command_line(data, tmp_path, *options, *again)]
    train_net.main(train_net.parse_arguments(line))
    log = (tmp_path / "log.txt").read_text()
    words = "SOLVER.BASE_LR is 0.005 there, and the config's 0.002 has no effect; to change that"
    assert log.count(words) == 1
    assert "SOLVER.WEIGHT_DECAY is" not in log
    same = ["--resume", *command_line(data, tmp_path, *options, "SOLVER.MAX_ITER", 4)]
    train_net.main(train_net.parse_arguments(same))
    assert (tmp_path / "log.txt").read_text().count("goes on with its checkpoint's optimizer") == 1
    other = [*same, "SOLVER.OPTIMIZER", "SGD"]
    with pytest.raises(SystemExit) as stop:
        train_net.main(train_net.parse_arguments(other))
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("file", "options", "words"),
    [
        ("agnostic_shapes.yaml", ["TEST.BOXES", "gtt"], "did you mean gt?"),
        ("gone.yaml", [], "gone.yaml does not exist"),
        ("agnostic_shapes.yaml", ["PSIS.OPMASK.CAM_NORMALISED", "1"], "CAM_NORMALIZED now"),
    ],
)
def test_refusals_end_with_status_2(file, options, words, capsys):
    with pytest.raises(SystemExit) as stop:
        train_net.invoke_main(["--config-file", str(QUICK / file), "--num-gpus", "0", *options])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [x for x in lines if x.startswith("error: ") and words in x]
