"""From the checkpoint of a training to a file that others use by its name."""

import json
import math
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psis_d2
from psis_d2.config import psis_keys
from psis_d2.engine.export import strip_checkpoint
from psis_d2.errors import UserError
from psis_d2.files import written_at_once
from psis_d2.model_zoo.catalog import PREFIX, Model, write_row
from psis_d2.model_zoo.download import sha256_of
from psis_d2.model_zoo.page import model_card
from psis_d2.model_zoo.weights import SUFFIXES, write_weights

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog


@dataclass(frozen=True)
class Published:
    """What :func:`publish` wrote: the model's row of the zoo, its file, its card, the zoo."""

    model: Model
    file: Path
    card: Path
    zoo: Path


def publish(
    cfg: CfgNode,
    name: str,
    *,
    license: str,
    output: str = "published",
    config: str = "",
    suffix: str = ".pth",
    data: str = "",
    results: str | None = None,
    command: str = "",
    commit: str = "",
    note: str = "",
    base_url: str = "",
    zoo: str | None = None,
    push: str | None = None,
) -> Published:
    """Write a model's file, its card and its row of a zoo; upload them if wanted.

    The file holds what the model predicts with and says by itself what it is: config, class names,
    split, metrics, versions, license. Its name ends in the first digits of its SHA-256.

    Args:
        cfg: the training's config; ``MODEL.WEIGHTS`` is the checkpoint.
        name: what stands behind ``psis_d2://``.
        license: of the weights, such as "Apache-2.0".
        output: the folder to write to.
        config: the name of the training's config, for the page.
        suffix: ".pth" or ".safetensors".
        data: what it was trained on; "" = the data sets of the config.
        results: ``results.json`` of an evaluation; None = the one beside the checkpoint, if any.
        command: the command that measured them.
        commit: of the code that trained it; "" = the checkout's, as it is now.
        note: what else a user has to know, such as terms of the data.
        base_url: where the file will be, without its name; "" = beside the zoo's list.
        zoo: the list to write the row to; None = ``zoo.json`` in the folder.
        push: repository of the Hugging Face hub to upload to, "ORG/REPO".

    Raises:
        UserError: something is missing, cannot be used, or cannot be written or uploaded.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"--name is '{name}'; use letters, digits, '_', '.' and '-' alone.")
    if suffix not in SUFFIXES:
        raise UserError(f"The suffix is '{suffix}'; choose one of {', '.join(SUFFIXES)}.")
    if not license:
        raise UserError("A published model needs a license; give --license, such as Apache-2.0.")
    hub = _hub() if push else None  # before the work
    metrics = _metrics(results, cfg.MODEL.WEIGHTS)
    data = data or ", ".join(dict.fromkeys(filter(_is_known, cfg.DATASETS.TRAIN)))
    split = os.path.basename(cfg.PSIS.SEEN_CLASSES)
    commit = commit or _commit()
    used, content, _ = strip_checkpoint(cfg)
    facts = {"name": name, "license": license, "note": note}
    facts |= {"data": data, "split": split, "commit": commit}
    content["psis_d2"] |= {
        **facts,
        **{"metrics": metrics, "command": command, "versions": _versions()},
        "config": portable_config(used, name).dump(),
    }
    folder = Path(output)
    unnamed = folder / f"{name}{suffix}"
    write_weights(unnamed, content)
    sha256 = sha256_of(unnamed)
    file = folder / f"{name}_{sha256[:8]}{suffix}"
    os.replace(unnamed, file)

    list_file = Path(zoo or folder / "zoo.json")
    urls = [f"{base_url.rstrip('/')}/{file.name}"] if base_url else []
    if push:
        urls.append(f"hf://{push}/{file.name}")
    if not urls:
        relative = os.path.relpath(file, list_file.parent)
        urls.append(f"file:{Path(relative).as_posix()}")
    row = Model(
        **facts,
        config=config,
        urls=tuple(urls),
        sha256=sha256,
        size=file.stat().st_size,
        metrics=metrics,
        command=command,
    )
    card = folder / f"{name}.md"
    try:
        with written_at_once(str(card)) as text:
            text.write(model_card(row, content["psis_d2"]))
    except OSError as error:
        raise UserError(f"Cannot write {card} ({error.strerror or error}).") from error
    if hub:
        _upload(hub, push, file, card)
    write_row(str(list_file), row)  # last: a row is there when its file is
    return Published(row, file, card, list_file)


def portable_config(cfg: CfgNode, name: str) -> CfgNode:
    """A config without what only the machine of the training has.

    Args:
        cfg: the config to use the model with.
        name: the model's.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = PREFIX + name
    cfg.MODEL.DEVICE = "cuda"
    cfg.OUTPUT_DIR = os.path.join("output", name)
    cfg.TEST.EXPECTED_RESULTS = []
    own = {name for name, *_ in cfg.PSIS.DATA_FILES}
    for split in ("TRAIN", "TEST"):
        names = cfg.DATASETS[split]
        cfg.DATASETS[split] = tuple(x for x in names if _is_known(x) and x not in own)
    files = ["PSIS.CACHE_DIR", "PSIS.CATEGORY_MAP", "PSIS.DATA_FILES", "PSIS.MASK_IMAGES"]
    files.append("PSIS.SHAPEMASK.PRIORS")  # they are among the weights
    if os.path.isfile(cfg.PSIS.MISSING_MASKS):
        files += [key for key in psis_keys() if key.startswith("PSIS.MISSING_MASK")]
    if os.path.isfile(cfg.PSIS.SEEN_CLASSES):
        cfg.PSIS.SEEN_CLASSES = "auto"
    choices = {
        "PSIS.TRAIN_CLASSES": cfg.PSIS.TRAIN_CLASSES,
        "PSIS.TIMM.WEIGHTS": cfg.PSIS.TIMM.WEIGHTS,
        "TEST.MASKS": cfg.TEST.MASKS,
    }
    files += [key for key, value in choices.items() if os.path.isfile(value)]
    cfg.merge_from_list([x for key in files for x in (key, psis_keys()[key].default)])
    return cfg


