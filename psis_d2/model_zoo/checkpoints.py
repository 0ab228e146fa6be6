"""Trained models by name, with the functions of ``detectron2.model_zoo``.

What needs Detectron2 is imported by the function that needs it: the rest of the zoo does without.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from psis_d2.errors import UserError
from psis_d2.model_zoo.catalog import PREFIX, Model, find_model, models
from psis_d2.model_zoo.configs import get_config_file
from psis_d2.model_zoo.download import cache_folder, fetch
from psis_d2.model_zoo.weights import read_weights

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from torch import nn


def get_checkpoint_url(config_path: str) -> str:
    """The address of a trained model, for ``MODEL.WEIGHTS``; its file is checked when it is used.

    Args:
        config_path: the model's name, or the name of a config that exactly one model has.

    Raises:
        RuntimeError: there is none, as Detectron2's function of this name says it.
    """
    name = config_path.removesuffix(".yaml")
    known = models()
    found = [name] if name in known else [m.name for m in known.values() if m.config == name]
    if len(found) != 1:
        raise RuntimeError(f"Pretrained model for {config_path} is not available!")
    return PREFIX + found[0]


def get_config(config_path: str, trained: bool = False) -> CfgNode:
    """The config of a model.

    Args:
        config_path: its name, see :func:`get_config_file` and :func:`get_checkpoint_url`.
        trained: the config that the trained model has inside, with ``MODEL.WEIGHTS`` set to it,
            instead of the one that trainings start from.

    Raises:
        RuntimeError: there is no such config or no such model.
        UserError: the trained model cannot be downloaded.
    """
    from psis_d2.config import add_psis_config

    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_psis_config(cfg)
    if not trained:
        cfg.merge_from_file(get_config_file(config_path))
        return cfg
    url = get_checkpoint_url(config_path)
    cfg.merge_from_file(config_file_of(url))
    cfg.MODEL.WEIGHTS = url
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """A model in training mode, as Detectron2's function of this name makes it.

    Args:
        config_path: its name.
        trained: with the trained weights; otherwise with those that trainings start from.
        device: such as "cpu"; None = the config's, or the CPU where there is no GPU.

    Raises:
        RuntimeError: there is no such config or no such model.
        UserError: the weights cannot be downloaded or loaded.
    """
    import psis_d2.modeling  # noqa: F401  (registers detectors and heads)
    from psis_d2.engine.checkpoint import Checkpointer

    import torch
    from detectron2.modeling import build_model

    cfg = get_config(config_path, trained)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    if device is not None:
        cfg.MODEL.DEVICE = device
    model = build_model(cfg)
    Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def local_path(name: str) -> Path:
    """The file of a trained model on this machine, downloaded if need be, its hash checked.

    Args:
        name: with or without ``psis_d2://``.

    Raises:
        UserError: there is no such model or no way to its file.
    """
    model = find_model(name)
    return fetch(model.urls, file_name=model.file_name, sha256=model.sha256, size=model.size)


def config_file_of(name: str) -> str:
    """A file with the config that a trained model has inside, in the cache.

    Args:
        name: with or without ``psis_d2://``.

    Raises:
        UserError: there is no such model, no way to its file, or no config in it.
    """
    from psis_d2.files import written_at_once

    model: Model = find_model(name)
    text = read_weights(local_path(name)).get("psis_d2", {}).get("config")
    if not isinstance(text, str):
        raise UserError(f"The model {model.name} has no config inside; give --config-file.")
    path = os.path.join(cache_folder(), os.path.splitext(model.file_name)[0] + ".yaml")
    try:
        with written_at_once(path) as file:
            file.write(text)
    except OSError as error:
        raise UserError(
            f"Cannot write {path} ({error.strerror or error}); choose another folder by "
            "PSIS_D2_CACHE."
        ) from error
    return path
