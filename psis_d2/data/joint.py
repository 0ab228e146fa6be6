"""One class space for data sets with different categories.

Boxes of many categories come from one data set, masks of a few from another. The classes of the
model are those of the first training data set; a *category map* says which of them each category of
the others is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from psis_d2.errors import UserError

import yaml


def read_category_map(path: str) -> dict[str, str | None]:
    """Read a map from category names to names of the model's classes.

    Args:
        path: a YAML or JSON file with one entry a category; null leaves the category out. A
            relative path is looked for here and in ``DETECTRON2_DATASETS``.

    Raises:
        UserError: the file is missing or holds something else.
    """
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    found = [place for place in (path, os.path.join(root, path)) if os.path.isfile(place)]
    if not found:
        raise UserError(
            f"The category map PSIS.CATEGORY_MAP {path} exists neither here nor in {root}; check "
            "the path. (psis-d2 prepare-visual-genome writes the one for Visual Genome.)"
        )
    try:
        with open(found[0], encoding="utf-8-sig") as file:
            content = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"Cannot read the category map {found[0]} as YAML: {reason}.") from error
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, (str, type(None)))
        for key, value in content.items()
    ):
        raise UserError(
            f"The category map {found[0]} must have one line `category: class` for each category, "
            "with names or null."
        )
    return content


def joint_class_ids(
    names: Sequence[str],
    joint_names: Sequence[str],
    category_map: dict[str, str | None],
    dataset_name: str,
) -> list[int | None]:
    """The model's class of every category of a data set.

    Args:
        names: the data set's categories.
        joint_names: the model's classes.
        category_map: where a category is not called as its class is.
        dataset_name: for error messages.

    Returns:
        One id for each of ``names``, None for a category that is left out.

    Raises:
        UserError: a category is in neither, or is mapped to no class.
    """
    place = {name: i for i, name in enumerate(joint_names)}
    targets = {name: category_map.get(name, name) for name in names}
    strays = [f"'{name}'" for name in names if name not in category_map and name not in place]
    if strays:
        raise UserError(
            f"PSIS.CATEGORY_MAP says nothing of {', '.join(strays[:5])} of data set "
            f"'{dataset_name}', which the model's {len(joint_names)} classes lack; add a line for "
            "each, null to leave it out."
        )
    lost = [f"'{target}'" for target in targets.values() if target and target not in place]
    if lost:
        raise UserError(
            f"PSIS.CATEGORY_MAP maps to {', '.join(lost[:5])}, which the model's "
            f"{len(joint_names)} classes lack; correct it, or map to null."
        )
    return [None if targets[name] is None else place[targets[name]] for name in names]


def move_to_joint_classes(
    dicts: list[dict], class_ids: Sequence[int | None] | None, num_classes: int
) -> None:
    """Give annotations the model's classes. In place.

    Every record gets ``exhaustive``: whether objects of all of the model's classes are annotated in
    it. Where they are not, what is not annotated is unknown, not background: the detector takes no
    background from these images.

    Args:
        dicts: standard dataset dicts of one data set.
        class_ids: what :func:`joint_class_ids` gave; None if the categories are the classes.
        num_classes: of the model.
    """
    exhaustive = class_ids is None or set(class_ids) >= set(range(num_classes))
    for record in dicts:
        record["exhaustive"] = exhaustive
        if class_ids is None:
            continue
        kept = []
        for annotation in record.get("annotations", ()):
            target = class_ids[annotation["category_id"]]
            if target is not None:
                kept.append({**annotation, "category_id": target})
        record["annotations"] = kept