def _is_known(dataset: str) -> bool:
    """Whether a data set has a name elsewhere, too: not one of ``--train-json``."""
    return dataset in DatasetCatalog and not dataset.startswith(("train:", "val:"))


def _metrics(results: str | None, weights: str) -> dict[str, dict[str, float]]:
    path = results or os.path.join(os.path.dirname(weights), "results.json")
    if not results and not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        return {
            str(task): {
                str(key): round(float(value), 3)
                for key, value in row.items()
                if isinstance(value, (int, float)) and math.isfinite(value)
            }
            for task, row in content.items()
        }
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"The results {path} cannot be used ({getattr(error, 'strerror', None) or error}); "
            "give --results, the results.json of an evaluation."
        ) from error


def _versions() -> dict[str, str]:
    return {
        "psis_d2": psis_d2.__version__,
        "detectron2": str(detectron2.__version__),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _commit() -> str:
    """The commit of the checkout that this runs from; "" for an installed package."""
    root = Path(psis_d2.__file__).parents[1]
    if not (root / "setup.py").is_file():
        return ""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _hub():
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise UserError(
            "--push needs huggingface_hub, which is not installed; run: pip install huggingface_hub"
        ) from error
    return huggingface_hub.HfApi()


def _upload(api, repository: str, file: Path, card: Path) -> None:
    try:
        api.create_repo(repository, exist_ok=True)
        for path, name in ((file, file.name), (card, "README.md")):
            api.upload_file(path_or_fileobj=str(path), path_in_repo=name, repo_id=repository)
    # Of requests, httpx and the hub itself, by version.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"The upload to {repository} failed ({reason}); log in with `hf auth login`. The files "
            f"are in {file.parent}."
        ) from error
