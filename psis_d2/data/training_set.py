"""What a config trains on: all its images and boxes, and the masks that training may see."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from psis_d2.data.catalog import coco_reader, prepare_dataset, shared_dataset_dicts
from psis_d2.data.classes import get_model_class_ids, get_model_class_names, get_model_dicts
from psis_d2.data.foreign_masks import (
    match_masks,
    names_file,
    read_mask_file,
    report_matches,
)
from psis_d2.data.grabcut.cache import cached_grabcut_masks
from psis_d2.data.joint import read_category_map
from psis_d2.data.points import report_points
from psis_d2.data.splits import resolve_seen_classes
from psis_d2.data.supervision import (
    add_foreign_masks,
    count_masks,
    keep_classes,
    masked_classes,
    match_image_list,
    read_image_list,
    restrict_masks,
    select_images,
)
from psis_d2.errors import UserError, check_choice

logger = logging.getLogger(__name__)

MISSING_MASKS = ("none", "grabcut")


def get_training_dicts(cfg, add_missing: bool = True) -> list[dict]:
    """Read all of ``DATASETS.TRAIN`` and remove the masks that training may not see.

    ``PSIS.SEEN_CLASSES`` restricts by category, unless ``PSIS.ORACLE``; ``PSIS.MASK_IMAGES`` and
    ``PSIS.MASK_IMAGE_FRACTION`` restrict by image, always. Objects without a mask get that of
    ``PSIS.MISSING_MASKS``, which :func:`~psis_d2.data.supervision.add_foreign_masks` keeps apart.
    Categories that are not in ``PSIS.TRAIN_CLASSES`` lose their boxes, too. Images without
    instances are dropped if ``DATALOADER.FILTER_EMPTY_ANNOTATIONS``, all but
    ``PSIS.TRAIN_IMAGE_FRACTION`` of the others before anything else looks at them. One log line
    counts the masks, another one those of ``PSIS.MISSING_MASKS``.

    Args:
        cfg: the config.
        add_missing: whether objects without a mask get that of ``PSIS.MISSING_MASKS``, which may
            take long.

    Raises:
        UserError: there is nothing to train on, the data sets have different categories, or a
            split, a list or a file of masks does not fit the data.
    """
    names = list(cfg.DATASETS.TRAIN)
    if not names:
        raise UserError("DATASETS.TRAIN is empty; name a data set or give --train-json.")
    if not names_file(cfg.PSIS.MISSING_MASKS):
        check_choice("PSIS.MISSING_MASKS", cfg.PSIS.MISSING_MASKS, MISSING_MASKS)
    parts = {name: get_model_dicts(cfg, name) for name in names}
    dicts = [record for part in parts.values() for record in part]
    class_names = get_model_class_names(cfg)
    if cfg.PSIS.TRAIN_CLASSES != "all":
        trained = resolve_seen_classes(
            cfg.PSIS.TRAIN_CLASSES,
            class_names,
            masked_classes=masked_classes(dicts),
            dataset_name=names[0],
            key="PSIS.TRAIN_CLASSES",
        )
        keep_classes(dicts, trained)
        logger.info("training on %d of %d categories", len(trained), len(class_names))
    crowds = sum(a["iscrowd"] for record in dicts for a in record["annotations"])
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        before = len(dicts)
        dicts = [record for record in dicts if _has_instances(record)]
        if len(dicts) < before:
            logger.info("%d images without instances are left out", before - len(dicts))
    if not dicts:
        hint = f" ({crowds} crowd regions; PSIS.CROWDS instances takes them as instances)"
        raise UserError(
            f"The training data ({', '.join(names)}) has no images with instances to train on"
            f"{hint * bool(crowds)}."
        )

    dicts = _training_share(cfg, dicts)
    masked = masked_classes(dicts)
    seen = _resolve_seen(cfg, class_names, masked, names[0])
    images = _mask_images(cfg, dicts)
    total = count_masks(dicts)
    annotated = {}
    if names_file(cfg.PSIS.MISSING_MASKS):
        annotated = {name: _masks_of(part) for name, part in parts.items()}
    restrict_masks(dicts, None if cfg.PSIS.ORACLE else seen, images)
    left = count_masks(dicts)
    logger.info(
        "masks: %d of %d instances keep theirs (%d of %d categories seen%s%s); %d had one%s",
        *(left.with_mask, total.instances, len(seen), len(class_names)),
        ", oracle: masks of unseen ones stay" if cfg.PSIS.ORACLE else "",
        "" if images is None else f", {len(images)} of {len(dicts)} images with masks",
        total.with_mask,
        f"; {crowds} crowd regions beside them" * bool(crowds),
    )
    if add_missing and cfg.PSIS.MISSING_MASKS != "none":
        # A data set at a time: ids are unique only within one.
        add = _add_from_file if names_file(cfg.PSIS.MISSING_MASKS) else _add_grabcut_masks
        add(cfg, parts, annotated)
        given = [a["foreign_weight"] for x in dicts for a in x["annotations"] if _is_foreign(a)]
        logger.info(
            "masks of %s: %d of %d instances without an annotated mask learn from one%s",
            *(cfg.PSIS.MISSING_MASKS, len(given), left.without_mask),
            f", of weight {min(given):.3g} to {max(given):.3g}" if given else "",
        )
    report_points(dicts, cfg.PSIS.POINTS)
    return _masked_images(dicts) if cfg.PSIS.MASKED_IMAGES_ONLY else dicts


def _is_foreign(annotation: dict) -> bool:
    return "foreign_segmentation" in annotation


def _add_grabcut_masks(cfg, parts: dict[str, list[dict]], annotated) -> None:
    """Give objects without a mask that of GrabCut; arguments as in :func:`_add_from_file`."""
    weight = cfg.PSIS.MISSING_MASK_WEIGHT
    for name, part in parts.items():
        masks = cached_grabcut_masks(cfg, part, name)
        add_foreign_masks(part, {key: (mask, weight) for key, mask in masks.items()})


def _add_from_file(cfg, parts: dict[str, list[dict]], annotated: dict[str, dict]) -> None:
    """Give objects without a mask that of the file ``PSIS.MISSING_MASKS``. In place.

    Args:
        cfg: the config.
        parts: the dicts of each data set.
        annotated: of each, {(image id, annotation id): segmentation} before any was removed: a file
            that repeats a removed one must not bring it back.
    """
    node, key = cfg.PSIS, "PSIS.MISSING_MASKS"
    file = read_mask_file(node.MISSING_MASKS, key)
    matched = {}
    for name, part in parts.items():
        visible = _masks_of(part)
        hidden = {k: mask for k, mask in annotated[name].items() if k not in visible}
        found = match_masks(file, part, min_score=node.MISSING_MASK_MIN_SCORE, hidden=hidden)
        matched[name] = found
        weighted = {k: (x.segmentation, _weight(node, x.score)) for k, x in found.masks.items()}
        add_foreign_masks(part, weighted)
    report_matches(file, key, matched)


def _weight(node, score: float) -> float:
    return node.MISSING_MASK_WEIGHT * score**node.MISSING_MASK_SCORE_POWER


def _masks_of(dicts: Sequence[dict]) -> dict[tuple, list | dict]:
    """{(image id, annotation id): segmentation} of all annotations with a mask."""
    return {
        (record["image_id"], annotation["id"]): annotation["segmentation"]
        for record in dicts
        for annotation in record["annotations"]
        if "segmentation" in annotation
    }


def seen_ids_for(cfg) -> list[int]:
    """Contiguous ids of the seen categories of a config, sorted, for tables and reports.

    The classes are the model's. Reads annotations only for ``PSIS.SEEN_CLASSES auto``, which looks
    at the training masks.

    Raises:
        UserError: the split does not fit the data, or the data cannot be read.
    """
    masked = None
    if cfg.PSIS.SEEN_CLASSES == "auto":
        masked = set().union(*(_masked_classes_of(cfg, name) for name in cfg.DATASETS.TRAIN))
    class_names = get_model_class_names(cfg)
    return _resolve_seen(cfg, class_names, masked, (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)[0])


def _resolve_seen(cfg, class_names: Sequence[str], masked, name: str) -> list[int]:
    spec = cfg.PSIS.SEEN_CLASSES
    if spec != "mapped":
        return resolve_seen_classes(spec, class_names, masked_classes=masked, dataset_name=name)
    if not cfg.PSIS.CATEGORY_MAP:
        raise UserError("PSIS.SEEN_CLASSES 'mapped' needs a PSIS.CATEGORY_MAP; give the file.")
    mapped = set(read_category_map(cfg.PSIS.CATEGORY_MAP).values())
    return [i for i, class_name in enumerate(class_names) if class_name in mapped]


_masked_classes: dict[tuple, frozenset[int]] = {}


def _masked_classes_of(cfg, name: str) -> set[int]:
    """The model's classes that have masks in a data set."""
    own = _own_masked_classes_of(name, cfg.PSIS.CROWDS)
    class_ids = get_model_class_ids(cfg, name)
    return set(own) if class_ids is None else {class_ids[i] for i in own} - {None}


def _own_masked_classes_of(name: str, crowds: str) -> frozenset[int]:
    """Categories with masks, remembered as long as the json stays the same file."""
    prepare_dataset(name)
    reader = coco_reader(name)
    if reader is None or not os.path.isfile(reader.json_file):
        return frozenset(masked_classes(shared_dataset_dicts(name, crowds)))
    stat = os.stat(reader.json_file)
    key = (name, crowds, reader.json_file, stat.st_mtime_ns, stat.st_size)
    if key not in _masked_classes:
        _masked_classes[key] = frozenset(masked_classes(shared_dataset_dicts(name, crowds)))
    return _masked_classes[key]


def _has_instances(record: dict) -> bool:
    return any(not annotation.get("iscrowd", 0) for annotation in record.get("annotations", ()))


def _masked_images(dicts: list[dict]) -> list[dict]:
    """The images of ``PSIS.MASKED_IMAGES_ONLY``."""
    masked = [record for record in dicts if count_masks([record]).with_mask]
    if not masked:
        raise UserError(
            "PSIS.MASKED_IMAGES_ONLY is True, but no training image has a mask that training may "
            "see; set it to False, or see to PSIS.SEEN_CLASSES."
        )
    logger.info("training on %d of %d images, those with a mask", len(masked), len(dicts))
    return masked


