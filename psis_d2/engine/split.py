"""The split of a checkpoint, for an evaluation of it."""

import argparse
import os
from collections.abc import Mapping

from psis_d2.data import seen_ids_for
from psis_d2.data.classes import get_model_class_names
from psis_d2.data.splits import resolve_seen_classes
from psis_d2.engine.checkpoint import Checkpointer, read_entry
from psis_d2.engine.checkpoint.entry import seen_names
from psis_d2.errors import UserError
from psis_d2.files import written_at_once

import torch
from detectron2.config import CfgNode

_FILE = "seen_classes.txt"


def adopt_split(cfg: CfgNode, resume: bool = False, chosen: bool = False) -> CfgNode:
    """The config of an evaluation, with the split of the checkpoint that will be evaluated.

    Args:
        cfg: names the checkpoint in ``MODEL.WEIGHTS``.
        resume: the newest checkpoint in ``OUTPUT_DIR`` is evaluated, if there is one.
        chosen: the user has asked for the config's split, which stays; where it is another one,
            :meth:`~psis_d2.engine.checkpoint.Checkpointer.split_note` says so.

    Returns:
        See :func:`with_split_of`.
    """
    if chosen:
        return cfg
    paths = [cfg.MODEL.WEIGHTS]
    if resume:
        paths = [Checkpointer(torch.nn.Identity(), cfg.OUTPUT_DIR).get_checkpoint_file(), *paths]
    path = next(filter(None, paths), "")
    if not path or "://" in path:
        return cfg
    try:
        entry = read_entry(path)
    except UserError:  # what is wrong is said when it is loaded
        return cfg
    return with_split_of(cfg, entry)


def with_classes_of_checkpoint(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments of a run; an evaluation on data of one's own takes the checkpoint's classes.

    The categories of ``--val-json`` are then matched by name, and may be some of them in any order.

    Args:
        args: those of :func:`psis_d2.engine.train.train`. Nothing is changed unless they ask for an
            evaluation on ``--val-json`` and name the checkpoint, but no ``PSIS.CLASSES``.
    """
    opts = [str(opt) for opt in args.opts or ()]
    chosen = dict(zip(opts[::2], opts[1::2], strict=False))
    if not args.eval_only or not args.val_json or args.train_json or "PSIS.CLASSES" in chosen:
        return args
    path = chosen.get("MODEL.WEIGHTS", "")
    if args.resume and chosen.get("OUTPUT_DIR"):
        resumed = Checkpointer(torch.nn.Identity(), chosen["OUTPUT_DIR"]).get_checkpoint_file()
        path = resumed or path
    try:
        names = read_entry(path).get("class_names") if path else None
    except UserError:  # what is wrong is said when it is loaded
        names = None
    if not names:
        return args
    classes = ["PSIS.CLASSES", str(names), "DATASETS.TRAIN", "[]"]
    for node in ("MODEL.ROI_HEADS", "MODEL.RETINANET"):
        classes += [f"{node}.NUM_CLASSES", str(len(names))]
    return argparse.Namespace(**vars(args) | {"opts": classes + opts})


def with_split_of(cfg: CfgNode, entry: Mapping) -> CfgNode:
    """The config of an evaluation under the split that a checkpoint was trained with.

    Categories are matched by name; those that the data does not have are left out.

    Args:
        cfg: the config, frozen or not. Its ``OUTPUT_DIR`` may get a file of names,
            ``seen_classes.txt``, so that its ``PSIS.SEEN_CLASSES`` can name them.
        entry: of the checkpoint, see :func:`psis_d2.engine.checkpoint.read_entry`.

    Returns:
        `cfg` itself if it has that split already or the checkpoint does not tell, else a copy.
    """
    classes = _classes(cfg)
    wanted = [name for name in seen_names(entry) or () if name in classes]
    if not wanted:
        return cfg
    try:
        if {classes[i] for i in seen_ids_for(cfg)} == set(wanted):
            return cfg
    except UserError:  # a split that this data does not know
        pass
    cfg = cfg.clone()
    cfg.defrost()
    cfg.PSIS.SEEN_CLASSES = entry.get("split", "")
    if not _means(cfg.PSIS.SEEN_CLASSES, classes, wanted):
        cfg.PSIS.SEEN_CLASSES = os.path.join(cfg.OUTPUT_DIR, _FILE)
        with written_at_once(cfg.PSIS.SEEN_CLASSES) as file:
            file.writelines(f"{name}\n" for name in wanted)
    cfg.freeze()
    return cfg


def _classes(cfg: CfgNode) -> list[str]:
    try:
        return get_model_class_names(cfg)
    except UserError:
        return []


def _means(split: str, classes: list[str], wanted: list[str]) -> bool:
    """Whether a split's name leads to the wanted classes wherever it is read."""
    if not split or os.path.exists(split):  # a file is not the checkpoint's for sure
        return False
    try:
        ids = resolve_seen_classes(split, classes)
    except UserError:
        return False
    return [classes[i] for i in ids] == [name for name in classes if name in wanted]
