"""The model's classes, and which of them the categories of a data set are."""

from __future__ import annotations

from psis_d2.data.catalog import get_class_names, get_dataset_dicts
from psis_d2.data.category_names import differing_names
from psis_d2.data.joint import joint_class_ids, move_to_joint_classes, read_category_map
from psis_d2.errors import UserError


def get_model_class_names(cfg) -> list[str]:
    """Names of the model's classes: those of the first data set of a config.

    Raises:
        UserError: as :func:`get_class_names`.
    """
    return get_class_names((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)[0])


def get_model_class_ids(cfg, name: str) -> list[int | None] | None:
    """The model's class of every category of a data set, by ``PSIS.CATEGORY_MAP``.

    Returns:
        One class for each category, None for one that is left out; None if the data set has the
        model's classes itself, as it must without a map.

    Raises:
        UserError: a category is no class and not in the map, or the data cannot be read.
    """
    if not cfg.PSIS.CATEGORY_MAP:
        return None
    names, model_names = get_class_names(name), get_model_class_names(cfg)
    if names == model_names:
        return None
    return joint_class_ids(names, model_names, read_category_map(cfg.PSIS.CATEGORY_MAP), name)


def get_model_dicts(cfg, name: str) -> list[dict]:
    """A data set's dicts with the model's classes."""
    dicts = get_dataset_dicts(name)
    if cfg.PSIS.CATEGORY_MAP:
        class_ids = get_model_class_ids(cfg, name)
        move_to_joint_classes(dicts, class_ids, len(get_model_class_names(cfg)))
    return dicts


def check_same_classes(first: str, second: str) -> None:
    """Make sure that two data sets have the same category names in the same order.

    Raises:
        UserError: they have not.
    """
    ours, theirs = get_class_names(first), get_class_names(second)
    if ours != theirs:
        raise UserError(
            f"Data sets '{first}' ({len(ours)} categories) and '{second}' ({len(theirs)}) differ in "
            f"their category names: {differing_names(ours, theirs)}; they must have the same ones "
            "in the same order of ids."
        )
