"""Checkpoints that know their categories and refuse to be loaded into another model."""

import contextlib
import os
from collections.abc import Sequence

from psis_d2.errors import UserError

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

_OURS = "psis_d2"  # key of our entry in a checkpoint file


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, with the class names and the split in every file it writes.

    Args:
        model: the model, wrapped for distributed training or not.
        save_dir: folder of the checkpoints.
        class_names: names of the model's categories, by contiguous id; empty if unknown.
        seen_ids: contiguous ids of the seen categories.
        skip_mismatched: load what fits and leave the rest as it is, instead of refusing.
        may_lack: name of the one module whose weights a file may lack, "" for any: the others are
            frozen, and random weights would stay random.
        **checkpointables: further objects with a state, as in Detectron2.
    """

    def __init__(
        self,
        model,
        save_dir: str = "",
        *,
        class_names: Sequence[str] = (),
        seen_ids: Sequence[int] = (),
        skip_mismatched: bool = False,
        may_lack: str = "",
        cfg=None,
        **checkpointables,
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.class_names = list(class_names)
        self.seen_ids = list(seen_ids)
        self.skip_mismatched = skip_mismatched
        self.may_lack = may_lack
        self.config = cfg.dump() if cfg is not None else ""

    def save(self, name: str, **kwargs) -> None:
        """Write ``<save_dir>/<name>.pth``, complete or not at all.

        The file is written under another name and then renamed, so that an interrupted run leaves
        the last good checkpoint where it was.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        kwargs[_OURS] = {"class_names": self.class_names, "seen_ids": self.seen_ids}
        kwargs[_OURS]["config"] = self.config
        if "://" in self.save_dir:  # object stores keep whole files only
            return super().save(name, **kwargs)
        data = {"model": self.model.state_dict(), **kwargs}
        for key, thing in self.checkpointables.items():
            data[key] = thing.state_dict()
        final = os.path.join(self.save_dir, f"{name}.pth")
        partial = f"{final}.partial"
        self.logger.info("Saving checkpoint to %s", final)
        try:
            with open(partial, "wb") as file:
                torch.save(data, file)
            os.replace(partial, final)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(partial)
        self.tag_last_checkpoint(f"{name}.pth")

    def load(self, path: str, *args, **kwargs) -> dict:
        """Load a file, see Detectron2's checkpointer.

        Raises:
            UserError: if a local file is missing or made for other categories or another model.
        """
        if path and "://" not in path and not PathManager.isfile(path):
            raise UserError(
                f"The checkpoint {path} does not exist; give an existing file as MODEL.WEIGHTS."
            )
        self._path = path
        checkpoint = super().load(path, *args, **kwargs)
        checkpoint.pop(_OURS, None)
        return checkpoint

    def _load_model(self, checkpoint):
        self._check_classes(checkpoint.get(_OURS, {}).get("class_names", []))
        incompatible = super()._load_model(checkpoint)
        if incompatible.incorrect_shapes and not self.skip_mismatched:
            name, there, here = incompatible.incorrect_shapes[0]
            raise UserError(
                f"The checkpoint {self._path} is for another model or number of classes: {name} is "
                f"{tuple(there)} there and {tuple(here)} here; give the checkpoint that belongs to "
                "this config, or set PSIS.SKIP_MISMATCHED_WEIGHTS True to start from what fits."
            )
        if self.may_lack:
            self._check_complete(incompatible.missing_keys)
        return incompatible

    def _check_complete(self, missing: list[str]) -> None:
        # A counter that only BatchNorm's cumulative average reads; frozen norms have none.
        lacking = [
            key
            for key in missing
            if not key.startswith(f"{self.may_lack}.") and not key.endswith("num_batches_tracked")
        ]
        if lacking:
            more = f" and {len(lacking) - 1} more" * (len(lacking) > 1)
            raise UserError(
                f"The checkpoint {self._path} has no weights for {lacking[0]}{more}, which "
                "PSIS.TRAIN_ONLY freezes; give a trained detector of this config as MODEL.WEIGHTS."
            )

    def _check_classes(self, theirs: list[str]) -> None:
        ours = self.class_names
        if not theirs or not ours or theirs == ours or self.skip_mismatched:
            return
        if len(theirs) != len(ours):
            difference = f"it has {len(theirs)} classes, the data set {len(ours)}"
        else:
            pairs = [f"{a} / {b}" for a, b in zip(theirs, ours, strict=True) if a != b]
            difference = f"its classes differ from the data set's ({', '.join(pairs[:5])})"
        raise UserError(
            f"The checkpoint {self._path} is for other categories: {difference}; give the "
            "checkpoint that belongs to this data set, or set PSIS.SKIP_MISMATCHED_WEIGHTS True "
            "to start from what fits."
        )


def read_entry(path: str) -> dict:
    """What a checkpoint says of itself: class names, split, config; empty for other files."""
    file = PathManager.get_local_path(path)  # also of psis_d2:// and hf://
    return torch.load(file, map_location="cpu", weights_only=True).get(_OURS, {})
