"""What plots show: values where they belong, axes that can be read."""

import math

from psis_d2.analysis.plots import (
    plot_best_overlap,
    plot_curve,
    plot_false_positives,
    plot_overlap,
    save_figure,
)

import pytest


def run(series, x, value, **extra):
    return {"series": series, "split": "", "seen": math.nan, "x": x, "value": value, **extra}


def shown_ticks(axes):
    """Labels of the x axis that stand within it."""
    axes.figure.canvas.draw()
    low, high = axes.get_xlim()
    ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    return [label.get_text() for place, label in ticks if low <= place <= high]


def test_shares_are_written_out_on_a_logarithmic_axis():
    figure = plot_curve([run("a", x, 5 * x) for x in (0.01, 0.1, 1)], "share", "AP", log=True)
    assert shown_ticks(figure.axes[0]) == ["0.01", "0.1", "1"]
    assert figure.axes[0].get_ylim()[1] > 5


@pytest.mark.parametrize("value", [0.0, 0.2])
def test_runs_that_have_learned_nothing_have_a_scale(value):
    figure = plot_curve([run("a", x, value) for x in (20.0, 30.0)], "categories", "AP")
    assert figure.axes[0].get_ylim() == (0, 1)
    bins = [{"label": "a", "group": "all", "to": 1, "objects": 3, "AP": value}]
    assert plot_overlap(bins, "all").axes[0].get_ylim() == (0, 1)


def test_a_line_goes_through_the_means_and_points_are_runs():
    rows = [run("a", 20.0, 1.0), run("a", 20.0, 3.0), run("a", 30.0, 6.0)]
    line, points = plot_curve(rows, "categories", "AP").axes[0].lines
    assert line.get_xydata().tolist() == [[20, 2], [30, 6]]
    assert points.get_xydata().tolist() == [[20, 1], [20, 3], [30, 6]]


def test_bars_are_shares_and_none_is_said():
    shares = {"background_share": 50.0, "seen_share": 30.0, "unseen_share": 20.0}
    none = dict.fromkeys(shares, math.nan)
    rows = [
        {"label": "ours", "group": "unseen", "unknown_share": 0.0, **shares},
        {"label": "theirs, " * 9, "group": "unseen", "unknown_share": math.nan, **none},
    ]
    axes = plot_false_positives(rows, "unseen").axes[0]
    ours = [bar for bar in axes.patches if round(bar.get_y() + bar.get_height() / 2) == 1]
    assert [(bar.get_x(), bar.get_width()) for bar in ours] == [(0, 50), (50, 30), (80, 20)]
    assert [text.get_text() for text in axes.texts][-1] == "no wrong pixels"
    assert all(len(part) <= 24 for x in axes.get_yticklabels() for part in x.get_text().split("\n"))


@pytest.mark.parametrize(
    ("sizes", "ticks"),
    [([17.0, 42.0], ["24", "32"]), ([4.0, 300.0], ["4", "8", "16", "32", "64", "128", "256"])],
)
def test_sizes_of_any_range_have_ticks(sizes, ticks, tmp_path):
    rows = [{"map": "saliency", "image_id": 1, "size": x, "overlap": 0.5} for x in sizes]
    figure = plot_best_overlap(rows)
    save_figure(str(tmp_path / "a.png"), figure)
    labels = shown_ticks(figure.axes[0])
    assert labels == ticks[:: len(ticks) // len(labels)] and len(labels) >= 2
    assert figure.axes[-1].get_yticks().tolist() == [1, 2]
