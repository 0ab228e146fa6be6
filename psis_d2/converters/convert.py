"""From a file of another code base to a file of psis_d2."""

import os
import pickle
from collections.abc import Mapping

from psis_d2.converters.adelaidet import ADELAIDET
from psis_d2.converters.opmask import OPMASK
from psis_d2.converters.rules import rename
from psis_d2.converters.shapeprop import SHAPEPROP
from psis_d2.errors import UserError, check_choice
from psis_d2.files import written_at_once

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

SOURCES = {"adelaidet": ADELAIDET, "opmask": OPMASK, "shapeprop": SHAPEPROP}
"""What ``psis-d2 convert --from`` may name."""

# A counter that only BatchNorm's cumulative average reads; older files have none.
_MAY_LACK = "num_batches_tracked"


def convert_checkpoint(source: str, path: str, output: str, cfg: CfgNode) -> tuple[str, ...]:
    """Convert a checkpoint file.

    Nothing in the file is executed: it is read with ``weights_only``.

    Args:
        source: a key of :data:`SOURCES`.
        path: the file, ``{"model": parameters, ...}`` or the parameters themselves.
        output: the file to write, complete or not at all.
        cfg: config of the model that it will be loaded into.

    Returns:
        KEY, VALUE, ... that the converted weights have to be run with.

    Raises:
        UserError: the file cannot be read, or is not of this source and this config.
    """
    check_choice("The source", source, SOURCES)
    state = convert_state(source, _read(path), cfg)
    with written_at_once(output, binary=True) as file:
        torch.save({"model": state}, file)
    return SOURCES[source].options


def convert_state(source: str, state: Mapping[str, Tensor], cfg: CfgNode) -> dict[str, Tensor]:
    """Convert parameters; see :func:`convert_checkpoint`.

    Raises:
        UserError: they are not of this source and this config.
    """
    chosen = SOURCES[source]
    renamed = rename(state, chosen.rules)
    if chosen.finish:
        renamed = chosen.finish(renamed, cfg)
    _check(renamed, cfg)
    return renamed


def _check(state: Mapping[str, Tensor], cfg: CfgNode) -> None:
    """Compare names and shapes with those of the config's model."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        wanted = build_model(cfg).state_dict()
    for name, value in state.items():
        if name not in wanted:
            raise UserError(
                f"The checkpoint has {name}, and the config's model has no such parameter; give "
                "the config of the model that was trained."
            )
        if value.shape != wanted[name].shape:
            raise UserError(
                f"{name} is {list(value.shape)} in the checkpoint and {list(wanted[name].shape)} "
                "in the config's model; give the config of the model that was trained."
            )
    missing = [x for x in wanted if x not in state and not x.endswith(_MAY_LACK)]
    if missing:
        raise UserError(
            f"The checkpoint lacks {', '.join(missing[:3])}"
            f"{f' and {len(missing) - 3} more' * (len(missing) > 3)}, which the config's model "
            "has; give the config of the model that was trained."
        )


def _read(path: str) -> dict[str, Tensor]:
    if not os.path.isfile(path):
        raise UserError(f"The checkpoint {path} does not exist; give an existing file.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:200].rstrip(".") or type(error).__name__
        raise UserError(
            f"The checkpoint {path} cannot be read as weights alone ({reason}); save its tensors "
            "with torch.save, and nothing but tensors."
        ) from error
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise UserError(
            f"The checkpoint {path} must hold tensors by name, or such a dict as 'model'; save it "
            "so with torch.save."
        )
    return state
