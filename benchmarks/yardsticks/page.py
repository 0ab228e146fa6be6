"""A page of results: tables of methods with their spread over seeds, and the claims."""

import statistics
from collections.abc import Iterable, Sequence

from .differences import Comparison, gap_shares, rank_correlation, render_differences
from .rows import UNSEEN, Column, Row, Yardstick, spread


def render_table(rows: Sequence[Row], columns: Sequence[Column], minutes: bool = True) -> str:
    """The markdown table of the rows that have runs."""
    headings = ["method", "row", "seeds", *(c.heading for c in columns)]
    headings += ["minutes", "commit"] * minutes
    lines = ["| " + " | ".join(headings) + " |", "|---|---|" + "---:|" * (len(headings) - 2)]
    for row in rows:
        if not row.runs:
            continue
        seeds = [run for run in row.runs if run.seed is not None]
        times = [run.minutes for run in row.runs if run.minutes is not None]
        cells = [str(len(seeds) or "-"), *(spread(column.values(row)) for column in columns)]
        cells += [spread(times), _all(run.commit for run in row.runs)] * minutes
        lines.append(f"| {row.title} | `{row.name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def render_side_tables(yardstick: Yardstick, rows: Sequence[Row]) -> str:
    """The side tables that have rows, each with its heading and words."""
    parts = []
    for table in yardstick.side_tables:
        if shown := table.rows(rows):
            body = render_table(shown, table.columns, minutes=False)
            parts.append(f"## {table.heading}\n\n{table.words}\n\n{body}\n\n")
    return "".join(parts)


def render_claims(yardstick: Yardstick, rows: Sequence[Row]) -> str:
    """The markdown table of the claims: margin asked for, margin of every seed, verdict."""
    lines = ["| claim | margin asked | margin of each seed | holds |", "|---|---:|---|---|"]
    for claim in yardstick.claims:
        margins = claim.margins(rows)
        if not margins:
            continue
        words = f"{claim.words} ({claim.metric})"
        holds = "yes" if claim.holds(rows) else "**no**"
        shown = ", ".join(f"{m:+.1f}" for m in margins)
        lines.append(f"| {words} | {claim.margin:+d} | {shown} | {holds} |")
    return "\n".join(lines)


def render_published(yardstick: Yardstick, rows: Sequence[Row]) -> str:
    """The published order, and how well that of the rows agrees with it; "" if none is known."""
    if not yardstick.published:
        return ""
    order = " < ".join(" ~ ".join(f"`{name}`" for name in names) for names in yardstick.published)
    published = {name: rank for rank, names in enumerate(yardstick.published) for name in names}
    measured = {
        row.name: statistics.mean(values) for row in rows if (values := row.values(UNSEEN, "IoU"))
    }
    common = published.keys() & measured.keys()
    shares = sorted(gap_shares(rows, "baseline", "oracle").items(), key=lambda item: -item[1])
    way = ", ".join(f"`{name}` {100 * share:.0f} %" for name, share in shares)
    if way:
        way = f"Of the way from `baseline` to `oracle`, on the same seeds: {way}.\n\n"
    found = rank_correlation(published, measured)
    words = (
        f"{found:+.2f} over {len(common)} rows"
        if len(common) > 2 and found == found
        else "too few rows"
    )
    return f"""Published order on COCO, worst first: {order}. Spearman's rank correlation of
the means below (unseen IoU) with it: {words}.

{way}"""


def render_section(yardstick: Yardstick, rows: Sequence[Row], picture: str, remarks: str) -> str:
    """What a page says of one yardstick, from its heading on. It depends on its arguments alone."""
    runs = [run for row in rows for run in row.runs if run.machine]
    date = max((run.date for run in runs), default="unknown")
    seeds = _all(str(run.seed) for run in runs if run.seed is not None)
    shown = f"![IoU of every row on seen and unseen categories]({picture})\n\n" if picture else ""
    groups = [
        (words, [Comparison(*pair) for pair in pairs]) for words, pairs in yardstick.comparisons
    ]
    differences = render_differences(rows, groups)
    if differences:
        differences = f"### {yardstick.heading}: differences\n\n{differences}\n\n"
    margins = ""
    if yardstick.claims:
        margins = f"""## Margins

{yardstick.claim_words}

{render_claims(yardstick, rows)}

A difference that is not in this list is not claimed.

"""
    return f"""## {yardstick.heading}

Written by `{yardstick.command}` on {date}; tables and figures come from its runs, psis_d2
{_all(r.psis_d2 for r in runs)}, torch {_all(r.torch for r in runs)}, seeds {seeds}, one thread a
run.

* commits: {_all(r.commit for r in runs)}
* machines: {_all((r.machine for r in runs), "; ")}

{yardstick.words}

{render_published(yardstick, rows)}{shown}{render_table(rows, yardstick.columns)}

{render_side_tables(yardstick, rows)}{differences}{margins}{remarks}"""


def render_page(sections: Sequence[str]) -> str:
    """The whole page of the yardsticks' sections."""
    return "# Results\n\n" + "\n".join(sections)


def _all(words: Iterable[str], separator: str = ", ") -> str:
    """The different words, sorted."""
    return separator.join(sorted(set(words) - {""})) or "-"
