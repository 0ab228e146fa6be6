"""The analyses' plots. Each shows rows that are also written as CSV."""

import math
import textwrap
from collections.abc import Sequence

from psis_d2.analysis.false_positives import PLACES
from psis_d2.errors import UserError
from psis_d2.files import written_at_once

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

# Told apart by people who see no red or no green, too (Okabe and Ito).
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_PLACE_COLORS = ("#b0b0b0", "#0072b2", "#d55e00", "#f0e442")
_MARKS = "os^Dv*"
_LABEL_WIDTH = 24


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
    axes.set_xlabel("overlap, up to (above: of the bin; below: its objects)")
    axes.set_ylabel(f"AP ({group} categories)")
    axes.grid(alpha=0.25)
    axes.set_ylim(0, max(axes.get_ylim()[1], 1))  # a scale also where all is 0
    _legend(axes, labels)
    return figure


def plot_false_positives(rows: Sequence[dict], group: str) -> Figure:
    """Shares of the places where wrong pixels lie, a bar a label."""
    rows = [row for row in rows if row["group"] == group]
    figure, axes = _figure(6.8, 1.3 + 0.5 * len(rows))
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
    for height, total in zip(heights, left, strict=True):
        if not total:
            axes.text(1, height, "no wrong pixels", va="center", fontsize=8, color="#606060")
    labels = [textwrap.fill(row["label"], _LABEL_WIDTH, break_on_hyphens=False) for row in rows]
    axes.set_yticks(heights, labels, fontsize=9)
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"wrong pixels of masks, {group} categories (%)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, frameon=False, fontsize=8)
    return figure


def plot_best_overlap(rows: Sequence[dict]) -> Figure:
    """Density of the best overlap by the object's size, a panel a map."""
    names = list(dict.fromkeys(row["map"] for row in rows))
    figure = Figure(figsize=(4.2 * len(names), 3.8), layout="constrained")
    panels = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    smallest, largest = (f(row["size"] for row in rows) for f in (min, max))
    sizes = np.geomspace(smallest / 1.05, largest * 1.05, 41)
    overlaps = np.linspace(0, 1, 41)
    counts = []
    for name in names:
        own = [row for row in rows if row["map"] == name]
        x, y = ([row[key] for row in own] for key in ("size", "overlap"))
        counts.append((np.histogram2d(x, y, (sizes, overlaps))[0].T, np.mean(y)))
    top = max(count.max() for count, _ in counts)
    for panel, name, (count, mean) in zip(panels, names, counts, strict=True):
        shown = panel.pcolormesh(
            sizes, overlaps, np.ma.masked_equal(count, 0), norm=LogNorm(1, max(top, 2))
        )
        panel.set_xscale("log")
        _plain_ticks(panel, base=2, subs=(1, 1.5) if largest < 8 * smallest else (1,))
        panel.set_title(f"{name}, mean {mean:.2f}", fontsize=10)
    figure.supxlabel("size of the object, square root of its area in pixels", fontsize=10)
    panels[0].set_ylabel("best overlap")
    ticks = [10**k * x for k in range(7) for x in (1, 2, 5) if 10**k * x <= max(top, 2)]
    bar = figure.colorbar(shown, ax=list(panels), label="objects", ticks=ticks)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    bar.ax.minorticks_off()
    return figure


def plot_curve(rows: Sequence[dict], x_label: str, y_label: str, log: bool = False) -> Figure:
    """Values over x: a point a run; a line through the means where runs share an x.

    Args:
        rows: of :func:`psis_d2.analysis.curve.curve_rows`.
        x_label, y_label: of the axes.
        log: whether x is logarithmic.
    """
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
    axes.set_ylabel(textwrap.fill(y_label, 2 * _LABEL_WIDTH))
    axes.grid(alpha=0.25)
    if log:
        axes.set_xscale("log")
        _plain_ticks(axes, base=10)
    elif all(float(row["x"]).is_integer() for row in rows):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if key == "value" and axes.get_ylim()[1] < 1:
        axes.set_ylim(0, 1)  # a scale also where all is 0
    _legend(axes, labels)
    return figure


def _plain_ticks(axes, base: int, subs: Sequence[float] = (1,)) -> None:
    """Powers of a base, times `subs`, on a logarithmic x axis, written out."""
    axes.xaxis.set_major_locator(LogLocator(base, subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


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
