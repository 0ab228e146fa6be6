"""One number of many runs: what is read, compared and refused."""

import json
import math

from psis_d2.analysis import curve_rows, read_runs, spoken_metric
from psis_d2.data.splits import resolve_seen_classes
from psis_d2.evaluation.ground_truth import load_ground_truth

import pytest
from one_sentence import refusal


@pytest.fixture
def listed(tmp_path):
    """Write a list of runs and their results; returns its path."""

    def write(head, *runs):
        lines = [head]
        for number, (line, value) in enumerate(runs):
            (tmp_path / f"{number}.json").write_text(json.dumps({"segm_unseen": {"AP": value}}))
            lines.append(line.replace("RESULTS", f"{number}.json"))
        path = tmp_path / "runs.csv"
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    return write


def test_x_is_the_number_of_seen_categories(listed):
    path = listed(
        "series,split,results",
        ("maskx,random-40-0,RESULTS", 22.0),
        ("maskx,maskx-20-3,RESULTS", 20.0),
        ("agnostic,voc,RESULTS", 18.0),
    )
    rows = curve_rows(read_runs(path))
    assert [(r["series"], r["split"], r["seen"], r["x"], r["value"]) for r in rows] == [
        ("agnostic", "voc", 20, 20, 18.0),
        ("maskx", "maskx-20-3", 20, 20, 20.0),
        ("maskx", "random-40-0", 40, 40, 22.0),
    ]


def test_relative_to_a_baseline_at_the_mean_number_of_objects(listed, tiny):
    """MaskX R-CNN's Fig. 3: of two classes with 3 and 1 objects."""
    data = tiny()
    image = data.image()
    for category in (0, 0, 0, 1):
        data.add(image, category, [0, 0, 9, 9])
    truth = load_ground_truth(data.register())
    first = data.folder / "first.txt"
    first.write_text("class0\n")
    path = listed(
        "series,split,results",
        (f"base,{first},RESULTS", 20.0),
        ("base,all,RESULTS", 30.0),
        (f"ours,{first},RESULTS", 25.0),
        ("ours,all,RESULTS", 33.0),
    )
    rows = curve_rows(read_runs(path), truth=truth, relative_to="base")
    assert [(r["series"], r["seen"], r["x"], r["baseline"]) for r in rows] == [
        ("ours", 2, 2.0, 30.0),
        ("ours", 1, 3.0, 20.0),
    ]
    assert [r["increase"] for r in rows] == pytest.approx([10, 25])


def test_shares_of_the_data(listed):
    path = listed("series,x,results", ("a,0.01,RESULTS", 5), ("a,1,RESULTS", 9))
    rows = curve_rows(read_runs(path))
    assert [(row["x"], row["value"]) for row in rows] == [(0.01, 5), (1, 9)]
    assert math.isnan(rows[0]["seen"]) and len(resolve_seen_classes("all", ["a"])) == 1


@pytest.mark.parametrize(
    "head, line, words",
    [
        ("series,split", "a,voc", "has no column results; add it"),
        ("series,results", "a,RESULTS", r"has no column split (or x)"),
        ("series,split,results", ",voc,RESULTS", "Line 2 of"),
        ("series,x,results", "a,many,RESULTS", "is 'many'; give a number"),
        ("series,split,results", "a,vox,RESULTS", "did you mean 'voc'"),
        ("series,x,results", "a,1,none.json", "Cannot read the results"),
    ],
)
def test_lists_that_are_refused(listed, head, line, words):
    path = listed(head, (line, 1.0))
    assert words in refusal(lambda: curve_rows(read_runs(path)))


def test_what_is_not_there_is_named(listed, tmp_path):
    path = listed(
        "series,x,results", ("a,1,RESULTS", 0.0), ("b,1,RESULTS", 2.0), ("b,2,RESULTS", 2)
    )
    assert "did you mean segm_unseen/AP" in refusal(
        lambda: curve_rows(read_runs(path), metric="segm_unsen/AP")
    )
    assert "series 'c'" in refusal(lambda: curve_rows(read_runs(path), relative_to="c"))
    assert "no counterpart" in refusal(lambda: curve_rows(read_runs(path), relative_to="a"))
    assert "Cannot read the list" in refusal(read_runs, str(tmp_path / "none.csv"))
    (tmp_path / "runs.csv").write_text("series,x,results\n")
    assert "lists no runs" in refusal(read_runs, path)


@pytest.mark.parametrize(
    ("metric", "spoken"),
    [
        ("segm_unseen/AP", "mask AP, unseen categories"),
        ("bbox_all/AP50", "box AP50, all categories"),
        ("segm_novel/AP", "mask AP, novel categories"),
        ("gtbox_unseen/IoU", "gtbox_unseen IoU"),
        ("segm_overlapped_all/AP", "segm_overlapped_all AP"),
    ],
)
def test_a_metric_on_an_axis(metric, spoken):
    assert spoken_metric(metric) == spoken
