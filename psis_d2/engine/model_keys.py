"""Whether a config's model can be built, and whether it makes use of every key that is set for it.

A key without effect is a wish that nobody hears: ``PSIS.FCN_UPSAMPLINGS 2`` with another head than
the one that has it. There is no list of who reads what. The model is built once on PyTorch's meta
device, without memory or random numbers, from a config that notes which of its keys are read.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping
from typing import Any

import psis_d2.modeling  # noqa: F401  (registers detectors and heads)
from psis_d2.config import psis_keys
from psis_d2.config_checks import value_of
from psis_d2.config_rules import PART_OPTIONS
from psis_d2.errors import UserError, check_choice

import torch
from detectron2.config import CfgNode
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    RPN_HEAD_REGISTRY,
    build_model,
)

logger = logging.getLogger(__name__)

NAMES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
}
"""Keys that name a part of the model, and where the part has to be registered."""

_CLASS_AGNOSTIC = "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK"
# What keys of models are about where there is no mask branch.
_OF_DETECTORS = ("PSIS.FCOS.", "PSIS.RETINANET.", "PSIS.NASFPN.")


def check_model(cfg: CfgNode) -> None:
    """Turn down a config that names unknown parts or sets what its model has no use for.

    Raises:
        UserError: one sentence that names the keys, or what the model's parts say themselves.
    """
    for key, registry in NAMES.items():
        if name := value_of(cfg, key):
            check_choice(key, name, sorted(known for known, _ in registry))
    notes = _notes_of_building(cfg)
    if notes is None:
        return
    idle = _idle_keys(cfg, notes)
    if cfg.MODEL.MASK_ON and not value_of(cfg, _CLASS_AGNOSTIC) and _CLASS_AGNOSTIC not in notes:
        raise UserError(
            f"{_CLASS_AGNOSTIC} is False, but {_described(cfg)} makes the same masks either way; "
            "set it to True, as the configs do."
        )
    if idle:
        wishes = ", ".join(f"{key} {value_of(cfg, key)!r}" for key in idle)
        defaults = ", ".join(repr(psis_keys()[key].default) for key in idle)
        raise UserError(
            f"{wishes} would have no effect, since {_described(cfg)} reads no such key; leave out "
            f"what is meant for another model, which is to say {defaults}."
        )
    for key in notes.idle_of_parts():
        where = " and ".join(PART_OPTIONS)
        raise UserError(
            f"{key} would have no effect on the part of the model that it is given to; leave it "
            f"out of {where}."
        )


def _described(cfg: CfgNode) -> str:
    model = cfg.MODEL
    names = [model.META_ARCHITECTURE, model.PROPOSAL_GENERATOR.NAME]
    if model.META_ARCHITECTURE == "GeneralizedRCNN":
        names += [model.ROI_MASK_HEAD.NAME if model.MASK_ON else "no mask head"]
    return f"this model ({', '.join(names)})"


def _idle_keys(cfg: CfgNode, notes: _Notes) -> list[str]:
    """Keys for models that differ from their defaults and that the model has not read.

    Without a mask branch its keys do not count, those of its detector included:
    MODEL.MASK_ON False says as much.
    """
    idle = [
        key
        for key, known in psis_keys().items()
        if known.of_model and value_of(cfg, key) != known.default and not notes.tells_of(key)
    ]
    if cfg.MODEL.MASK_ON:
        return idle
    unused = [node for node in _OF_DETECTORS if not any(x.startswith(node) for x in notes.reads)]
    return [key for key in idle if key.startswith(tuple(unused))]


def _notes_of_building(cfg: CfgNode) -> _Notes | None:
    """Which keys are read when the model is built; None if it cannot be built on "meta"."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    # Files that a run makes before its model may not be there yet, or be those of another config.
    cfg.OUTPUT_DIR = os.devnull
    for key, known in psis_keys().items():
        if known.read_with:
            path, _, name = key.rpartition(".")
            value_of(cfg, path)[name] = copy.deepcopy(known.default)
    notes = _Notes()
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            build_model(_NotedConfig(cfg, notes))
    except UserError:
        raise
    except Exception as error:
        # What is wrong shows, with its place, when the run builds the model on a device.
        logger.debug("not built on the meta device: %s: %s", type(error).__name__, error)
        return None
    return notes


class _Notes:
    """Which keys of a config were read, and which ones were set in copies of it."""

    def __init__(self, original: _Notes | None = None):
        self.original = original
        self.copies: list[_Notes] = []
        self.reads: set[str] = set()
        self.written: dict[str, bool] = {}  # whether to another value

    def __contains__(self, key: str) -> bool:
        return key in self.reads

    def tells_of(self, key: str) -> bool:
        """Whether a key, or the one that it is read with, was read."""
        return key in self.reads or psis_keys()[key].read_with in self.reads

    def read(self, key: str) -> None:
        """Note a read. In a copy that has another value of its own, the original's is not read."""
        if key in self.written or self.original is None:
            self.reads.add(key)
        else:
            self.original.read(key)

    def copy(self) -> _Notes:
        """Notes of a copy of the config."""
        self.copies.append(_Notes(original=self))
        return self.copies[-1]

    def idle_of_parts(self) -> list[str]:
        """psis_d2's keys that were changed in a copy and not read there."""
        changed = [key for key, other in self.written.items() if other and key in psis_keys()]
        found = [key for key in changed if key not in self.reads]
        return found + [key for part in self.copies for key in part.idle_of_parts()]


class _NotedConfig(CfgNode):
    """A config that notes which of its values are read, copies of it included."""

    def __init__(self, values: Mapping, notes: _Notes, prefix: str = ""):
        super().__init__()
        vars(self).update(_notes=notes, _prefix=prefix)
        for name, value in dict.items(values):
            node = isinstance(value, CfgNode)
            value = _NotedConfig(value, notes, f"{prefix}{name}.") if node else copy.deepcopy(value)
            dict.__setitem__(self, name, value)

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if not isinstance(value, CfgNode):
            self._notes.read(self._prefix + name)
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        key = self._prefix + name
        changed = name not in self or dict.__getitem__(self, name) != value
        self._notes.written[key] = changed or self._notes.written.get(key, False)
        super().__setitem__(name, value)

    def get(self, name: str, default: Any = None) -> Any:
        return value_of(self, name) if name in self else default

    def items(self):
        return [(name, self[name]) for name in self]

    def __deepcopy__(self, memo: dict) -> _NotedConfig:
        return _NotedConfig(self, self._notes.copy(), self._prefix)
