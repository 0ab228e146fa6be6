"""Paired differences and rank correlation, by hand."""

import math

import pytest

from benchmarks.yardsticks.differences import (
    Comparison,
    difference,
    gap_shares,
    paired,
    rank_correlation,
    render_differences,
)
from benchmarks.yardsticks.rows import Row, Run


def row(name, **by_seed):
    runs = [
        Run(name, None if seed == "none" else int(seed[1:]), results={"gtbox_unseen": {"IoU": v}})
        for seed, v in by_seed.items()
    ]
    return Row(name, name, runs)


def test_the_interval_is_students():
    found = paired([1.0, 2.0, 3.0])  # sd 1, error 1 / sqrt(3), t of two degrees of freedom 4.303
    assert (found.mean, found.pairs) == (2.0, 3)
    assert found.half == pytest.approx(4.303 / math.sqrt(3))
    assert not found.claimed
    assert paired([2.0, 2.1, 2.2]).claimed and paired([-2.0, -2.1, -2.2]).claimed
    assert paired([5.0]).half is None and not paired([5.0]).claimed
    assert paired([1.0, 3.0]).half == pytest.approx(12.706)
    assert paired([1.0, 2.0, 3.0, 4.0, 5.0]).half == pytest.approx(2.776 * math.sqrt(2.5 / 5))


def test_seeds_that_only_one_row_has_are_left_out():
    rows = [row("a", s0=10.0, s1=20.0, s2=99.0), row("b", s1=18.0, s0=9.0), row("c", s7=1.0)]
    found = difference(rows, Comparison("a", "b"))
    assert (found.mean, found.pairs) == (1.5, 2)
    assert difference(rows, Comparison("a", "c")) is None
    assert difference(rows, Comparison("a", "nowhere")) is None
    assert difference(rows, Comparison("a", "b", metric="AP")) is None


def test_what_is_not_trained_is_compared_with_every_run():
    rows = [row("a", s0=10.0, s1=20.0), row("filled", none=5.0)]
    assert difference(rows, Comparison("a", "filled")).mean == 10.0
    assert difference(rows, Comparison("filled", "a")).mean == -10.0


def test_rank_correlation_by_hand():
    published = {"a": 0, "b": 1, "c": 2, "d": 3}
    assert rank_correlation(published, {"a": 1.0, "b": 5.0, "c": 6.0, "d": 9.0}) == 1
    assert rank_correlation(published, {"a": 9.0, "b": 6.0, "c": 5.0, "d": 1.0}) == -1
    # One swap of neighbors: 1 - 6 * 2 / (4 * 15).
    swapped = {"a": 1.0, "b": 6.0, "c": 5.0, "d": 9.0, "other": 0.0}
    assert rank_correlation(published, swapped) == pytest.approx(0.8)
    # Ties share their mean rank: 0.5, 0.5, 2 with 0, 1, 2; Pearson of these.
    tied = rank_correlation({"a": 0, "b": 0, "c": 1}, {"a": 1.0, "b": 2.0, "c": 3.0})
    assert tied == pytest.approx(1.5 / math.sqrt(1.5 * 2))
    assert math.isnan(rank_correlation({"a": 0, "b": 0}, {"a": 1.0, "b": 2.0}))


def test_the_table_says_what_is_claimed_and_how_many_were_compared():
    rows = [row("a", s0=10.0, s1=10.1, s2=10.2), row("b", s0=5.0, s1=5.0, s2=5.0), row("c", s0=5.0)]
    groups = [
        ("Words.", [Comparison("a", "b"), Comparison("b", "b"), Comparison("c", "b")]),
        ("None of these.", [Comparison("x", "b")]),
    ]
    text = render_differences(rows, groups)
    assert "| `a` | `b` | 3 | +5.1 | +4.9 to +5.3 | **yes** |" in text
    assert "| `b` | `b` | 3 | +0.0 | +0.0 to +0.0 | no |" in text
    assert "| `c` | `b` | 1 | +0.0 | - | one seed: no |" in text
    assert text.startswith("Words.\n\n| row |") and "None of these" not in text
    assert "2 comparisons have an interval, 1 of these exclude zero" in text
    assert "about 0.1 would by chance" in text
    assert render_differences(rows, [groups[1]]) == ""


def test_shares_of_the_gap_are_those_of_common_seeds():
    rows = [
        row("low", s0=40.0, s1=50.0),
        row("high", s0=60.0, s1=60.0, s2=99.0),
        row("half", s0=50.0),
        row("beyond", s1=65.0, s0=65.0),
        row("below", s0=30.0, s7=0.0),
        row("filled", none=52.0),
    ]
    assert gap_shares(rows, "low", "high") == pytest.approx(
        {"half": 0.5, "beyond": 20 / 15, "below": -0.5}
    )
    assert gap_shares(rows, "low", "nowhere") == {}
