"""RESULTS.md: a table of methods with their spread over seeds, and the claims that are made."""

import datetime
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psis_d2 import __version__

import torch


@dataclass(frozen=True)
class Row:
    """One method, an entry a seed: results, minutes, commit and machine; none if not trained.

    A row without results was not measured, or not where its results were kept.
    """

    name: str
    title: str
    results: Sequence[dict] = ()
    minutes: Sequence[float] = ()
    commits: Sequence[str] = ()
    machines: Sequence[str] = ()

    def values(self, task: str, metric: str) -> list[float]:
        """The metric of every seed; empty where the row was not measured."""
        return [r[task][metric] for r in self.results if metric in r.get(task, {})]


@dataclass(frozen=True)
class Column:
    """A metric of a task; with `minus`, how much larger it is than the same metric there."""

    heading: str
    task: str
    metric: str
    minus: str = ""

    def values(self, row: Row) -> list[float]:
        """The column's value for every seed of a row that has it."""
        if not self.minus:
            return row.values(self.task, self.metric)
        pairs = [(r.get(self.task, {}), r.get(self.minus, {})) for r in row.results]
        m = self.metric
        return [a[m] - b[m] for a, b in pairs if m in a and m in b]


@dataclass(frozen=True)
class Claim:
    """Seed by seed, the metric of one row exceeds another's by at least `margin` points.

    `better` and `worse` are (row, task); they may be the same row on two sides of the split. With
    `minus`, what is compared is how much larger the metric is than that of this task.
    """

    better: tuple[str, str]
    worse: tuple[str, str]
    metric: str
    margin: float
    words: str
    minus: str = ""

    def margins(self, rows: Sequence[Row]) -> list[float] | None:
        """The difference for every seed, None if a row is not there or lacks seeds of the other."""
        by_name = {row.name: row for row in rows}
        if self.better[0] not in by_name or self.worse[0] not in by_name:
            return None
        better, worse = (
            Column(self.words, task, self.metric, self.minus).values(by_name[name])
            for name, task in (self.better, self.worse)
        )
        if len(better) != len(worse):
            return None
        return [a - b for a, b in zip(better, worse, strict=True)]

    def holds(self, rows: Sequence[Row]) -> bool:
        """Whether every seed has the margin; a claim about an absent row holds."""
        margins = self.margins(rows)
        return not margins or min(margins) >= self.margin


UNSEEN, SEEN = "gtbox_unseen", "gtbox_seen"
TABLE_SECTIONS = ("PartialShapes", "Margins")
CLAIMS = (
    Claim(
        ("oracle", UNSEEN),
        ("agnostic", UNSEEN),
        "IoU",
        10,
        "The oracle beats the baseline on unseen categories",
    ),
    Claim(("oracle", UNSEEN), ("agnostic", UNSEEN), "AP", 13, "... in AP too"),
    Claim(
        ("agnostic", SEEN),
        ("agnostic", UNSEEN),
        "IoU",
        7,
        "The baseline loses on unseen categories",
    ),
    Claim(
        ("oracle", UNSEEN),
        ("oracle", SEEN),
        "IoU",
        -6,
        "Unseen categories are not harder than seen ones",
    ),
    Claim(("oracle", SEEN), ("oracle", UNSEEN), "IoU", -6, "... nor easier"),
    Claim(
        ("agnostic_gt", UNSEEN),
        ("agnostic", UNSEEN),
        "IoU",
        2,
        "Ground-truth training boxes help the baseline",
    ),
    Claim(
        ("shapeprop", UNSEEN),
        ("agnostic", UNSEEN),
        "IoU",
        0,
        "ShapeProp does not lose against the baseline",
    ),
    Claim(
        ("shapeprop_gt", UNSEEN),
        ("agnostic", UNSEEN),
        "IoU",
        4,
        "ShapeProp on ground-truth boxes beats the baseline",
    ),
    Claim(
        ("shapeprop_gt", UNSEEN),
        ("agnostic_gt_dropout", UNSEEN),
        "IoU",
        2,
        "... and channel dropout on the same boxes",
    ),
    Claim(
        ("cpmask_faster_gt", UNSEEN),
        ("agnostic_gt", UNSEEN),
        "IoU",
        2,
        "CPMask beats the baseline on the same boxes",
    ),
    Claim(
        ("cpmask_faster_gt_boundary", UNSEEN),
        ("agnostic_gt_dropout", UNSEEN),
        "IoU",
        0,
        "Its boundary module alone does not lose against channel dropout",
    ),
    Claim(
        ("shapeprop_retinamask", UNSEEN),
        ("retinamask", UNSEEN),
        "IoU",
        4,
        "ShapeProp on RetinaMask beats RetinaMask",
    ),
    Claim(
        ("shapemask", UNSEEN),
        ("retinamask_jitter", UNSEEN),
        "IoU",
        2,
        "ShapeMask beats RetinaMask's head on the same boxes",
    ),
    Claim(
        ("shapemask", UNSEEN),
        ("shapemask_no_prior", UNSEEN),
        "IoU",
        0,
        "It does not lose by its shape priors",
    ),
    Claim(
        ("shapemask", UNSEEN),
        ("shapemask_no_embedding", UNSEEN),
        "IoU",
        4,
        "It gains by its instance embedding",
    ),
    Claim(
        ("shapemask", "shrunk_gtbox_unseen"),
        ("agnostic", "shrunk_gtbox_unseen"),
        "IoU",
        2,
        "It loses less to boxes that are too small than class-agnostic Mask R-CNN",
        minus=UNSEEN,
    ),
    Claim(
        ("shapemask", "shrunk_gtbox_unseen"),
        ("agnostic_gt", "shrunk_gtbox_unseen"),
        "IoU",
        2,
        "... and than the same on ground-truth boxes",
        minus=UNSEEN,
    ),
    Claim(
        ("teacher_student_gt_threshold", UNSEEN),
        ("agnostic_gt", UNSEEN),
        "IoU",
        0,
        "A student by threshold does not lose against a teacher alone",
    ),
    Claim(
        ("teacher_student_gt_threshold", "gtbox_overlapped_unseen"),
        ("agnostic_gt", "gtbox_overlapped_unseen"),
        "IoU",
        0,
        "... nor on overlapped objects",
    ),
    Claim(
        ("boxinst_mixed", UNSEEN),
        ("boxinst", UNSEEN),
        "IoU",
        2,
        "Masks of other categories help BoxInst",
    ),
    Claim(
        ("boxinst_mixed", UNSEEN),
        ("condinst_seen", UNSEEN),
        "IoU",
        2,
        "Box losses help CondInst where there are no masks",
    ),
    Claim(
        ("condinst", UNSEEN),
        ("boxinst_mixed", UNSEEN),
        "IoU",
        2,
        "Masks of all categories help it more",
    ),
)


