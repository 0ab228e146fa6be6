"""The table of trials on a page of results."""

from benchmarks.yardsticks.partial_shapes_2 import PARTIAL_SHAPES_2
from benchmarks.yardsticks.trials import MARK, with_trials

HEAD = "row,images,batch,iterations,learns,rate,norm,dtype,seen/IoU,unseen/IoU,commit,chosen\n"


def test_a_table_stands_where_the_mark_is(tmp_path):
    path = tmp_path / "trials.csv"
    path.write_text(
        HEAD + "oracle,8,2,9,head,0.1,,float32,51.26,40.04,abc,\nx,1,1,1,y,1,BN,z,2,3,d,yes\n"
    )
    words = with_trials(f"Before\n\n{MARK}\n\nafter", path)
    assert words.startswith("Before\n\n| row |") and words.endswith("|\n\nafter")
    assert "| `oracle` | 8 | 2 | 9 | head | 0.1 | - | float32 | 51.3 | 40.0 | abc |" in words
    assert "| **`x`** | **1** |" in words and "**3.0** | **d** |" in words
    assert with_trials("no mark", tmp_path / "not there") == "no mark"


def test_partial_shapes_2_has_one_trial_that_it_settled_on():
    lines = PARTIAL_SHAPES_2.trials_file.read_text().splitlines()
    assert len([line for line in lines if line.endswith(",yes")]) == 1
