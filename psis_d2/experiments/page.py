"""The registry as Markdown: ``docs/experiments.md``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from psis_d2.experiments.commands import smoke_options
from psis_d2.experiments.recipes import Recipe, recipes
from psis_d2.experiments.registry import SPLITS, Experiment, Paper, Step, Table

import yaml

_HEAD = Path(__file__).with_name("head.md")
_RAN = Path(__file__).with_name("ran.yaml")
_FEW = 3
_RECIPES = (
    "What configs resolve to, and what paper and released code have; where a cell is empty, they\n"
    "do not say. Rates and iterations of another batch are compared in proportion to it."
)


def render_page(papers: Iterable[Paper]) -> str:
    """``docs/experiments.md``, from the registry alone."""
    parts = [_HEAD.read_text(encoding="utf-8")]
    for paper in papers:
        parts.append(f"\n## {paper.title}\n\n{paper.cite}. {_line(paper.note)}\n")
        parts += [_table(table) for table in paper.tables]
    parts.append(f"\n## Recipes\n\n{_RECIPES}\n")
    parts += [_recipe(recipe) for recipe in recipes()]
    return "".join(parts)


def _recipe(recipe: Recipe) -> str:
    sources = {"paper": "paper", "released": "released code"}
    named = "; ".join(f"{sources[key]}: {where}" for key, where in recipe.sources.items())
    lines = [f"\n### {recipe.about}\n", f"{', '.join(f'`{x}`' for x in recipe.configs)}"]
    lines += [f"({named}).", ""]
    lines.append(_cells(["", "here", *(sources[key] for key in recipe.sources), "follows"]))
    lines.append(_cells(["---"] * (3 + len(recipe.sources))))
    for choice in recipe.choices:
        published = [_value(choice.published.get(key)) for key in recipe.sources]
        follows = " and ".join(sources[key] for key in choice.follows)
        reasons = "; ".join(filter(None, (follows, choice.why)))
        lines.append(_cells([choice.what, _value(choice.here), *published, reasons]))
    return "\n".join(lines) + "\n"


def _value(value) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def ran_configs() -> dict[str, list[str]]:
    """Data sets on which models were trained with this code, and their configs of ``quick/``."""
    return yaml.safe_load(_RAN.read_text(encoding="utf-8"))


def where_it_ran(experiment: Experiment) -> str:
    """The data set on which an experiment's likeness was trained to its end; "" for none."""
    trainings = [step for step in experiment.steps if step.config]
    if len(trainings) != 1 or experiment.split != "voc" or _overrides(trainings[0]):
        return ""
    found = (data for data, configs in ran_configs().items() if experiment.quick in configs)
    return next(found, "")


def _overrides(step: Step) -> dict:
    """What makes a trial's model another one than its config's."""
    about = ("TEST.", "SOLVER.")
    return {k: v for k, v in smoke_options(step).items() if not k.startswith(about)}


def _table(table: Table) -> str:
    splits = list(dict.fromkeys(x.split for x in table.experiments))
    columns = splits if len(splits) <= _FEW and not table.vary else []
    heads = [f"{SPLITS.get(x, x)} (`/{x}`)" for x in columns] or ["runs"]
    usual = Counter(_source(x) for x in table.experiments if _source(x)).most_common(1)
    usual = usual[0][0] if usual else ""
    lines = [f"\n### {table.name}: {table.about}\n"]
    lines.append(_cells(["experiment", "row", "run", *heads, "remarks", "ran"]))
    lines.append(_cells(["---"] * (5 + len(heads))))
    for row_id, group in groupby(table.experiments, key=lambda x: x.row_id):
        rows = list(group)
        first, of_split = rows[0], {x.split: x for x in rows}
        if columns:
            cells = [_published(of_split[x]) if x in of_split else "" for x in columns]
        else:
            cells = [_runs(rows)]
        remarks = dict.fromkeys(_line(r) for x in rows for r in _remarks(x) if r and r != usual)
        ran = ", ".join(dict.fromkeys(filter(None, map(where_it_ran, rows))))
        cells = [f"`{row_id}`", first.row, _how(first), *cells, "; ".join(remarks), ran]
        lines.append(_cells(cells))
    if usual:
        published = any(x.published for x in table.experiments)
        lines += [
            "",
            f"{'Published values' if published else 'No published values'}: {_line(usual)}.",
        ]
    if table.plot:
        lines += ["", f"Draws {table.plot['y']} against {table.plot['x']}."]
    if table.note:
        lines += ["", _line(table.note)]
    return "\n".join(lines) + "\n"


def _runs(rows: Sequence[Experiment]) -> str:
    splits = list(dict.fromkeys(x.split for x in rows))
    values = list(dict.fromkeys(x.value for x in rows if x.value is not None))
    told = f"{len(rows)}: " + ", ".join(f"`/{x}`" for x in (splits[0], splits[-1]) if splits)
    if len(splits) == 1:
        told = f"{len(rows)}: `/{splits[0]}`"
    elif len(splits) > 2:
        told = f"{len(rows)}: `/{splits[0]}` to `/{splits[-1]}`"
    return told + (f", {', '.join(f'`/{x}`' for x in values)}" if values else "")


def _remarks(x: Experiment) -> Iterator[str]:
    yield _source(x)
    yield x.note
    if x.data != "COCO":
        yield f"data: {x.data}"


def _source(x: Experiment) -> str:
    return x.source if x.published else x.unread


def _how(x: Experiment) -> str:
    parts = []
    owner = "/".join(x.owner.split("/")[:3])
    if owner != x.row_id:
        parts.append(f"as `{owner}`")
        steps = [step for step in x.steps if step.command]
    else:
        steps = x.steps
    parts += [_step(step) for step in steps]
    if x.needs:
        parts.append(f"*needs* {_line(x.needs)}")
    return "; ".join(parts)


def _step(step: Step) -> str:
    if step.command:
        return f"`psis-d2 {' '.join(filter(None, (step.command[0], step.config)))}`"
    words = [step.config, *(f"{key} {value}" for key, value in step.opts.items())]
    return ("measured: " if step.evaluate else "") + f"`{' '.join(words)}`"


def _published(x: Experiment) -> str:
    parts = [
        f"{_task(task)} {' '.join(f'{value:.1f}' for value in values.values())}"
        for task, values in x.published.items()
    ]
    return "<br>".join(parts or ["-"])


def _task(task: str) -> str:
    return " ".join(task.replace("bbox", "box").replace("segm_", "").split("_"))


def _cells(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _line(text: str) -> str:
    return " ".join(text.split())
