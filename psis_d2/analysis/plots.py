"""The analyses' plots. Each shows rows that are also written as CSV."""

import math
from collections.abc import Sequence

from psis_d2.analysis.false_positives import PLACES
from psis_d2.errors import UserError
from psis_d2.files import written_at_once

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

# Told apart by people who see no red or no green, too (Okabe and Ito).
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_PLACE_COLORS = ("#b0b0b0", "#0072b2", "#d55e00", "#f0e442")
_MARKS = "os^Dv*"


def save_figure(path: str, figure: Figure) -> None:
    """Write a figure as PNG, as a whole or not at all.

    Raises:
        UserError: the path cannot be written.
    """
    try:
        with written_at_once(path, binary=True) as file:
            figure.savefig(file, format="png", dpi=150)
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror or error}).") from error


def plot_overlap(rows: Sequence[dict], group: str) -> Figure:
    """AP over bins of overlap, a line a label; the numbers of objects stand below the bins."""
    figure, axes = _figure(6.4, 4.2)
    rows = [row for row in rows if row["group"] == group]
    labels = list(dict.fromkeys(row["label"] for row in rows))
    for number, label in enumerate(labels):
        own = [row for row in rows if row["label"] == label]
        axes.plot([row["to"] for row in own], [row["AP"] for row in own], **_style(number, label))
    ticks = [row for row in rows if row["label"] == labels[0]]
    axes.set_xticks(
        [row["to"] for row in ticks],
        [f"{row['to']:g}\n{row['objects']}" for row in ticks],
        fontsize=8,
    )
    axes.set_xlabel("overlap up to; objects")
    axes.set_ylabel(f"mask AP ({group} categories)")
    axes.set_ylim(bottom=0)
    _legend(axes, labels)
    return figure


def plot_false_positives(rows: Sequence[dict], group: str) -> Figure:
    """Shares of the places where wrong pixels lie, a bar a label."""
    rows = [row for row in rows if row["group"] == group]
    figure, axes = _figure(6.4, 1.3 + 0.5 * len(rows))
    heights = np.arange(len(rows))[::-1]
    left = np.zeros(len(rows))
    for place, color in zip(PLACES, _PLACE_COLORS, strict=True):
        shares = np.nan_to_num([row[f"{place}_share"] for row in rows])
        if place == "unknown" and not shares.any():
            continue
        axes.barh(heights, shares, left=left, color=color, label=place, height=0.6)
        for height, share, start in zip(heights, shares, left, strict=True):
            if share >= 6:
                text = f"{share:.0f} %"
                axes.text(start + share / 2, height, text, ha="center", va="center", fontsize=8)
        left = left + shares
    axes.set_yticks(heights, [row["label"] for row in rows])
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"wrong pixels of masks of {group} categories, in percent")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, frameon=False, fontsize=8)
    return figure


def plot_best_overlap(rows: Sequence[dict]) -> Figure:
    """Density of the best overlap by the object's size, a panel a map."""
    names = list(dict.fromkeys(row["map"] for row in rows))
    figure = Figure(figsize=(4.2 * len(names), 3.8), layout="constrained")
    panels = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    largest = max(row["size"] for row in rows)
    sizes = np.geomspace(4, max(largest * 1.01, 8), 41)
    overlaps = np.linspace(0, 1, 41)
    counts = []
    for name in names:
        own = [row for row in rows if row["map"] == name]
        x, y = ([row[key] for row in own] for key in ("size", "overlap"))
        counts.append((np.histogram2d(np.maximum(x, 4), y, (sizes, overlaps))[0].T, np.mean(y)))
    top = max(count.max() for count, _ in counts)
    for panel, name, (count, mean) in zip(panels, names, counts, strict=True):
        shown = panel.pcolormesh(
            sizes, overlaps, np.ma.masked_equal(count, 0), norm=LogNorm(1, max(top, 2))
        )
        panel.set_xscale("log")
        panel.set_title(f"{name}, mean {mean:.2f}", fontsize=10)
    figure.supxlabel("size of the object, square root of its area in pixels", fontsize=10)
    panels[0].set_ylabel("best overlap")
    figure.colorbar(shown, ax=list(panels), label="objects")
    return figure


def plot_curve(rows: Sequence[dict], x_label: str, y_label: str) -> Figure:
    """Values over x: a point a run; a line through the means where runs share an x."""
    figure, axes = _figure(6.4, 4.2)
    key = "increase" if "increase" in rows[0] else "value"
    if key == "increase" and len({row["x"] for row in rows}) == len(rows):
        # MaskX R-CNN's Fig. 3: each run has an x of its own, and its number of categories a mark.
        groups = sorted({(row["series"], row["seen"]) for row in rows}, key=str)
        series = {group[0] for group in groups}
        for number, (name, seen) in enumerate(groups):
            own = [row for row in rows if (row["series"], row["seen"]) == (name, seen)]
            count = "" if math.isnan(seen) else f"{seen:.0f} categories"
            label = ", ".join(filter(None, (name if len(series) > 1 or not count else "", count)))
            style = _style(number, label) | {"linestyle": "none"}
            axes.plot([row["x"] for row in own], [row[key] for row in own], **style)
        labels = groups
    else:
        labels = list(dict.fromkeys(row["series"] for row in rows))
        for number, name in enumerate(labels):
            own = [row for row in rows if row["series"] == name]
            places = sorted({row["x"] for row in own})
            means = [np.mean([row[key] for row in own if row["x"] == x]) for x in places]
            style = _style(number, name)
            axes.plot(places, means, **style | {"marker": "", "label": None})
            points = style | {"linestyle": "none", "alpha": 0.6}
            axes.plot([row["x"] for row in own], [row[key] for row in own], **points)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25)
    _legend(axes, labels)
    return figure


def _figure(width: float, height: float):
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _style(number: int, label: str) -> dict:
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": _MARKS[number % len(_MARKS)],
        "markersize": 5,
        "label": label,
    }


def _legend(axes, labels: Sequence) -> None:
    if any(handle for handle in axes.get_legend_handles_labels()[1]) and len(labels) > 0:
        axes.legend(frameon=False, fontsize=8)
