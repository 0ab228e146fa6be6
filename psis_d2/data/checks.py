"""What can be wrong with the data of a run is found before the run starts."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from psis_d2.data.catalog import prepare_dataset
from psis_d2.data.classes import category_groups, check_classes, get_model_dicts
from psis_d2.data.foreign_masks import (
    match_masks,
    names_file,
    read_mask_file,
    report_matches,
)
from psis_d2.data.supervision import count_masks
from psis_d2.data.training_set import get_training_dicts
from psis_d2.errors import UserError
from psis_d2.optional import require

from tqdm import tqdm

logger = logging.getLogger(__name__)

# Looking for a file waits for the disk or the network, not for a core.
_THREADS = 32
_SHOW_AFTER = 2  # seconds


def check_data(cfg, training: bool = True) -> None:
    """Read all data of a config as a run will, and look for its image files.

    Files that ``PSIS.MISSING_MASKS`` and ``TEST.MASKS`` name are read, too; masks of GrabCut are
    made at the end. ``DATALOADER.CHECK_FILES False`` leaves out looking for files.

    Args:
        cfg: the config.
        training: whether the run will train; otherwise it evaluates only.

    Raises:
        UserError: a data set cannot be used, categories do not fit, training would see no mask
            though its losses need some, or an image file is missing.
    """
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if training or name in cfg.DATASETS.TEST:
            prepare_dataset(name)
    parts = {name: get_model_dicts(cfg, name) for name in cfg.DATASETS.TEST}
    for name, dicts in parts.items():
        if not dicts:
            raise UserError(f"Data set '{name}' has no images to evaluate on.")
    if parts and names_file(cfg.TEST.MASKS):
        file = read_mask_file(cfg.TEST.MASKS, "TEST.MASKS")
        matched = {name: match_masks(file, dicts) for name, dicts in parts.items()}
        report_matches(file, "TEST.MASKS", matched)
    if training:
        dicts = get_training_dicts(cfg, add_missing=cfg.PSIS.MISSING_MASKS != "grabcut")
        check_masks(cfg, dicts)
        parts[", ".join(cfg.DATASETS.TRAIN)] = dicts
    check_classes(cfg)
    category_groups(cfg)
    if cfg.TEST.BOUNDARY_AP:
        require("faster_coco_eval")
    if cfg.DATALOADER.CHECK_FILES:
        for name, dicts in parts.items():
            check_files([record["file_name"] for record in dicts], name)
    if training and cfg.PSIS.MISSING_MASKS == "grabcut":
        get_training_dicts(cfg)


def needs_masks(cfg) -> bool:
    """Whether training with a config learns from masks, and does not ask to do without."""
    from_boxes = (
        cfg.MODEL.META_ARCHITECTURE == "CondInst" and cfg.PSIS.CONDINST.SUPERVISION == "boxes"
    )
    without = from_boxes or cfg.PSIS.MASK_IMAGE_FRACTION == 0
    makes_masks = cfg.PSIS.MISSING_MASKS == "grabcut" and cfg.PSIS.MISSING_MASK_WEIGHT > 0
    return cfg.MODEL.MASK_ON and not makes_masks and not without


def check_masks(cfg, dicts: Sequence[dict]) -> None:
    """Make sure that training with masks sees at least one.

    Args:
        cfg: the config.
        dicts: what it trains on.

    Raises:
        UserError: no object has a mask that training may see.
    """
    if not needs_masks(cfg) or count_masks(dicts).with_mask:
        return
    if any("foreign_segmentation" in a for record in dicts for a in record["annotations"]):
        return
    raise UserError(
        f"No object of {', '.join(cfg.DATASETS.TRAIN)} has a mask that training may see (PSIS."
        f"SEEN_CLASSES {cfg.PSIS.SEEN_CLASSES}), so that the mask head would learn nothing; give "
        "masks, or set PSIS.MISSING_MASKS grabcut (or to a file, with a weight above 0) or "
        "MODEL.MASK_ON False."
    )


def check_files(paths: Sequence[str], name: str) -> None:
    """Make sure that image files are there.

    Args:
        paths: of the images; those with ``://`` are not looked for.
        name: of their data set, for the message.

    Raises:
        UserError: naming the first file that is missing and how many are.
    """
    local = sorted({path for path in paths if "://" not in path})
    with ThreadPoolExecutor(_THREADS) as pool:
        found = tqdm(
            pool.map(os.path.isfile, local, chunksize=64),
            total=len(local),
            desc=f"looking for images of {name}",
            unit="file",
            delay=_SHOW_AFTER,
        )
        missing = [path for path, is_there in zip(local, found, strict=True) if not is_there]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(local)} image files of {name} are missing, for example "
            f"{missing[0]}; check the image folder and the file names in the annotations."
        )
