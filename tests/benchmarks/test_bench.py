"""The work of a yardstick, its trainings replaced by numbers."""

import math
from dataclasses import replace

from psis_d2.errors import UserError

import pytest

from benchmarks.yardsticks.bench import FILLED, Bench, rows_of, write_expected, write_page
from benchmarks.yardsticks.partial_shapes import PARTIAL_SHAPES
from benchmarks.yardsticks.partial_shapes_2 import PARTIAL_SHAPES_2
from benchmarks.yardsticks.rows import Row, Run
from benchmarks.yardsticks.runs import read_runs


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A bench whose trainings say what they were asked for in ``asked``."""
    (tmp_path / "yard.md").write_text("## Remarks\n")
    yardstick = replace(PARTIAL_SHAPES, file=tmp_path / "yard.py")
    asked = []

    def train_net(self, config, folder, options, flags=()):
        name = config.stem.removesuffix("_shapes")
        asked.append((name, folder.name, options, list(flags)))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model_final.pth").touch()
        value = 40.0 + len(asked)
        task = "shrunk_gtbox_unseen" if flags else "gtbox_seen"
        return {"gtbox_unseen": {"IoU": value}, task: {"IoU": value, "APl": math.nan}}

    monkeypatch.setattr(Bench, "_train_net", train_net)
    made = Bench(yardstick, tmp_path / "out")
    object.__setattr__(made, "asked", asked)
    return made


def test_a_run_is_kept_and_not_repeated(bench):
    done = bench.run("agnostic", 3)
    assert bench.asked == [("agnostic", "agnostic-3", ["SEED", "3"], [])]
    assert done.options == "TEST.BOXES both SEED 3" and done.seed == 3 and done.minutes >= 0
    assert done.commit and done.machine and done.date and done.torch and done.psis_d2
    again = bench.run("agnostic", 3)
    assert len(bench.asked) == 1
    assert again.results["gtbox_unseen"] == {"IoU": 41.0}
    assert [(run.config, run.seed) for run in read_runs(bench.yardstick.runs_file)] == [
        ("agnostic", 3)
    ]


def test_measuring_again_adds_what_is_new(bench):
    bench.run("agnostic", 3)
    bench.measure_again("agnostic", 3, ["TEST.BOX_SHRINK", "0.75"])
    name, folder, options, flags = bench.asked[1]
    assert (name, folder, flags) == ("agnostic", "again", ["--eval-only"])
    assert options[0] == "MODEL.WEIGHTS" and options[2:] == ["TEST.BOX_SHRINK", "0.75"]
    (run,) = read_runs(bench.yardstick.runs_file)
    assert run.results["gtbox_unseen"] == {"IoU": 41.0}  # of the first time
    assert run.results["shrunk_gtbox_unseen"]["IoU"] == 42.0
    assert run.options == "TEST.BOXES both SEED 3; TEST.BOX_SHRINK 0.75"
    with pytest.raises(UserError, match="deeper-0/model_final.pth is not there; train the row"):
        bench.measure_again("deeper", 0, ["TEST.BOX_SHRINK", "0.75"])


def test_a_page_is_made_of_what_is_there(bench, tmp_path):
    bench.run("oracle", 0)
    bench.run("agnostic", 0)
    page, picture = tmp_path / "page.md", tmp_path / "docs" / "page.png"
    rows = rows_of(bench.yardstick)
    write_page([replace(bench.yardstick, picture="docs/page.png")], page)
    text = page.read_text()
    assert text.index("| `agnostic` | 1 |") < text.index("| `oracle` | 1 |")
    assert (
        "](docs/page.png)" in text
        and text.endswith("## Remarks\n")
        and picture.stat().st_size > 999
    )
    assert [row.name for row in rows if row.runs] == ["agnostic", "oracle"]
    assert rows[0].name == FILLED


def test_expected_results_are_written_in_place_of_earlier_ones(tmp_path):
    config = tmp_path / "x.yaml"
    config.write_text("# A title.\nMODEL:\n  MASK_ON: True\nOUTPUT_DIR: out\n")
    for value in (50.0, 60.0):
        run = Run("x", 0, results={"gtbox_seen": {"IoU": value}})
        write_expected(config, Row("x", "X", [run]))
    text = config.read_text()
    assert text.count("EXPECTED_RESULTS") == 1
    assert '    - ["gtbox_seen", "IoU", 60.0, 3.0]\nOUTPUT_DIR: out\n' in text
    config.write_text("MODEL:\nTEST:\n  OVERLAP: 0.3\nOUTPUT_DIR: out\n")
    with pytest.raises(UserError, match="has other TEST keys"):
        write_expected(config, Row("x", "X", [run]))


@pytest.fixture
def masks(bench, tmp_path):
    """The same, of a yardstick whose rows start from a detector."""
    (tmp_path / "masks.md").touch()
    yardstick = replace(PARTIAL_SHAPES_2, file=tmp_path / "masks.py", home="home")
    made = Bench(yardstick, tmp_path / "out" / "masks")
    object.__setattr__(made, "asked", bench.asked)
    return made


def test_rows_start_from_one_detector_that_is_trained_once(masks, tmp_path):
    home = tmp_path / "out" / "home"
    weights = ["MODEL.WEIGHTS", str(home / "detector" / "model_final.pth")]
    for _ in range(2):
        masks.train_detector()
    masks.run("baseline", 1)
    masks.run("grabcut_test", 1)
    masks.run("grabcut_test", 2)
    kept = ["PSIS.KEEP_FEATURES", str(home / "features")]
    assert masks.asked == [
        ("Base-detector", "detector", ["TEST.BOXES", "detected"], []),
        ("baseline", "baseline-1", ["SEED", "1", *weights, *kept], []),
        ("grabcut_test", "grabcut_test", weights, ["--eval-only"]),
    ]
    runs = read_runs(masks.yardstick.runs_file)
    assert [(run.config, run.seed) for run in runs] == [
        ("baseline", 1),
        ("detector", None),
        ("grabcut_test", None),
    ]
    assert all(str(tmp_path) not in run.options for run in runs)  # no paths of this machine
    assert {row.name for row in rows_of(masks.yardstick) if row.runs} == {
        run.config for run in runs
    }


def test_a_row_learns_from_masks_that_another_rows_model_drew(masks, monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(Bench, "_in_own_process", lambda self, command, log: called.append(command))
    masks.train_detector()
    masks.run("psis_selftrained", 1)
    assert [asked[:2] for asked in masks.asked[1:]] == [
        ("psis", "psis-1"),
        ("psis_selftrained", "psis_selftrained-1"),
    ]
    teacher = tmp_path / "out" / "masks" / "psis-1"
    (command,) = called
    assert command[2:5] == ["psis_d2", "autolabel", str(teacher / "model_final.pth")]
    assert "--all" in command  # no true mask is left in
    assert "PSIS.MISSING_MASKS" not in masks.asked[1][2]
    assert masks.asked[2][2][-2:] == ["PSIS.MISSING_MASKS", str(teacher / "masks.json")]
    kept = {run.config: run.options for run in read_runs(masks.yardstick.runs_file)}
    assert kept["psis_selftrained"] == "TEST.BOXES gt SEED 1"  # no paths of this machine


def test_data_files_are_looked_for_in_the_folder_that_is_named(bench, tmp_path):
    yardstick = replace(bench.yardstick, data_files=(("photos_here", "a/b.json", "images"),))
    with pytest.raises(UserError, match="holds a/b.json by --data"):
        Bench(yardstick, tmp_path).register_data()
    Bench(yardstick, tmp_path, data=tmp_path).register_data()
    from detectron2.data import DatasetCatalog, MetadataCatalog

    assert MetadataCatalog.get("photos_here").json_file == str(tmp_path / "a" / "b.json")
    DatasetCatalog.remove("photos_here")
    MetadataCatalog.remove("photos_here")
