"""A page of results: tables of methods with their spread over seeds, and the claims."""

from collections.abc import Iterable, Sequence

from .rows import Column, Row, Yardstick, spread


def render_table(rows: Sequence[Row], columns: Sequence[Column], minutes: bool = True) -> str:
    """The markdown table of the rows that have runs."""
    headings = ["method", "row", "seeds", *(c.heading for c in columns)] + ["minutes"] * minutes
    lines = ["| " + " | ".join(headings) + " |", "|---|---|" + "---:|" * (len(headings) - 2)]
    for row in rows:
        if not row.runs:
            continue
        seeds = [run for run in row.runs if run.seed is not None]
        times = [run.minutes for run in row.runs if run.minutes is not None]
        cells = [str(len(seeds) or "-"), *(spread(column.values(row)) for column in columns)]
        cells += [spread(times)] * minutes
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


def render_page(
    yardstick: Yardstick, rows: Sequence[Row], *, picture: str = "", remarks: str = ""
) -> str:
    """The whole page. It depends on its arguments alone.

    Args:
        yardstick: what is shown.
        rows: in the table's order.
        picture: where the page finds that of :func:`.picture.results_picture`, "" for none.
        remarks: markdown for the end of the page, with its own heading.
    """
    runs = [run for row in rows for run in row.runs if run.seed is not None]
    date = max((run.date for run in runs), default="unknown")
    shown = f"![IoU of every row on seen and unseen categories]({picture})\n\n" if picture else ""
    return f"""# Results

Written by `{yardstick.command}` on {date}; tables and figures come from its runs, psis_d2
{_all(r.psis_d2 for r in runs)}, torch {_all(r.torch for r in runs)}, seeds \
{_all(str(r.seed) for r in runs)}, one thread a run.

* commits: {_all(r.commit for r in runs)}
* machines: {_all((r.machine for r in runs), "; ")}

## {yardstick.heading}

{yardstick.words}

{shown}{render_table(rows, yardstick.columns)}

{render_side_tables(yardstick, rows)}## Margins

{yardstick.claim_words}

{render_claims(yardstick, rows)}

A difference that is not in this list is not claimed.

{remarks}"""


def _all(words: Iterable[str], separator: str = ", ") -> str:
    """The different words, sorted."""
    return separator.join(sorted(set(words) - {""})) or "unknown"
