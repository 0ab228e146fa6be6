"""GrabCut masks of a whole data set, made once and kept on disk."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from psis_d2.data.grabcut.cut import FALLBACKS, OUTSIDE, GrabCut, encode_mask
from psis_d2.data.images import read_image
from psis_d2.data.supervision import usable_segmentation
from psis_d2.errors import UserError
from psis_d2.files import remove_unfinished, written_at_once

from detectron2.structures import BoxMode
from tqdm import tqdm

logger = logging.getLogger(__name__)

# Work that an interruption loses at the most, and what a thread takes at a time.
_IMAGES_A_PART = 16
_MADE = ("grabcut", *FALLBACKS)


def cache_folder(cfg) -> str:
    """``PSIS.CACHE_DIR``, or ``psis_d2_cache`` beside the data sets."""
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    return cfg.PSIS.CACHE_DIR or os.path.join(root, "psis_d2_cache")


def cached_grabcut_masks(cfg, dicts: Sequence[dict], name: str) -> dict[tuple, dict]:
    """:func:`grabcut_masks` with the settings, the threads and the folder of a config."""
    node = cfg.PSIS.GRABCUT
    return grabcut_masks(
        dicts,
        name,
        cache_folder(cfg),
        GrabCut.from_config(cfg),
        node.THREADS,
        pixel_range=cfg.PSIS.PIXEL_RANGE,
    )


def grabcut_masks(
    dicts: Sequence[dict],
    name: str,
    folder: str,
    settings: GrabCut | None = None,
    threads: int = 0,
    progress: bool = True,
    pixel_range: Sequence[float] = (),
) -> dict[tuple, dict]:
    """GrabCut masks of all objects without a mask, read from the cache or made.

    The cache is one file for the data set, its boxes and the settings. While it is made, finished
    parts lie in a folder beside it, so that an interrupted call continues where it stopped and
    several processes share the work, on several machines if the folder is shared. What is read is
    checked: a file that is empty, cut off or of something else is made again, with a warning. A
    file of images that changes without its name, size and boxes is not noticed.

    Args:
        dicts: standard dataset dicts of one data set; annotations that are crowd regions or have a
            ``segmentation`` are left out.
        name: of the data set, for file names and messages.
        folder: of the cache; made if it is missing.
        settings: of GrabCut; None for the defaults.
        threads: images that are worked on at a time, 0 = one a core. The masks are the same.
        progress: show how far it is.
        pixel_range: see :func:`~psis_d2.data.images.read_pixels`.

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
    fingerprint = _fingerprint(jobs, settings, pixel_range)
    path = os.path.join(folder, "grabcut", f"{plain_name}-{fingerprint}.json")
    parts = f"{path}.parts"
    try:
        if os.path.isdir(os.path.dirname(path)):
            remove_unfinished(os.path.dirname(path))
        # Another process may merge the parts and remove them at any moment.
        while (images := _read_images(path, jobs)) is None:
            segment = functools.partial(_segment, settings=settings, pixel_range=pixel_range)
            _make_parts(jobs, path, parts, segment, threads, name, progress)
            _merge(parts, _split(jobs), path, settings)
        shutil.rmtree(parts, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"Cannot write GrabCut masks to {path} ({error.strerror or error}); set PSIS.CACHE_DIR "
            "to a folder that is writable."
        ) from error
    return _masks_of(images, path, name)


def _job_of(record: dict) -> dict:
    boxes = [
        [a["id"], *(float(x) for x in BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS))]
        for a in record.get("annotations", ())
        if "segmentation" not in a and not a.get("iscrowd", 0)
    ]
    fields = {key: record[key] for key in ("file_name", "height", "width", "image_id")}
    return {**fields, "boxes": boxes}


def _fingerprint(jobs: list[dict], settings: GrabCut, pixel_range: Sequence[float]) -> str:
    """Of everything that the masks depend on; the folder of the images may move."""
    digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode())
    if pixel_range:
        digest.update(json.dumps([float(value) for value in pixel_range]).encode())
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
    segment: Callable[[dict], list],
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
            images = [segment(job) for job in chunks[number]]
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


def _segment(job: dict, settings: GrabCut, pixel_range: Sequence[float]) -> list:
    """[image id, height, width, [[annotation id, how it was made, RLE counts or None], ...]]."""
    image = read_image(job, "BGR", pixel_range)
    masks = []
    for key, *box in job["boxes"]:
        mask, made = settings(image, box)
        masks.append([key, made, None if mask is None else encode_mask(mask)["counts"]])
    return [job["image_id"], job["height"], job["width"], masks]


def _merge(folder: str, chunks: list[list[dict]], path: str, settings: GrabCut) -> None:
    """Join the parts into the cache file; does nothing if one of them is not there or unusable."""
    images = []
    for number, jobs in enumerate(chunks):
        part = _read_images(_part_file(folder, number), jobs)
        if part is None:
            return
        images += part
    with written_at_once(path) as file:
        file.write(json.dumps({"settings": asdict(settings), "images": images}))


def _read_images(path: str, jobs: list[dict]) -> list | None:
    """What :func:`_segment` gave for all jobs, read from a part or from the merged file.

    None if the file is not there, or holds anything else: then it is removed.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):  # no JSON, no text
        content = None
    images = content.get("images") if isinstance(content, dict) else content
    if isinstance(images, list) and len(images) == len(jobs):
        with contextlib.suppress(TypeError, ValueError):
            if all(map(_is_of, images, jobs)):
                return images
    logger.warning(
        "%s is no cache of these GrabCut masks (empty, cut off or changed); made again", path
    )
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
    return None


def _is_of(image, job: dict) -> bool:
    """Whether an entry of the cache is what :func:`_segment` gives for a job."""
    image_id, height, width, objects = image
    if [image_id, height, width] != [job["image_id"], job["height"], job["width"]]:
        return False
    if [key for key, _, _ in objects] != [box[0] for box in job["boxes"]]:
        return False
    for _, how, counts in objects:
        if counts is None:
            usable = how == OUTSIDE
        else:
            mask = {"size": [height, width], "counts": counts}
            usable = how in _MADE and usable_segmentation(mask, height, width)
        if not usable:
            return False
    return True


def _masks_of(images: list, path: str, name: str) -> dict[tuple, dict]:
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
