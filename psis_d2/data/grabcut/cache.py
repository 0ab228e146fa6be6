"""GrabCut masks of a whole data set, made once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from psis_d2.data.grabcut.cut import FALLBACKS, OUTSIDE, GrabCut, encode_mask
from psis_d2.data.images import read_image
from psis_d2.errors import UserError
from psis_d2.files import written_at_once

from detectron2.structures import BoxMode
from tqdm import tqdm

logger = logging.getLogger(__name__)

# Work that an interruption loses at the most, and what a thread takes at a time.
_IMAGES_A_PART = 16


def cache_folder(cfg) -> str:
    """``PSIS.CACHE_DIR``, or ``psis_d2_cache`` beside the data sets."""
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    return cfg.PSIS.CACHE_DIR or os.path.join(root, "psis_d2_cache")


def cached_grabcut_masks(cfg, dicts: Sequence[dict], name: str) -> dict[tuple, dict]:
    """:func:`grabcut_masks` with the settings, the threads and the folder of a config."""
    node = cfg.PSIS.GRABCUT
    return grabcut_masks(dicts, name, cache_folder(cfg), GrabCut.from_config(cfg), node.THREADS)


def grabcut_masks(
    dicts: Sequence[dict],
    name: str,
    folder: str,
    settings: GrabCut | None = None,
    threads: int = 0,
    progress: bool = True,
) -> dict[tuple, dict]:
    """GrabCut masks of all objects without a mask, read from the cache or made.

    The cache is one file for the data set, its boxes and the settings. While it is made, finished
    parts lie in a folder beside it, so that an interrupted call continues where it stopped and
    several processes share the work, on several machines if the folder is shared. A file of images
    that changes without its name, size and boxes is not noticed.

    Args:
        dicts: standard dataset dicts of one data set; annotations that are crowd regions or have a
            ``segmentation`` are left out.
        name: of the data set, for file names and messages.
        folder: of the cache; made if it is missing.
        settings: of GrabCut; None for the defaults.
        threads: images that are worked on at a time, 0 = one a core. The masks are the same.
        progress: show how far it is.

    Returns:
        {(image id, annotation id): compressed RLE}. Boxes outside the image have no entry.

    Raises:
        UserError: an image cannot be read, or the folder cannot be written.
    """
    settings = settings or GrabCut()
    jobs = [job for job in map(_job_of, dicts) if job["boxes"]]
    if not jobs:
        return {}
    plain_name = re.sub(r"[^\w.-]+", "_", name).strip("_.")[-60:]
    path = os.path.join(folder, "grabcut", f"{plain_name}-{_fingerprint(jobs, settings)}.json")
    parts = f"{path}.parts"
    try:
        # Another process may merge the parts and remove them at any moment.
        while not os.path.isfile(path):
            _make_parts(jobs, path, parts, settings, threads, name, progress)
            _merge(parts, len(_split(jobs)), path, settings)
        shutil.rmtree(parts, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"Cannot write GrabCut masks to {path} ({error.strerror or error}); set PSIS.CACHE_DIR "
            "to a folder that is writable."
        ) from error
    return _read(path, name)


def _job_of(record: dict) -> dict:
    boxes = [
        [a["id"], *(float(x) for x in BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS))]
        for a in record.get("annotations", ())
        if "segmentation" not in a and not a.get("iscrowd", 0)
    ]
    fields = {key: record[key] for key in ("file_name", "height", "width", "image_id")}
    return {**fields, "boxes": boxes}


def _fingerprint(jobs: list[dict], settings: GrabCut) -> str:
    """Of everything that the masks depend on; the folder of the images may move."""
    digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode())
    for job in jobs:
        fields = {**job, "file_name": os.path.basename(job["file_name"])}
        digest.update(json.dumps(fields, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _split(jobs: list[dict]) -> list[list[dict]]:
    return [jobs[i : i + _IMAGES_A_PART] for i in range(0, len(jobs), _IMAGES_A_PART)]


def _part_file(folder: str, number: int) -> str:
    return os.path.join(folder, f"{number:06d}.json")


def _make_parts(
    jobs: list[dict],
    merged: str,
    folder: str,
    settings: GrabCut,
    threads: int,
    name: str,
    progress: bool,
) -> None:
    """Write all parts that are missing, unless the merged file appears."""
    chunks = _split(jobs)
    missing = [i for i in range(len(chunks)) if not os.path.isfile(_part_file(folder, i))]
    # Processes that share the work begin at different places.
    start = os.getpid() * 7919 % max(len(missing), 1)
    missing = missing[start:] + missing[:start]
    boxes = sum(len(job["boxes"]) for job in jobs)
    logger.info(
        "GrabCut masks of %d boxes in %d images of %s: %d of %d parts are there",
        *(boxes, len(jobs), name, len(chunks) - len(missing), len(chunks)),
    )

    def make(number: int) -> int:
        path = _part_file(folder, number)
        if not os.path.isfile(path) and not os.path.isfile(merged):
            images = [_segment(job, settings) for job in chunks[number]]
            try:
                with written_at_once(path) as file:
                    file.write(json.dumps(images))
            except FileNotFoundError:
                # Gone while it was written: fine if that is because all is done.
                if not os.path.isfile(merged):
                    raise
        return len(chunks[number])

    done = len(jobs) - sum(len(chunks[i]) for i in missing)
    bar = tqdm(
        total=len(jobs),
        initial=done,
        desc=f"GrabCut masks of {name}",
        unit="image",
        # without a terminal every refresh is a line in somebody's log
        miniters=1 if sys.stderr.isatty() else max(1, len(jobs) // 20),
        mininterval=0.1 if sys.stderr.isatty() else 0,
        disable=not progress,
    )
    # Threads, not processes: OpenCV and Pillow compute without the interpreter's lock.
    pool = ThreadPoolExecutor(threads or os.cpu_count())
    try:
        with bar:
            for count in pool.map(make, missing):
                bar.update(count)
    finally:
        pool.shutdown(cancel_futures=True)


def _segment(job: dict, settings: GrabCut) -> list:
    """[image id, height, width, [[annotation id, how it was made, RLE counts or None], ...]]."""
    image = read_image(job, "BGR")
    masks = []
    for key, *box in job["boxes"]:
        mask, made = settings(image, box)
        masks.append([key, made, None if mask is None else encode_mask(mask)["counts"]])
    return [job["image_id"], job["height"], job["width"], masks]


def _merge(folder: str, count: int, path: str, settings: GrabCut) -> None:
    """Join the parts into the cache file; does nothing if another process took them away."""
    images = []
    try:
        for number in range(count):
            with open(_part_file(folder, number), encoding="utf-8") as file:
                images += json.load(file)
    except FileNotFoundError:
        return
    with written_at_once(path) as file:
        file.write(json.dumps({"settings": asdict(settings), "images": images}))


def _read(path: str, name: str) -> dict[tuple, dict]:
    with open(path, encoding="utf-8") as file:
        images = json.load(file)["images"]
    masks, made = {}, Counter()
    for image_id, height, width, objects in images:
        for key, how, counts in objects:
            made[how] += 1
            if counts is not None:
                masks[image_id, key] = {"size": [height, width], "counts": counts}
    logger.info(
        "GrabCut masks of %s: %d of %d boxes cut; filled instead: %s; %d outside the image have "
        "none (%s)",
        *(name, made["grabcut"], sum(made.values())),
        ", ".join(f"{made[kind]} {kind}" for kind in FALLBACKS),
        *(made[OUTSIDE], path),
    )
    return masks
