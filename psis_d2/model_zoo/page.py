"""The zoo as Markdown: MODEL_ZOO.md and the card of one model."""

from collections.abc import Iterable, Mapping

from psis_d2.model_zoo.catalog import PREFIX, Model

_HEAD = """# Model zoo

Made from `psis_d2/model_zoo/zoo.json` by `psis-d2 zoo page`; do not edit it by hand.

Each model is used by its name: `MODEL.WEIGHTS psis_d2://NAME` in every command, with
`--config-file psis_d2://NAME` for the config that it has inside, and in Python
`psis_d2.model_zoo.get("NAME", trained=True)`. The file is downloaded once, checked against its
SHA-256 at every use, and kept in the folder that `PSIS_D2_CACHE` names. `psis-d2 publish` makes
such files; `PSIS_D2_ZOO` names further lists, by file or URL.

AP is that of masks in detected boxes, of categories that had masks in training (seen) and of those
that had boxes alone (unseen); IoU in boxes is the mean overlap of masks in the annotated boxes of
all categories with the true ones. A dash is a figure that was not measured.
"""
_NONE = "\nNo model is published yet.\n"
_COLUMNS = (
    "name",
    "config",
    "data",
    "masks for",
    "AP seen",
    "AP unseen",
    "IoU in boxes",
    "MB",
    "SHA-256",
    "license",
)


def render_page(models: Iterable[Model]) -> str:
    """MODEL_ZOO.md.

    Args:
        models: in the order of the table.
    """
    models = list(models)
    if not models:
        return _HEAD + _NONE
    lines = [_row(_COLUMNS), _row(["---"] * len(_COLUMNS))]
    for model in models:
        config = f"[{model.config}](configs/{model.config}.yaml)" if model.config else "-"
        lines.append(
            _row(
                [
                    f"`{model.name}`",
                    config,
                    model.data or "-",
                    model.split or "-",
                    *(
                        _figure(model.metrics, f"segm_{group}", "AP")
                        for group in ("seen", "unseen")
                    ),
                    _figure(model.metrics, "gtbox_all", "IoU"),
                    f"{model.size / 1e6:.1f}",
                    f"`{model.sha256[:8]}`",
                    model.license or "-",
                ]
            )
        )
    commands = [
        f"* `{model.name}` ({model.commit or 'no commit'}): `{model.command}`"
        for model in models
        if model.command
    ]
    measured = ["", "Measured by:", "", *commands] if commands else []
    notes = [f"* `{model.name}`: {model.note}" for model in models if model.note]
    terms = ["", "Where they come from:", "", *notes] if notes else []
    return "\n".join([_HEAD, *lines, *measured, *terms]) + "\n"


def model_card(model: Model, entry: Mapping) -> str:
    """A card in the form that the Hugging Face hub reads.

    Args:
        model: its row of the zoo.
        entry: what the file says of itself.
    """
    names = list(entry.get("class_names", ()))
    seen = {names[i] for i in entry.get("seen_ids", ()) if i < len(names)}
    lines = [
        "---",
        f"license: {model.license.lower()}",
        "library_name: psis_d2",
        "tags: [instance-segmentation, detectron2, partially-supervised]",
        "---",
        "",
        f"# {model.name}",
        "",
        "Instance segmentation, trained with boxes for all categories and masks for some, by "
        "psis_d2.",
        "",
        f"* config: `{model.config or 'inside the file'}`",
        f"* data: {model.data or '-'}; masks for: {model.split or '-'}",
        f"* with masks: {', '.join(n for n in names if n in seen) or '-'}",
        f"* with boxes only: {', '.join(n for n in names if n not in seen) or '-'}",
        f"* commit: {model.commit or '-'}; "
        + ", ".join(f"{key} {value}" for key, value in entry.get("versions", {}).items()),
        f"* SHA-256: `{model.sha256}`",
        f"* license of the weights: {model.license}",
        *([f"* {model.note}"] if model.note else []),
        "",
    ]
    if model.metrics:
        lines += [_row(("task", "metric", "value")), _row(["---"] * 3)]
        lines += [
            _row((task, key, f"{value:.2f}"))
            for task, row in model.metrics.items()
            for key, value in row.items()
        ]
        lines += ["", f"Measured by `{model.command}`." if model.command else "", ""]
    lines += [
        "```python",
        "from psis_d2 import model_zoo",
        "",
        f'model = model_zoo.get("{model.name}", trained=True)  # {PREFIX}{model.name}',
        "```",
    ]
    return "\n".join(lines) + "\n"


def _figure(metrics: Mapping, task: str, key: str) -> str:
    value = metrics.get(task, {}).get(key)
    return "-" if value is None else f"{value:.1f}"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
