"""The registry: ``papers/*.yaml`` as experiments.

A paper has tables and figures, these have rows, and a row is trained once for every split (and, in
a figure, for every value of the key that it varies). Each of these is an :class:`Experiment`, whose
id is the path to it: ``maskx/1a/randn/nonvoc``.

A row of a file says

* ``id`` and ``row``, what the paper calls it;
* ``config`` and ``opts``, or ``steps``, a list of such pairs which are run in order, every one
  from the weights of the one before; or ``same_as``, the row of another table whose model it is;
* ``published``, {split: {task: values}}, in the order of the table's ``metrics``, and ``source``,
  if it is not the table itself; or ``unread``, why a published value is not here;
* ``needs``, what the repository lacks to run it: such a row has no steps;
* ``data``, if it is not COCO; ``note``; ``quick``, its likeness on PartialShapes, ``quick_opts``
  and ``smoke``, the splits in which it stands for its kind there.

``splits``, ``source``, ``unread``, ``data`` and ``opts`` that a row leaves out are the table's.
``parts`` of a paper are pieces for YAML's anchors.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from psis_d2.errors import UserError

import yaml

FOLDER = Path(__file__).parent / "papers"
SPLITS = {"voc": "voc → nonvoc", "nonvoc": "nonvoc → voc", "all": "all categories"}
"""What the papers call the splits of COCO; others keep the spelling of ``PSIS.SEEN_CLASSES``."""

_ROW_KEYS = {
    *("id", "row", "config", "opts", "steps", "same_as", "published", "source", "unread", "needs"),
    *("data", "note", "quick", "quick_opts", "splits", "smoke"),
}
_STEP_KEYS = {
    "config",
    "opts",
    "split",
    "evaluate",
    "command",
    "writes",
    "shared",
    "quick",
    "quick_opts",
}
_TABLE_KEYS = {
    *("id", "name", "about", "metrics", "rows", "splits", "source", "unread", "data", "vary"),
    *("plot", "opts", "note"),
}
_PAPER_KEYS = {"id", "title", "cite", "tables", "note", "parts"}


@dataclass(frozen=True)
class Step:
    """One command of an experiment.

    Attributes:
        config: name of a config; "" for a command that trains nothing.
        opts: config keys and their values.
        split: whether the split has a part in it; a detector's training sees no mask.
        evaluate: measure the weights of the step before instead of training.
        command: words of another command of ``psis-d2``, where ``{weights}``, ``{output}``,
            ``{split}``, ``{config}`` and others of :mod:`.commands` stand for those of the
            experiment. With a config, it trains by itself.
        writes: a file that such a command leaves, to know whether it is done.
        shared: name of a training with overrides that several rows of a table begin with.
        quick: config for this step in a trial on PartialShapes, "" = as the row says.
        quick_opts: config keys and their values that it has there beside its own.
    """

    config: str = ""
    opts: Mapping[str, Any] = field(default_factory=dict)
    split: bool = True
    evaluate: bool = False
    command: tuple[str, ...] = ()
    writes: str = ""
    shared: str = ""
    quick: str = ""
    quick_opts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """A row of a table under one split.

    Attributes:
        id: ``paper/table/row/split`` and, in a figure that varies a key, ``/value``.
        row: what the paper calls it.
        split: the seen categories, as ``PSIS.SEEN_CLASSES`` spells them.
        steps: what is run; empty where the repository lacks something.
        published: {task: {metric: value}}, tasks and metrics as in ``results.json``.
        source: of these values.
        unread: why a value that the paper has is not here.
        needs: what the repository lacks.
        data: what has to be below ``DETECTRON2_DATASETS``.
        note: what a reader of the number should know.
        quick: the config that is its likeness on PartialShapes, "" if there is none.
        value: that of the key which its figure varies.
        owner: the id of the row, with split and value, whose model it is; its own id mostly.
        smoke: whether it stands for its kind in ``make experiments-smoke``.
    """

    id: str
    row: str
    split: str
    steps: tuple[Step, ...] = ()
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    source: str = ""
    unread: str = ""
    needs: str = ""
    data: str = "COCO"
    note: str = ""
    quick: str = ""
    value: Any = None
    owner: str = ""
    smoke: bool = False

    @property
    def row_id(self) -> str:
        """``paper/table/row``."""
        return "/".join(self.id.split("/")[:3])


@dataclass(frozen=True)
class Table:
    """A table or figure of a paper.

    Attributes:
        id: ``paper/table``.
        name: such as "Tab. 1a".
        about: one line.
        experiments: of all rows.
        vary: the config key that a figure varies beside the split, "" for none.
        plot: axes of the figure that is drawn of its results, {} for none; see
            :mod:`psis_d2.experiments.plot`.
        note: what holds for all rows.
    """

    id: str
    name: str
    about: str
    experiments: tuple[Experiment, ...]
    vary: str = ""
    plot: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Paper:
    """A paper.

    Attributes:
        id: of the method, such as "maskx".
        title, cite: of the paper.
        tables: in its order.
        note: what holds for all of it.
    """

    id: str
    title: str
    cite: str
    tables: tuple[Table, ...]
    note: str = ""


@functools.cache
def papers() -> tuple[Paper, ...]:
    """All papers, by year.

    Raises:
        ValueError: a file is not as the head of this module says.
    """
    contents = [
        yaml.safe_load(p.read_text(encoding="utf-8")) for p in sorted(FOLDER.glob("*.yaml"))
    ]
    rows = {
        f"{content['id']}/{table['id']}/{row['id']}": (content, table, row)
        for content in contents
        for table in content["tables"]
        for row in table["rows"]
    }
    return tuple(sorted((_paper(x, rows) for x in contents), key=lambda x: x.cite.split()[-1]))


def all_experiments() -> list[Experiment]:
    """All experiments, in the order of papers, tables and rows."""
    return [x for paper in papers() for table in paper.tables for x in table.experiments]


def find_experiments(name: str) -> list[Experiment]:
    """The experiments of an id, or of a row, table or paper, whose ids begin with it.

    Args:
        name: such as ``maskx/1a/randn/voc``, ``maskx/1a/randn``, ``maskx/1a`` or ``maskx``.

    Raises:
        UserError: there is none; the nearest names are in the sentence.
    """
    wanted = name.strip("/")
    found = [x for x in all_experiments() if f"{x.id}/".startswith(f"{wanted}/")]
    if found:
        return found
    names = list(dict.fromkeys(n for x in all_experiments() for n in _prefixes(x.id)))
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    near = near or [n for n in names if wanted and wanted in n][:3]
    hint = f"did you mean {' or '.join(near)}?" if near else "psis-d2 experiment list names all."
    raise UserError(f"There is no experiment '{name}'; {hint}")


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split("/")
    for end in range(len(parts), 0, -1):
        yield "/".join(parts[:end])


def _paper(content: Mapping, rows: Mapping[str, tuple]) -> Paper:
    _check_keys(content, _PAPER_KEYS, content["id"])
    tables = []
    for table in content["tables"]:
        name = f"{content['id']}/{table['id']}"
        _check_keys(table, _TABLE_KEYS, name)
        experiments = [x for row in table["rows"] for x in _row(f"{name}/{row['id']}", rows)]
        tables.append(
            Table(
                id=name,
                name=table["name"],
                about=table["about"],
                experiments=tuple(experiments),
                vary=table.get("vary", {}).get("key", ""),
                plot=table.get("plot", {}),
                note=table.get("note", ""),
            )
        )
    parts = {key: content[key] for key in ("id", "title", "cite")}
    return Paper(**parts, tables=tuple(tables), note=content.get("note", ""))


def _row(name: str, rows: Mapping[str, tuple]) -> Iterator[Experiment]:
    """The experiments of one row."""
    _, table, row = rows[name]
    _check_keys(row, _ROW_KEYS, name)
    splits = row.get("splits", table.get("splits", ["voc", "nonvoc"]))
    published = row.get("published", {})
    if strays := set(published) - set(splits):
        raise ValueError(f"{name} has published values of {strays}, which are none of its splits")
    steps, quick = _steps(name, rows)
    vary = table.get("vary")
    for split in splits:
        values = _published(published.get(split, {}), table.get("metrics", ["AP"]), name)
        base = Experiment(
            id=f"{name}/{split}",
            row=row["row"],
            split=split,
            steps=steps,
            published=values,
            source=row.get("source", table.get("source", table["name"])) if values else "",
            unread=row.get("unread", table.get("unread", "")) if not values else "",
            needs=row.get("needs", ""),
            data=_data(name, rows),
            note=row.get("note", ""),
            quick=row.get("quick", quick),
            owner=f"{_owner(name, rows)}/{split}",
            smoke=split in row.get("smoke", ()),
        )
        if vary is None:
            yield base
            continue
        for value in vary["values"]:
            varied = steps
            if value != vary["plain"]:
                varied = tuple(
                    s if s.command else replace(s, opts={**s.opts, vary["key"]: value})
                    for s in steps
                )
            ids = {"id": f"{base.id}/{value}", "owner": f"{base.owner}/{value}"}
            yield replace(base, **ids, steps=varied, value=value)


def _owner(name: str, rows: Mapping[str, tuple]) -> str:
    seen = []
    while "same_as" in rows[name][2]:
        seen.append(name)
        name = rows[name][2]["same_as"]
        if name not in rows or name in seen:
            raise ValueError(f"{seen[-1]} is the same as {name}, which is no other row")
    return name


def _data(name: str, rows: Mapping[str, tuple]) -> str:
    owner = _owner(name, rows)
    _, table, row = rows[owner]
    return row.get("data", table.get("data", "COCO"))


def _steps(name: str, rows: Mapping[str, tuple]) -> tuple[tuple[Step, ...], str]:
    """What a row runs, and its likeness on PartialShapes."""
    _, table, row = rows[_owner(name, rows)]
    mine = rows[name][2]
    if mine is not row and {"config", "opts"} & set(mine):
        raise ValueError(f"{name} is the same as another row and has a config of its own")
    shared = table.get("opts", {})
    listed = row.get("steps", [])
    if "config" in row:
        listed = [{key: row[key] for key in ("config", "opts", "quick_opts") if key in row}]
    if mine is not row:  # further steps with the same model
        listed = [*listed, *mine.get("steps", [])]
    if bool(listed) == ("needs" in mine):
        raise ValueError(f"{name} must have steps or needs")
    steps = []
    for step in listed:
        _check_keys(step, _STEP_KEYS, name)
        opts = {} if "command" in step else {**shared, **step.get("opts", {})}
        steps.append(Step(**{**step, "opts": opts, "command": tuple(step.get("command", ()))}))
    return tuple(steps), row.get("quick", "")


def _published(values: Mapping, metrics: Sequence[str], name: str) -> dict[str, dict[str, float]]:
    found = {}
    for task, numbers in values.items():
        numbers = numbers if isinstance(numbers, list) else [numbers]
        if len(numbers) > len(metrics):
            raise ValueError(f"{name} has more values of {task} than there are metrics: {numbers}")
        pairs = zip(metrics, numbers, strict=False)
        found[task] = {metric: float(x) for metric, x in pairs if x is not None}
    return found


def _check_keys(part: Mapping, known: set[str], name: str) -> None:
    if strays := set(part) - known:
        raise ValueError(f"{name} has keys that nothing reads: {', '.join(sorted(strays))}")
