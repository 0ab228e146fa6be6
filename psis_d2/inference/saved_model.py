"""A trained model as its file describes it: config, classes, weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from psis_d2.config import add_psis_config
from psis_d2.engine.checkpoint import Checkpointer, read_entry
from psis_d2.errors import UserError

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from torch import nn


class SavedModel:
    """What a checkpoint says of its model, before the model is built.

    Attributes:
        cfg: the frozen config, ``MODEL.WEIGHTS`` being the checkpoint.
        class_names: names of the model's classes, by number.
        seen_ids: numbers of the classes that had masks in training.

    Args:
        weights: a checkpoint: a path, or an address that iopath knows.
        config: a config or the path of one; None = the one in the checkpoint.
        opts: ``KEY VALUE`` pairs that change the config.
        device: such as "cpu" or "cuda:1"; None = a GPU if there is one.

    Raises:
        UserError: the file cannot be used, or holds no config and none is given.
    """

    def __init__(
        self,
        weights: str,
        *,
        config: CfgNode | str | None = None,
        opts: Sequence[str] = (),
        device: str | None = None,
    ):
        entry = read_entry(weights)
        cfg = _load_config(weights, config, entry)
        cfg.merge_from_list([str(x) for x in opts])
        cfg.MODEL.WEIGHTS = weights
        cfg.MODEL.DEVICE = device or ("cuda" if torch.cuda.is_available() else "cpu")
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        self.class_names = list(entry.get("class_names") or ())
        if not self.class_names:  # a file of another project
            self.class_names = [f"class {i}" for i in range(num_classes)]
        self.seen_ids = sorted(entry.get("seen_ids") or ())
        cfg.freeze()
        self.cfg = cfg

    @property
    def fingerprint(self) -> str:
        """A digest of weights and config."""
        digest = hashlib.sha256()
        with open(PathManager.get_local_path(self.cfg.MODEL.WEIGHTS), "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = cfg.MODEL.WEIGHTS = cfg.OUTPUT_DIR = ""
        digest.update(cfg.dump().encode())
        return digest.hexdigest()

    def build(self) -> nn.Module:
        """The model on its device, with its weights, in eval mode."""
        model = build_model(self.cfg)
        Checkpointer(model, class_names=self.class_names, complete=True).load(
            self.cfg.MODEL.WEIGHTS
        )
        return model.eval()


def _load_config(weights: str, config: CfgNode | str | None, entry: dict) -> CfgNode:
    if isinstance(config, CfgNode):
        cfg = config.clone()
        cfg.defrost()
        return cfg
    cfg = get_cfg()
    add_psis_config(cfg)
    if config:
        cfg.merge_from_file(config)
    elif entry.get("config"):
        cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(entry["config"])))
    else:
        raise UserError(
            f"The checkpoint {weights} holds no config; name the one it was trained with "
            "(--config-file)."
        )
    return cfg
