"""Differences between rows over the seeds that both have, and agreement with a published order."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .rows import Row

# Student's t, 97.5 %, by degrees of freedom (seeds less one).
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Comparison:
    """Two rows whose metric is compared, seed by seed: the first minus the second."""

    row: str
    other: str
    task: str = "gtbox_unseen"
    metric: str = "IoU"


@dataclass(frozen=True)
class Difference:
    """Mean of the paired differences.

    Attributes:
        mean: points.
        half: half the width of the 95 % interval of Student's t, None from one pair.
        pairs: seeds.
    """

    mean: float
    half: float | None
    pairs: int

    @property
    def claimed(self) -> bool:
        """Whether the interval excludes zero."""
        return self.half is not None and abs(self.mean) > self.half


def difference(rows: Sequence[Row], comparison: Comparison) -> Difference | None:
    """The difference over the seeds that both rows have; None if they share none.

    A row that is not trained has no seed, and is compared with every run of the other.
    """
    by_name = {row.name: row for row in rows}
    if comparison.row not in by_name or comparison.other not in by_name:
        return None
    first, second = (
        _by_seed(by_name[name], comparison) for name in (comparison.row, comparison.other)
    )
    seeds = first.keys() & second.keys()
    if None in second:
        second = dict.fromkeys(seeds := first.keys(), second[None])
    elif None in first:
        first = dict.fromkeys(seeds := second.keys(), first[None])
    if not seeds:
        return None
    return paired([first[seed] - second[seed] for seed in sorted(seeds, key=str)])


def paired(values: Sequence[float]) -> Difference:
    """Mean and interval of paired differences."""
    half = None
    if len(values) > 1:
        error = statistics.stdev(values) / math.sqrt(len(values))
        half = _T[min(len(values) - 1, len(_T)) - 1] * error
    return Difference(statistics.mean(values), half, len(values))


def _by_seed(row: Row, comparison: Comparison) -> dict[int | None, float]:
    task, metric = comparison.task, comparison.metric
    return {r.seed: r.results[task][metric] for r in row.runs if metric in r.results.get(task, {})}


def gap_shares(rows: Sequence[Row], low: str, high: str) -> dict[str, float]:
    """How much of the way from one row to another each row goes, on unseen categories.

    Args:
        rows: all rows.
        low: 0, the baseline.
        high: 1, the upper bound.

    Returns:
        The share by row, over the seeds that it and these two have; rows that are not trained, and
        those without a common seed, are left out.
    """
    by_name = {row.name: row for row in rows}
    if low not in by_name or high not in by_name:
        return {}
    ends = [_by_seed(by_name[name], Comparison(low, high)) for name in (low, high)]
    shares = {}
    for row in rows:
        values = _by_seed(row, Comparison(low, high))
        seeds = values.keys() & ends[0].keys() & ends[1].keys()
        if seeds and row.name not in (low, high):
            start, stop, here = (
                statistics.mean(of[seed] for seed in seeds) for of in (*ends, values)
            )
            shares[row.name] = (here - start) / (stop - start)
    return shares


def rank_correlation(published: Mapping[str, float], measured: Mapping[str, float]) -> float:
    """Spearman's, with mean ranks for ties, over the names that both have.

    Returns:
        -1 to 1; nan if one side does not differ at all.
    """
    names = sorted(published.keys() & measured.keys())
    first, second = (_ranks([of[name] for name in names]) for of in (published, measured))
    if len(set(first)) < 2 or len(set(second)) < 2:
        return math.nan
    return statistics.correlation(first, second)


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    return [order.index(v) + (order.count(v) - 1) / 2 for v in values]


def render_differences(
    rows: Sequence[Row], groups: Sequence[tuple[str, Sequence[Comparison]]]
) -> str:
    """Tables of paired differences, and how many of the intervals exclude zero."""
    parts, made, claimed = [], 0, 0
    for words, comparisons in groups:
        lines = ["| row | against | seeds | unseen IoU | 95 % interval | claimed |"]
        lines.append("|---|---|---:|---:|---:|---|")
        for comparison in comparisons:
            found = difference(rows, comparison)
            if found is None:
                continue
            interval, verdict = "-", "one seed: no"
            if found.half is not None:
                made += 1
                claimed += found.claimed
                low, high = found.mean - found.half, found.mean + found.half
                interval = f"{low:+.1f} to {high:+.1f}"
                verdict = "**yes**" if found.claimed else "no"
            lines.append(
                f"| `{comparison.row}` | `{comparison.other}` | {found.pairs} | "
                f"{found.mean:+.1f} | {interval} | {verdict} |"
            )
        if len(lines) > 2:
            parts.append(f"{words}\n\n" + "\n".join(lines))
    if not parts:
        return ""
    chance = made * 0.05
    parts.append(
        f"{made} comparisons have an interval, {claimed} of these exclude zero; if nothing "
        f"differed at all, about {chance:.1f} would by chance. Seeds differ in the mask head's "
        "weights and in the order of the images; detector and images are the same, so an interval "
        "says nothing of other detectors or other images."
    )
    return "\n\n".join(parts)
