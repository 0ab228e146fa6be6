"""Runs, the rows of a table that they make up, and what is shown and claimed of them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

UNSEEN, SEEN = "gtbox_unseen", "gtbox_seen"


@dataclass(frozen=True)
class Run:
    """One training and what was measured of it.

    Attributes:
        config: name of the row.
        seed: of the training, None where nothing was trained.
        commit: that was checked out.
        machine: processor or GPU, in words.
        date: ISO.
        minutes: of training and evaluation, None if unknown.
        psis_d2: version.
        torch: version.
        options: config keys and values beside the config file; of models that were evaluated once
            more, those of that evaluation after a semicolon.
        results: {task: {metric: percent}}, nan where undefined.
    """

    config: str
    seed: int | None = None
    commit: str = ""
    machine: str = ""
    date: str = ""
    minutes: float | None = None
    psis_d2: str = ""
    torch: str = ""
    options: str = ""
    results: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One method: its runs, in the order of their seeds."""

    name: str
    title: str
    runs: Sequence[Run] = ()

    def values(self, task: str, metric: str) -> list[float]:
        """The metric of every run; empty where the row was not measured."""
        return [r.results[task][metric] for r in self.runs if metric in r.results.get(task, {})]


@dataclass(frozen=True)
class Column:
    """A metric of a task; with `minus`, how much larger it is than the same metric there."""

    heading: str
    task: str
    metric: str
    minus: str = ""

    def values(self, row: Row) -> list[float]:
        """The column's value for every run of a row that has it."""
        if not self.minus:
            return row.values(self.task, self.metric)
        pairs = [(r.results.get(self.task, {}), r.results.get(self.minus, {})) for r in row.runs]
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


@dataclass(frozen=True)
class SideTable:
    """A table below the methods', of the rows whose runs measured its last column."""

    heading: str
    words: str
    columns: tuple[Column, ...]

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """Those of the rows that belong here."""
        return [row for row in rows if self.columns[-1].values(row)]


@dataclass(frozen=True)
class Yardstick:
    """What a page of results is made of.

    Attributes:
        file: of the module that defines it; the runs and the remarks lie beside it, see
            :attr:`runs_file` and :attr:`remarks_file`.
        command: that writes the page.
        configs: glob of the config files, from the root of the repository. A row is what ``*``
            stands for; files that begin with "Base" are none.
        train_set: data set that is trained on.
        test_set: data set that is evaluated on.
        split: ``PSIS.SEEN_CLASSES`` of the configs.
        overlap: ``TEST.OVERLAP`` of the configs.
        last: row that ends the table, the upper bound.
        picture: its picture, from the root of the repository; "" for none.
        heading: of the methods' table.
        words: above it.
        columns: of it.
        side_tables: below it.
        claims: what is asked of the figures.
        claim_words: above the table of claims.
        measured: config keys and values of all rows: what is evaluated.
        options: further keys and values of all rows and of the detector.
        detector: config of a detector that all rows start from, trained once; "" for none.
        untrained: rows that have nothing to train: they are evaluated alone, once.
        order: rows that come first in the table, in this order.
        published: rows in the published order of the methods, worst first; rows of one entry are
            alike there.
        comparisons: words, and the pairs of rows below them whose difference is shown.
        data_files: data sets that are files of the user's: name, annotations and folder of images,
            both in the folder that ``--data`` names.
        models: name of the yardstick whose models are evaluated; "" = they are trained.
        labeled: rows that train on masks of another row's model of the same seed, where there are
            no others: row, other row.
        home: name of the folder of the detector and its feature maps, "" = the yardstick's own.
    """

    file: Path
    command: str
    configs: str
    train_set: str
    test_set: str
    split: str
    overlap: float
    last: str
    picture: str
    heading: str
    words: str
    columns: tuple[Column, ...]
    side_tables: tuple[SideTable, ...]
    claims: tuple[Claim, ...] = ()
    claim_words: str = ""
    measured: tuple[str, ...] = ("TEST.BOXES", "both")
    options: tuple[str, ...] = ()
    detector: str = ""
    untrained: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    published: tuple[tuple[str, ...], ...] = ()
    comparisons: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    data_files: tuple[tuple[str, str, str], ...] = ()
    home: str = ""
    models: str = ""
    labeled: tuple[tuple[str, str], ...] = ()

    @property
    def runs_file(self) -> Path:
        """The table of runs."""
        return self.file.with_suffix(".csv")

    @property
    def name(self) -> str:
        """That of its three files."""
        return self.file.stem

    @property
    def remarks_file(self) -> Path:
        """The end of the page."""
        return self.file.with_suffix(".md")

    @property
    def trials_file(self) -> Path:
        """The trials by which its settings were chosen, see :mod:`.trials`."""
        return self.file.with_name(f"{self.name}_trials.csv")


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and sample standard deviation; the value alone if there is one, a dash if none."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


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