@dataclass(frozen=True)
class SideTable:
    """A table below the methods', of the rows whose runs measured its last column."""

    heading: str
    words: str
    columns: tuple[Column, ...]

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """Those of the rows that belong here."""
        return [row for row in rows if self.columns[-1].values(row)]


COLUMNS = (
    Column("IoU seen", SEEN, "IoU"),
    Column("IoU unseen", UNSEEN, "IoU"),
    Column("AP seen", SEEN, "AP"),
    Column("AP unseen", UNSEEN, "AP"),
    Column("mask AP seen", "segm_seen", "AP"),
    Column("mask AP unseen", "segm_unseen", "AP"),
    Column("box AP seen", "bbox_seen", "AP"),
    Column("box AP unseen", "bbox_unseen", "AP"),
)
SIDE_TABLES = (
    SideTable(
        "Overlapped objects",
        """\
The same measures on those objects alone whose boxes another object's mask fills to at least 30 %
(O >= 0.3; Zhao et al., Tab. 2), in the annotations' boxes.""",
        tuple(
            Column(f"{metric} {group}", f"gtbox_overlapped_{group}", metric)
            for metric in ("IoU", "AP")
            for group in ("seen", "unseen", "all")
        ),
    ),
    SideTable(
        "Boxes that are too small",
        """\
Sides multiplied by random factors from U(0.75, 1) (ShapeMask, ICCV 2019, Tab. 3), the same for all
rows: the measures in the annotations' boxes, and what they lose.""",
        (
            Column("IoU seen", "shrunk_gtbox_seen", "IoU"),
            Column("lost", SEEN, "IoU", minus="shrunk_gtbox_seen"),
            Column("IoU unseen", "shrunk_gtbox_unseen", "IoU"),
            Column("lost", UNSEEN, "IoU", minus="shrunk_gtbox_unseen"),
            Column("AP unseen", "shrunk_gtbox_unseen", "AP"),
            Column("lost", UNSEEN, "AP", minus="shrunk_gtbox_unseen"),
        ),
    ),
)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and sample standard deviation; the value alone if there is one, a dash if none."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def hardware() -> str:
    """The processor or GPU of this machine, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            models = [x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores"


def expected_results(row: Row) -> list[list]:
    """A row's ``TEST.EXPECTED_RESULTS``: IoU in the annotations' boxes, seen and unseen; box AP.

    Returns:
        ``[task, metric, mean of the seeds, tolerance]``, the tolerance twice the largest deviation
        of a seed from the mean, at least 3 points (another processor is another run) and 6 on
        unseen categories (the means over three seeds of one row differed by 4 between processors).
    """
    expected = []
    for task, metric, least in ((SEEN, "IoU", 3.0), (UNSEEN, "IoU", 6.0), ("bbox_all", "AP", 3.0)):
        if not (values := row.values(task, metric)):
            continue
        mean = statistics.mean(values)
        tolerance = max(least, 2 * max(abs(v - mean) for v in values))
        expected.append([task, metric, round(mean, 1), round(tolerance, 1)])
    return expected


def lines_of(page: str) -> dict[str, str]:
    """The table lines of a page: by row name in the methods' table, by claim in that of margins."""
    found = {}
    sections = re.split(r"^## ", page, flags=re.MULTILINE)
    for line in "".join(x for x in sections if x.startswith(TABLE_SECTIONS)).splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 5 and re.fullmatch(r"`\w+`", cells[2]):
            found[cells[2].strip("`")] = line
        elif len(cells) == 6 and re.fullmatch(r"[+-]\d+", cells[2]):
            found[cells[1]] = line
    return found


