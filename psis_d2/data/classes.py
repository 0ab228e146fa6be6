"""The model's classes, and which of them the categories of a data set are."""

from __future__ import annotations

import re

from psis_d2.data.catalog import get_class_names, get_dataset_dicts
from psis_d2.data.category_names import differing_names, match_names
from psis_d2.data.joint import joint_class_ids, move_to_joint_classes, read_category_map
from psis_d2.data.splits import resolve_seen_classes
from psis_d2.errors import UserError

from detectron2.data import MetadataCatalog


def get_model_class_names(cfg) -> list[str]:
    """Names of the model's classes, by contiguous id.

    Those of ``PSIS.CLASSES``, else those of the first data set of a config whose categories can be
    read: a trained model is evaluated also where its training data is not.

    Raises:
        UserError: as :func:`~psis_d2.data.catalog.get_class_names`, of the first data set.
    """
    if cfg.PSIS.CLASSES:
        return list(cfg.PSIS.CLASSES)
    failure = UserError("DATASETS.TRAIN and DATASETS.TEST are empty; name a data set.")
    for number, name in enumerate((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        try:
            return get_class_names(name)
        except UserError as error:
            failure = failure if number else error
            if cfg.PSIS.CATEGORY_MAP:  # the others have other classes
                break
    raise failure


def category_groups(cfg) -> dict[str, list[int]]:
    """The groups of categories of ``TEST.GROUPS``, {name: contiguous ids of the model's classes}.

    Raises:
        UserError: a name is not a plain word of its own, or a split does not fit the data.
    """
    groups = {}
    for name, split in cfg.TEST.GROUPS:
        # A task is called segm_NAME, and a table puts "segm" and the name in columns of their own.
        if not re.fullmatch(r"[A-Za-z0-9-]+", name) or name in ("seen", "unseen", "all", *groups):
            raise UserError(
                f"TEST.GROUPS names a group '{name}'; take letters, digits and '-', and a name "
                "other than seen, unseen, all and those of the other groups."
            )
        ids = resolve_seen_classes(split, get_model_class_names(cfg), key=f"TEST.GROUPS {name}")
        if not ids:
            raise UserError(f"TEST.GROUPS {name} '{split}' has no category; name another split.")
        groups[name] = ids
    return groups


def get_model_class_ids(cfg, name: str) -> list[int | None] | None:
    """The model's class of every category of a data set.

    Categories are matched by name. A data set may have them in another order, and one that is only
    evaluated on may have fewer. Other names need ``PSIS.CATEGORY_MAP``.

    Returns:
        One class for each category, None for one that the map leaves out; None if the categories
        are the classes.

    Raises:
        UserError: a category is no class and not in the map, a class to train has no category, or
            the data cannot be read.
    """
    if not (cfg.PSIS.CLASSES or cfg.DATASETS.TRAIN or cfg.DATASETS.TEST):
        return None  # nothing else says what the model's classes are
    names, model_names = get_class_names(name), get_model_class_names(cfg)
    if names == model_names:
        return None
    if cfg.PSIS.CATEGORY_MAP:
        return joint_class_ids(names, model_names, read_category_map(cfg.PSIS.CATEGORY_MAP), name)
    class_ids = match_names(names, model_names)
    complete = len(names) == len(model_names) or name not in cfg.DATASETS.TRAIN
    if None in class_ids or not complete:
        first = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)[0]
        theirs = "PSIS.CLASSES" if cfg.PSIS.CLASSES else f"Data sets '{first}'"
        wanted = "the same ones" if name in cfg.DATASETS.TRAIN else "the same ones, or some of them"
        raise UserError(
            f"{theirs} ({len(model_names)} categories) and '{name}' ({len(names)}) differ in their "
            f"category names: {differing_names(model_names, names)}; they must have {wanted}, in "
            "any order, or PSIS.CATEGORY_MAP must say which is which."
        )
    return class_ids


def get_model_dicts(cfg, name: str, dicts: list[dict] | None = None) -> list[dict]:
    """A data set's dicts with the model's classes: read as a config says, or `dicts`, in place."""
    dicts = get_dataset_dicts(name, cfg.PSIS.CROWDS) if dicts is None else dicts
    class_ids = get_model_class_ids(cfg, name)
    if cfg.PSIS.CATEGORY_MAP:
        move_to_joint_classes(dicts, class_ids, len(get_model_class_names(cfg)))
    elif class_ids is not None:
        for record in dicts:
            for annotation in record["annotations"]:
                annotation["category_id"] = class_ids[annotation["category_id"]]
    return dicts


def check_classes(cfg) -> None:
    """Make sure that the model has the data's number of classes, and the data sets the same ones.

    What is known only once a data set has been read is left to that time.

    Raises:
        UserError: if not.
    """
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    read_now = bool(cfg.PSIS.CATEGORY_MAP)
    if not names or not (cfg.PSIS.CLASSES or read_now or _is_known(names[0])):
        return
    num_classes = len(get_model_class_names(cfg))
    if num_classes != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        giver = "PSIS.CLASSES" if cfg.PSIS.CLASSES else f"The data set {names[0]}"
        raise UserError(
            f"{giver} has {num_classes} classes, the model {cfg.MODEL.ROI_HEADS.NUM_CLASSES}; set "
            "MODEL.ROI_HEADS.NUM_CLASSES to the former."
        )
    if cfg.PSIS.CATEGORY_MAP and cfg.MODEL.PROPOSAL_GENERATOR.NAME != "PartialRPN":
        raise UserError(
            f"MODEL.PROPOSAL_GENERATOR.NAME {cfg.MODEL.PROPOSAL_GENERATOR.NAME} would take objects "
            "that are not annotated for background; use PartialRPN with PSIS.CATEGORY_MAP."
        )
    for name in names:
        if read_now or _is_known(name):
            get_model_class_ids(cfg, name)  # says what does not fit


def _is_known(name: str) -> bool:
    return bool(MetadataCatalog.get(name).get("thing_classes"))
