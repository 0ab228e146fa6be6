"""Tables of runs, and the page in the repository that is made of one."""

import math
from concurrent.futures import ThreadPoolExecutor

from psis_d2.errors import UserError

import pytest

from benchmarks.measure import ROOT
from benchmarks.yardsticks.__main__ import YARDSTICKS
from benchmarks.yardsticks.bench import configs_of, page_of, rows_of, title_of
from benchmarks.yardsticks.partial_shapes import PARTIAL_SHAPES
from benchmarks.yardsticks.rows import Run
from benchmarks.yardsticks.runs import forget_runs, put_run, read_runs, write_runs

FIRST = Run(
    "a",
    0,
    "abc",
    "Brand, 2 cores",
    "2026-01-02",
    7.1 / 3,
    "0.1.0",
    "2.11.0+cpu",
    'PSIS.X "b, c"',
    {"bbox_all": {"AP": 0.1 + 0.2, "APl": 1e-17}, "gtbox_seen": {"IoU": 100 / 3, "N": 12.0}},
)
OTHER = Run("a", 10, results={"gtbox_seen": {"IoU": 5e-324}, "own_task": {"metric": -1.5}})
FILLED = Run("z", results={"gtbox_seen": {"IoU": 1.0}})


def test_runs_survive_a_table_bit_for_bit(tmp_path):
    path = tmp_path / "runs.csv"
    write_runs(path, [FILLED, OTHER, FIRST])
    assert read_runs(path) == [FIRST, OTHER, FILLED]
    before = path.read_bytes()
    write_runs(path, read_runs(path))
    assert path.read_bytes() == before
    assert len(before.splitlines()) == 4


def test_undefined_figures_are_not_those_that_were_not_measured(tmp_path):
    path = tmp_path / "runs.csv"
    undefined = Run("b", 1, results={"bbox_all": {"AP": math.nan}})
    write_runs(path, [FILLED, undefined])
    read, filled = read_runs(path)
    assert math.isnan(read.results["bbox_all"]["AP"])
    assert filled.results == FILLED.results


def test_a_run_replaces_that_of_its_config_and_seed(tmp_path):
    path = tmp_path / "runs.csv"
    assert read_runs(path) == []
    runs = [Run("a", seed, results={"t": {"m": float(seed)}}) for seed in range(20)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda run: put_run(path, run), [*runs, *runs]))
    assert read_runs(path) == runs
    again = Run("a", 3, results={"t": {"m": -1.0}})
    put_run(path, again)
    assert read_runs(path) == [*runs[:3], again, *runs[4:]]
    put_run(path, FILLED)
    forget_runs(path, ["a"])
    assert read_runs(path) == [FILLED]


def test_the_page_in_the_repository_is_that_of_its_runs_byte_for_byte():
    assert page_of(list(YARDSTICKS.values())).encode() == (ROOT / "RESULTS.md").read_bytes()


@pytest.mark.parametrize("name", YARDSTICKS)
def test_every_run_is_of_a_config_and_every_claim_holds(name):
    yardstick = YARDSTICKS[name]
    rows = rows_of(yardstick)
    assert len(read_runs(yardstick.runs_file)) == sum(len(row.runs) for row in rows)
    assert [claim.words for claim in yardstick.claims if not claim.holds(rows)] == []


def test_rows_are_configs_in_order_with_the_upper_bound_last():
    configs = configs_of(PARTIAL_SHAPES)
    assert list(configs)[0] == "agnostic" and list(configs)[-1] == "oracle"
    assert not any(name.startswith("Base") for name in configs)
    assert title_of(configs["shapeprop_retinamask"]) == "ShapeProp on RetinaMask"
    assert list(configs_of(PARTIAL_SHAPES, ["oracle", "deeper"])) == ["oracle", "deeper"]
    with pytest.raises(UserError, match="for nonsense; choose among agnostic, agnostic_gt,"):
        configs_of(PARTIAL_SHAPES, ["nonsense"])