def render_table(
    rows: Sequence[Row],
    earlier: Mapping[str, str] | None = None,
    columns: Sequence[Column] = COLUMNS,
    minutes: bool = True,
) -> str:
    """The markdown table of the rows; a row without results has its line in `earlier`, if any."""
    earlier = earlier or {}
    headings = ["method", "row", "seeds", *(c.heading for c in columns)] + ["minutes"] * minutes
    lines = ["| " + " | ".join(headings) + " |", "|---|---|" + "---:|" * (len(headings) - 2)]
    for row in rows:
        if not row.results:
            lines += [earlier[row.name]] if row.name in earlier else []
            continue
        cells = [spread(column.values(row)) for column in columns]
        cells = [str(len(row.minutes) or "-"), *cells] + [spread(row.minutes)] * minutes
        lines.append(f"| {row.title} | `{row.name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def render_side_tables(rows: Sequence[Row]) -> str:
    """The tables of ``SIDE_TABLES`` that have rows, each with its heading and words."""
    parts = []
    for table in SIDE_TABLES:
        if shown := table.rows(rows):
            body = render_table(shown, columns=table.columns, minutes=False)
            parts.append(f"## {table.heading}\n\n{table.words}\n\n{body}\n\n")
    return "".join(parts)


def render_claims(rows: Sequence[Row], earlier: Mapping[str, str] | None = None) -> str:
    """The markdown table of the claims: margin asked for, margin of every seed, verdict."""
    lines = ["| claim | margin asked | margin of each seed | holds |", "|---|---:|---|---|"]
    for claim in CLAIMS:
        margins = claim.margins(rows)
        words = f"{claim.words} ({claim.metric})"
        if not margins:
            lines += [earlier[words]] if earlier and words in earlier else []
            continue
        holds = "yes" if claim.holds(rows) else "**no**"
        shown = ", ".join(f"{m:+.1f}" for m in margins)
        lines.append(f"| {words} | {claim.margin:+d} | {shown} | {holds} |")
    return "\n".join(lines)


def render_page(
    rows: Sequence[Row],
    *,
    seeds: Sequence[int],
    picture: str = "",
    remarks: str = "",
    earlier: str = "",
) -> str:
    """The whole of RESULTS.md.

    Args:
        rows: in the table's order.
        seeds: training seeds of the runs.
        picture: where the page finds that of :func:`results_picture`, "" for none.
        remarks: markdown for the end of the page, with its own heading.
        earlier: the page that is replaced: rows without results, and claims about them, keep their
            lines, and what it says of commits and machines stays.
    """
    commits = {commit for row in rows for commit in row.commits}
    machines = {machine for row in rows for machine in row.machines}
    if kept := re.search(r"^\* commits: (.*)$\n\* machines: (.*)$", earlier, re.MULTILINE):
        commits |= set(kept[1].split(", "))
        machines |= set(kept[2].split("; "))
    old_lines = lines_of(earlier)
    shown = f"![IoU of every row on seen and unseen categories]({picture})\n\n" if picture else ""
    today = datetime.date.today().isoformat()
    return f"""# Results

Written by `make bench-shapes` on {today}; tables and figures come from its runs, psis_d2
{__version__}, torch {torch.__version__}, seeds {", ".join(map(str, seeds))}, one thread a run.

* commits: {", ".join(sorted(commits)) or "unknown"}
* machines: {"; ".join(sorted(machines)) or "unknown"}

## PartialShapes

Synthetic images, 20 categories, masks for ten of them (`configs/quick/`, one schedule for all
rows). *IoU* and *AP* are measured in the annotations' boxes: IoU is the mean mask IoU of the
categories, AP the share of instances above IoU .5 to .95. *mask AP* and *box AP* are COCO's, on the
model's own detections. Mean ± sample standard deviation over seeds, all in percent; seen = masks in
training, unseen = boxes only. All seeds share one data set, so the spread is that of training
alone. Minutes are those of a machine that other jobs shared. The runs' figures are in
`benchmarks/results/shapes/`.

{shown}{render_table(rows, old_lines)}

{render_side_tables(rows)}## Margins

Differences in the annotations' boxes, seed by seed; a margin holds if every seed has it, and only
then is it claimed. Those of baseline, oracle and ShapeProp (not that over channel dropout) were set
before the runs; all others when their rows were known, so they say what was found here and predict
nothing. By chance alone, no difference at all would be positive in three seeds one time in eight.

{render_claims(rows, old_lines)}

A difference that is not in this list is not claimed.

{remarks}"""
