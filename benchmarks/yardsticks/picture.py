"""The picture of a page of results: mask IoU on seen and unseen categories, a line a method."""

from collections.abc import Sequence
from statistics import mean

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .rows import SEEN, UNSEEN, Row

_UNSEEN_COLOR, _SEEN_COLOR = "tab:blue", "tab:gray"


def results_picture(rows: Sequence[Row]) -> Figure:
    """A picture of the rows that have results, those best on unseen categories on top.

    A filled dot is the IoU of one seed on unseen categories in the annotations' boxes, the bar on
    it the mean; a ring is the mean on seen categories.

    Args:
        rows: as for the page.
    """
    measured = [row for row in rows if row.values(UNSEEN, "IoU")]
    measured.sort(key=lambda row: mean(row.values(UNSEEN, "IoU")))
    figure = Figure(figsize=(8, 1.2 + 0.24 * len(measured)), layout="constrained")
    axes = figure.add_subplot()
    for y, row in enumerate(measured):
        unseen, seen = row.values(UNSEEN, "IoU"), row.values(SEEN, "IoU")
        axes.plot([mean(unseen), mean(seen)], [y, y], color="0.85", linewidth=1)
        axes.plot(unseen, [y] * len(unseen), "o", color=_UNSEEN_COLOR, markersize=4, alpha=0.7)
        axes.plot(mean(unseen), y, "|", color=_UNSEEN_COLOR, markersize=11, markeredgewidth=2)
        axes.plot(mean(seen), y, "o", color=_SEEN_COLOR, markersize=5, fillstyle="none")
    axes.set_yticks(range(len(measured)), [row.name for row in measured], fontsize=8)
    axes.set_ylim(-0.7, len(measured) - 0.3)
    axes.set_xlabel("mask IoU in the annotations' boxes, %")
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    legend = [
        Line2D([], [], marker="o", linestyle="", color=_UNSEEN_COLOR, markersize=4),
        Line2D([], [], marker="|", linestyle="", color=_UNSEEN_COLOR, markeredgewidth=2),
        Line2D([], [], marker="o", linestyle="", color=_SEEN_COLOR, fillstyle="none"),
    ]
    words = ["unseen, each seed", "unseen, mean", "seen, mean"]
    figure.legend(legend, words, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure
