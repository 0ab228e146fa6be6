"""Data sets and data loaders of a config."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Iterator, Sequence

from psis_d2.data.coco import load_categories, load_coco
from psis_d2.data.grabcut_cache import cached_grabcut_masks
from psis_d2.data.joint import joint_class_ids, move_to_joint_classes, read_category_map
from psis_d2.data.loader import Loader, SeededDataset
from psis_d2.data.mapper import PartialMaskMapper
from psis_d2.data.samplers import TrainingBatches
from psis_d2.data.splits import resolve_seen_classes
from psis_d2.data.supervision import (
    add_masks,
    clean_annotations,
    count_masks,
    keep_classes,
    masked_classes,
    match_image_list,
    read_image_list,
    restrict_masks,
    select_images,
)
from psis_d2.errors import UserError

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.samplers import InferenceSampler, RepeatFactorTrainingSampler
from detectron2.utils import comm

logger = logging.getLogger(__name__)

MISSING_MASKS = ("none", "grabcut")


# ---------------------------------------------------------------------------------- data sets


def get_dataset_dicts(name: str) -> list[dict]:
    """Read a registered data set, masks cleaned (see :mod:`psis_d2.data.supervision`).

    A data set with a COCO-format json is read by :func:`psis_d2.data.coco.load_coco`, any other by
    what it registered; its annotations without ``id`` are then numbered from 1 in order.

    Args:
        name: a name in Detectron2's ``DatasetCatalog``.

    Returns:
        Detectron2's standard dataset dicts.

    Raises:
        UserError: the name is unknown or the data is not as it must be.
    """
    metadata = prepare_dataset(name)
    if _has_coco_json(metadata):
        return load_coco(metadata.json_file, metadata.image_root, name)
    dicts = list(DatasetCatalog.get(name))
    for record in dicts:
        missing = {"file_name", "image_id", "height", "width"} - record.keys()
        if missing:
            raise UserError(
                f"Data set '{name}' has an image without {' and '.join(sorted(missing))}: "
                f"{record.get('file_name', record.get('image_id'))}; add it to what the data set "
                "registers."
            )
    annotations = (a for record in dicts for a in record.get("annotations", ()))
    for number, annotation in enumerate(annotations, start=1):
        annotation.setdefault("id", number)
    clean_annotations(dicts)
    return dicts


def get_class_names(name: str) -> list[str]:
    """Category names of a data set; the position is the contiguous id.

    Reads the json only when the metadata does not know them yet.

    Raises:
        UserError: the data set is unknown, cannot be read, or has no category names.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None:
        metadata = prepare_dataset(name)
        if _has_coco_json(metadata):
            return load_categories(metadata.json_file, name)
        DatasetCatalog.get(name)
    if metadata.get("thing_classes") is None:
        raise UserError(
            f"Data set '{name}' has no category names; set thing_classes in its metadata."
        )
    return list(metadata.thing_classes)


def prepare_dataset(name: str) -> Metadata:
    """Check the name and let the data set create its files if it can (``psis_prepare``).

    Reading a data set does this too. Doing it once before a run starts its processes saves each of
    them from creating the same files.

    Returns:
        The metadata of the data set.

    Raises:
        UserError: no data set has the name.
    """
    if name not in DatasetCatalog:
        near = difflib.get_close_matches(name, list(DatasetCatalog), n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise UserError(
            f"No data set is registered as '{name}'{hint}; give --train-json and --val-json for "
            "data of your own."
        )
    metadata = MetadataCatalog.get(name)
    prepare = metadata.get("psis_prepare")
    if prepare is not None:
        prepare()
    return metadata


def _has_coco_json(metadata) -> bool:
    return (
        metadata.get("json_file") is not None
        and metadata.get("image_root") is not None
        and metadata.get("evaluator_type", "coco") == "coco"
    )


# ------------------------------------------------------------------------ the model's classes


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


def _get_model_dicts(cfg, name: str) -> list[dict]:
    """A data set's dicts with the model's classes."""
    dicts = get_dataset_dicts(name)
    if cfg.PSIS.CATEGORY_MAP:
        class_ids = get_model_class_ids(cfg, name)
        move_to_joint_classes(dicts, class_ids, len(get_model_class_names(cfg)))
    return dicts


# ---------------------------------------------------------------------------------- supervision


def get_training_dicts(cfg) -> list[dict]:
    """Read all of ``DATASETS.TRAIN`` and remove the masks that training may not see.

    ``PSIS.SEEN_CLASSES`` restricts by category, unless ``PSIS.ORACLE``; ``PSIS.MASK_IMAGES`` and
    ``PSIS.MASK_IMAGE_FRACTION`` restrict by image, always. Objects without a mask get that of
    ``PSIS.MISSING_MASKS``. Categories that are not in ``PSIS.TRAIN_CLASSES`` lose their boxes, too.
    Images without instances are dropped if ``DATALOADER.FILTER_EMPTY_ANNOTATIONS``, all but
    ``PSIS.TRAIN_IMAGE_FRACTION`` of the others before anything else looks at them; at last, with
    ``PSIS.MASKED_IMAGES_ONLY``, those without a mask. One log line counts the masks.

    Raises:
        UserError: there is nothing to train on, the data sets have different categories, or a
            split or list does not fit the data.
    """
    names = list(cfg.DATASETS.TRAIN)
    if not names:
        raise UserError("DATASETS.TRAIN is empty; name a data set or give --train-json.")
    _check_missing_masks(cfg)
    parts = {name: _get_model_dicts(cfg, name) for name in names}
    dicts = [record for part in parts.values() for record in part]
    class_names = get_class_names(names[0])
    if not cfg.PSIS.CATEGORY_MAP:
        for name in names[1:]:
            _check_same_classes(names[0], name)
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
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        before = len(dicts)
        dicts = [record for record in dicts if _has_instances(record)]
        if len(dicts) < before:
            logger.info("%d images without instances are left out", before - len(dicts))
    if not dicts:
        raise UserError(
            f"The training data ({', '.join(names)}) has no images with instances to train on."
        )

    dicts = _training_share(cfg, dicts)
    masked = masked_classes(dicts)
    seen = _resolve_seen(cfg, class_names, masked, names[0])
    images = _mask_images(cfg, dicts)
    total = count_masks(dicts)
    restrict_masks(dicts, None if cfg.PSIS.ORACLE else seen, images)
    left = count_masks(dicts)
    logger.info(
        "masks: %d of %d instances keep theirs (%d of %d categories seen%s%s); %d had one",
        *(left.with_mask, total.instances, len(seen), len(class_names)),
        ", oracle: masks of unseen ones stay" if cfg.PSIS.ORACLE else "",
        "" if images is None else f", {len(images)} of {len(dicts)} images with masks",
        total.with_mask,
    )
    if cfg.PSIS.MISSING_MASKS == "grabcut":
        # A data set at a time: ids are unique only within one.
        for name, part in parts.items():
            add_masks(part, cached_grabcut_masks(cfg, part, name))
    return _masked_images(dicts) if cfg.PSIS.MASKED_IMAGES_ONLY else dicts


def _check_missing_masks(cfg) -> None:
    if cfg.PSIS.MISSING_MASKS not in MISSING_MASKS:
        raise UserError(
            f"PSIS.MISSING_MASKS is '{cfg.PSIS.MISSING_MASKS}'; choose one of "
            f"{', '.join(MISSING_MASKS)}."
        )


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
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if cfg.PSIS.CATEGORY_MAP:
        names = names[:1]  # the others have other classes
    failure = UserError("DATASETS.TRAIN and DATASETS.TEST are empty; name a data set.")
    for name in names:
        try:
            class_names = get_class_names(name)
        except UserError as error:
            # A trained model is evaluated also where its training data is not.
            failure = error if name == names[0] else failure
            continue
        return _resolve_seen(cfg, class_names, masked, name)
    raise failure


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
    own = _own_masked_classes_of(name)
    class_ids = get_model_class_ids(cfg, name)
    return set(own) if class_ids is None else {class_ids[i] for i in own} - {None}


def _own_masked_classes_of(name: str) -> frozenset[int]:
    """Categories with masks, remembered as long as the json stays the same file."""
    json_file = prepare_dataset(name).get("json_file")
    stamp = None
    if json_file is not None and os.path.isfile(json_file):
        stat = os.stat(json_file)
        stamp = (json_file, stat.st_mtime_ns, stat.st_size)
    key = (name, stamp)
    if stamp is None or key not in _masked_classes:
        _masked_classes[key] = frozenset(masked_classes(get_dataset_dicts(name)))
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


def _check_same_classes(first: str, second: str) -> None:
    """Raise unless two data sets have the same category names in the same order."""
    ours, theirs = get_class_names(first), get_class_names(second)
    if ours == theirs:
        return
    differing = [
        f"'{a}'" if b is None else f"'{b}'" if a is None else f"'{a}' / '{b}'"
        for a, b in _pad(ours, theirs)
        if a != b
    ]
    raise UserError(
        f"Data sets '{first}' ({len(ours)} categories) and '{second}' ({len(theirs)}) differ in "
        f"their category names: {', '.join(differing[:5])}; they must have the same ones in the "
        "same order of ids."
    )


def _pad(ours: Sequence[str], theirs: Sequence[str]) -> Iterator[tuple[str | None, str | None]]:
    for i in range(max(len(ours), len(theirs))):
        yield ours[i] if i < len(ours) else None, theirs[i] if i < len(theirs) else None


# ---------------------------------------------------------------------------------- loaders


def build_train_loader(
    cfg, start_iter: int = 0, mapper: Callable[[dict], dict] | None = None
) -> Loader:
    """The endless training data of this process.

    Batch ``k`` depends on the config and on ``SEED`` only: not on the number of workers, not on
    where training was resumed, not on the random numbers the model draws. (A negative ``SEED``
    means a random one, shared by all processes.) With ``DATALOADER.ASPECT_RATIO_GROUPING`` a batch
    has only images wider than high, or only others.

    Args:
        cfg: the config; ``SOLVER.IMS_PER_BATCH`` counts the images of all processes.
        start_iter: iteration to begin with; earlier batches are skipped without reading images.
        mapper: makes a sample of a dataset dict; by default a :class:`PartialMaskMapper`.

    Returns:
        An iterable of lists of ``IMS_PER_BATCH / number of processes`` mapped samples. Each
        ``iter()`` begins at ``start_iter``.

    Raises:
        UserError: the data or the config is not usable.
    """
    world_size = comm.get_world_size()
    total = cfg.SOLVER.IMS_PER_BATCH
    if total < 1 or total % world_size:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {total} and cannot be shared evenly by {world_size} "
            f"processes; choose a multiple of {world_size}."
        )
    dicts = get_training_dicts(cfg)
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    groups = None
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        groups = [int(record["width"] > record["height"]) for record in dicts]
    batches = TrainingBatches(
        len(dicts),
        total // world_size,
        seed=seed,
        start=start_iter,
        rank=comm.get_rank(),
        world_size=world_size,
        groups=groups,
        repeat_factors=_repeat_factors(cfg, dicts),
    )
    dataset = SeededDataset(dicts, mapper or PartialMaskMapper(cfg, is_train=True), seed)
    return Loader(dataset, num_workers=cfg.DATALOADER.NUM_WORKERS, batch_sampler=batches)


def build_test_loader(cfg, name: str, with_boxes: bool = False) -> Loader:
    """The images of one data set, one a batch, shared by the processes.

    Args:
        cfg: the config.
        name: the data set.
        with_boxes: whether samples carry the annotated boxes, (the model's) classes and ids as
            ``instances``.

    Returns:
        A finite iterable, with ``len()``, of lists of one mapped sample.

    Raises:
        UserError: the data is not usable, or its categories are not those of the training data
            (where those are known).
    """
    dicts = _get_model_dicts(cfg, name)
    if not dicts:
        raise UserError(f"Data set '{name}' has no images to evaluate on.")
    for train_name in cfg.DATASETS.TRAIN if not cfg.PSIS.CATEGORY_MAP else ():
        if MetadataCatalog.get(train_name).get("thing_classes") is not None:
            _check_same_classes(train_name, name)
    mapper = PartialMaskMapper(cfg, is_train=False, with_boxes=with_boxes)
    return Loader(
        SeededDataset(dicts, mapper, seed=0),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        batch_size=1,
        sampler=InferenceSampler(len(dicts)),
    )


def _repeat_factors(cfg, dicts: list[dict]) -> torch.Tensor | None:
    sampler = cfg.DATALOADER.SAMPLER_TRAIN
    if sampler == "TrainingSampler":
        return None
    if sampler == "RepeatFactorTrainingSampler":
        # Newer versions of Detectron2 have this option and pass it on in the same way.
        options = {}
        if "REPEAT_SQRT" in cfg.DATALOADER:
            options["sqrt"] = cfg.DATALOADER.REPEAT_SQRT
        return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dicts, cfg.DATALOADER.REPEAT_THRESHOLD, **options
        )
    raise UserError(
        f"DATALOADER.SAMPLER_TRAIN is '{sampler}'; known are TrainingSampler and "
        "RepeatFactorTrainingSampler."
    )
