"""The work of a yardstick, its trainings replaced by numbers."""

import math
from dataclasses import replace

from psis_d2.errors import UserError

import pytest

from benchmarks.yardsticks.bench import FILLED, Bench, rows_of, write_expected, write_page
from benchmarks.yardsticks.partial_shapes import PARTIAL_SHAPES
from benchmarks.yardsticks.rows import Row, Run
from benchmarks.yardsticks.runs import read_runs


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A bench whose trainings say what they were asked for in ``asked``."""
    (tmp_path / "yard.md").write_text("## Remarks\n")
    yardstick = replace(PARTIAL_SHAPES, file=tmp_path / "yard.py")
    asked = []

    def train_net(self, name, folder, options, flags=()):
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
    page, picture = tmp_path / "page.md", tmp_path / "page.png"
    rows = rows_of(bench.yardstick)
    write_page(bench.yardstick, rows, page, picture)
    text = page.read_text()
    assert text.index("| `agnostic` | 1 |") < text.index("| `oracle` | 1 |")
    assert "](page.png)" in text and text.endswith("## Remarks\n") and picture.stat().st_size > 999
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