def _training_share(cfg, dicts: list[dict]) -> list[dict]:
    """The images of ``PSIS.TRAIN_IMAGE_FRACTION``."""
    fraction, seed = cfg.PSIS.TRAIN_IMAGE_FRACTION, cfg.PSIS.TRAIN_IMAGE_SEED
    if fraction == 1.0:
        return dicts
    key = "PSIS.TRAIN_IMAGE_FRACTION"
    candidates = {record["image_id"] for record in dicts if _has_instances(record)}
    chosen = select_images(candidates, fraction, seed, key)
    if not chosen:
        raise UserError(
            f"{key} {fraction} of {len(candidates)} images is none; give a larger share."
        )
    logger.info("training on %d of %d images with instances", len(chosen), len(candidates))
    return [record for record in dicts if record["image_id"] in chosen]


def _mask_images(cfg, dicts: Sequence[dict]) -> set | None:
    """Ids of the images that keep their masks, or None for all."""
    images = None
    if cfg.PSIS.MASK_IMAGES:
        path = cfg.PSIS.MASK_IMAGES
        images, unmatched = match_image_list(dicts, read_image_list(path))
        if not images:
            raise UserError(
                f"No entry of the image list {path} is an image id or file name of the training "
                f"data; one of its entries is '{min(unmatched)}'."
            )
        if unmatched:
            logger.warning(
                "%d entries of %s mean no training image, for example '%s'",
                *(len(unmatched), path, min(unmatched)),
            )
    if cfg.PSIS.MASK_IMAGE_FRACTION != 1.0:
        # Images without instances are no part of the choice, so that dropping them changes nothing.
        candidates = {record["image_id"] for record in dicts if _has_instances(record)}
        chosen = select_images(
            candidates,
            cfg.PSIS.MASK_IMAGE_FRACTION,
            cfg.PSIS.MASK_IMAGE_SEED,
            "PSIS.MASK_IMAGE_FRACTION",
        )
        images = chosen if images is None else images & chosen
    return images
