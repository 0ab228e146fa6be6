"""PartialShapes: a small synthetic instance segmentation data set, made on the spot.

    python -m psis_d2.data.datasets.partial_shapes --out datasets/partial_shapes --preview look.png

Twenty categories, ten seen and ten unseen, whose texture and hue are tied to the category, on
clutter of the same textures. There are two editions: in the second one an object is made of three
parts of other looks, which the clutter shares, and there is a split for reporting (``test``) beside
that for choosing (``val``). Files are in COCO format, with the masks as RLE because rings and
occlusion make holes. All categories carry masks in the json; ``PSIS.SEEN_CLASSES shapes`` (or
``shapes-swapped``) takes those of the unseen ones away in training.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator

from psis_d2.data.datasets import shapes_parts, shapes_scene
from psis_d2.data.datasets.shapes_scene import (
    IMAGE_SIZE,
    SEEN_SHAPES,
    SHAPE_NAMES,
    UNSEEN_SHAPES,
)
from psis_d2.errors import UserError, exit_on_user_error
from psis_d2.files import written_at_once
from psis_d2.optional import require

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

cv2 = require("cv2")

__all__ = [
    "SEEN_SHAPES",
    "SHAPE_NAMES",
    "UNSEEN_SHAPES",
    "encode_image",
    "generate",
    "prepare",
]

logger = logging.getLogger(__name__)

GENERATOR = "PartialShapes"
EDITIONS = {"1": shapes_scene, "2": shapes_parts}
"""Version in the json -> its ``SPLITS`` and ``compose_image``. A version stays as it is: the same
seed gives the same images and annotations for ever."""
VERSION = "1"

_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_PNG_SIZE = 2 * IMAGE_SIZE.to_bytes(4, "big")
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"

NUM_TRAIN = 800
NUM_VAL = 150


def json_path(folder: str, split: str) -> str:
    """Path of the annotations of a split in a data set folder."""
    return os.path.join(folder, "annotations", f"instances_{split}.json")


def encode_image(
    seed: int, split: str, index: int, version: str = VERSION
) -> tuple[bytes, dict, list[dict]]:
    """Draw one image and encode it for the files.

    Returns:
        The PNG file's bytes, the image's json record, and its annotations without their ids.
    """
    image, objects = EDITIONS[version].compose_image(seed, split, index)
    ok, png = cv2.imencode(".png", image[:, :, ::-1])
    if not ok:
        raise RuntimeError("OpenCV failed to encode a PNG image.")
    record = {
        "id": index + 1,
        "file_name": f"{index + 1:06d}.png",
        "height": IMAGE_SIZE,
        "width": IMAGE_SIZE,
    }
    annotations = []
    for item in objects:
        rle = coco_mask.encode(np.asfortranarray(item.mask, dtype=np.uint8))
        annotations.append(
            {
                "image_id": record["id"],
                "category_id": item.category_id,
                "bbox": [float(x) for x in coco_mask.toBbox(rle)],
                "area": float(item.mask.sum()),
                "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
                "iscrowd": 0,
            }
        )
    return png.tobytes(), record, annotations


def _encode_job(job: tuple[int, str, int, str]) -> tuple[bytes, dict, list[dict]]:
    return encode_image(*job)


def _encode_split(info: dict, split: str, workers: int) -> Iterator[tuple[bytes, dict, list[dict]]]:
    """Encoded images in the order of their index, whatever the number of workers."""
    count = info[f"num_{split}"]
    jobs = [(info["seed"], split, index, info["version"]) for index in range(count)]
    if workers == 0:
        yield from map(_encode_job, jobs)
        return
    # Forking this process could deadlock if it runs threads; a server that has imported everything
    # and runs none can be forked safely, and the import is paid once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([encode_image.__module__])
    with context.Pool(workers) as pool:
        yield from pool.imap(_encode_job, jobs, chunksize=8)


def _info(seed: int, num_train: int, num_val: int, version: str) -> dict:
    sizes = {f"num_{split}": num_val for split in EDITIONS[version].SPLITS}
    return {
        "description": "PartialShapes, a synthetic set for partially supervised segmentation",
        "generator": GENERATOR,
        "version": version,
        "seed": seed,
        **(sizes | {"num_train": num_train}),
    }


def _categories() -> list[dict]:
    return [
        {"id": i + 1, "name": name, "supercategory": "seen" if name in SEEN_SHAPES else "unseen"}
        for i, name in enumerate(SHAPE_NAMES)
    ]


def _read_info(folder: str) -> dict | None:
    """What the folder says about its own making; None if it does not hold PartialShapes."""

    def info_of(split: str) -> dict:
        with open(json_path(folder, split), encoding="utf-8") as file:
            return json.load(file)["info"]

    try:
        first = info_of("train")
        others = [info_of(split) for split in EDITIONS[first["version"]].SPLITS[1:]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    same = all(info == first for info in others)
    return first if same and first.get("generator") == GENERATOR else None


def _is_vacant(folder: str) -> bool:
    return not os.path.lexists(folder) or (os.path.isdir(folder) and not os.listdir(folder))


def _write_split(
    folder: str,
    split: str,
    info: dict,
    workers: int,
    bar: tqdm | None = None,
    mend: bool = False,
) -> None:
    """Write a split; `mend` leaves whole images as they are."""
    os.makedirs(os.path.join(folder, split), exist_ok=mend)
    os.makedirs(os.path.dirname(json_path(folder, split)), exist_ok=True)
    images, annotations = [], []
    for png, record, objects in _encode_split(info, split, workers):
        path = os.path.join(folder, split, record["file_name"])
        if not (mend and _is_png(path)):
            with written_at_once(path, binary=True) if mend else open(path, "wb") as file:
                file.write(png)
        images.append(record)
        # From 1 on: pycocotools takes a matched ground truth of id 0 for an unmatched one.
        annotations += [{"id": len(annotations) + i + 1, **a} for i, a in enumerate(objects)]
        if bar is not None:
            bar.update()
    content = {
        "info": info,
        "categories": _categories(),
        "images": images,
        "annotations": annotations,
    }
    # on the disk before the folder gets its name
    with written_at_once(json_path(folder, split)) as file:
        json.dump(content, file)


def generate(
    folder: str,
    num_train: int = NUM_TRAIN,
    num_val: int = NUM_VAL,
    seed: int = 0,
    workers: int = 0,
    progress: bool = True,
    version: str = VERSION,
) -> None:
    """Write the data set: ``{split}/NNNNNN.png`` and ``annotations/instances_{split}.json``.

    The files are written beside ``folder`` and renamed at the end, so a half-written data set is
    never seen and two processes may do this at the same time. A folder that holds the very same
    data set already is left as it is.

    Args:
        folder: where to write; missing or empty, or the same data set.
        num_train, num_val: number of images; ``test``, in the second edition, has ``num_val``.
        seed: non-negative; image ``i`` depends on the seed, its split and ``i`` only.
        workers: processes to draw with; 0 draws in this one. The result is the same.
        progress: show a bar on a terminal.
        version: the edition, "1" or "2".

    Raises:
        UserError: a number is out of range, the folder holds something else, or cannot be written.
    """
    for name, value, least in (
        ("number of training images", num_train, 1),
        ("number of validation images", num_val, 1),
        ("seed", seed, 0),
        ("number of workers", workers, 0),
    ):
        if value < least:
            raise UserError(f"The {name} is {value}, but it must be at least {least}.")
    folder = os.path.abspath(folder)
    info = _info(seed, num_train, num_val, version)
    splits = EDITIONS[version].SPLITS
    if not _is_vacant(folder):
        _require_same(folder, info)
        return
    scratch = os.path.join(
        os.path.dirname(folder), f".{os.path.basename(folder)}.{uuid.uuid4().hex[:12]}.tmp"
    )
    started = time.perf_counter()
    total = sum(info[f"num_{split}"] for split in splits)
    logger.info("Generating PartialShapes: %d images into %s", total, folder)
    try:
        os.makedirs(scratch)
        show = progress and sys.stderr.isatty()
        with tqdm(total=total, desc="PartialShapes", unit="image", disable=not show) as bar:
            for split in splits:
                _write_split(scratch, split, info, workers, bar)
        _publish(scratch, folder, info)
    except OSError as error:
        raise UserError(
            f"Cannot write PartialShapes into {folder} ({error.strerror or error}); choose a "
            "folder that is writable."
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    logger.info("Generated %d images in %.1f s", total, time.perf_counter() - started)


def _publish(scratch: str, folder: str, info: dict) -> None:
    """Give the finished files their name in one step."""
    try:
        os.rename(scratch, folder)
    except OSError:
        # Somebody else was quicker. Fine if they wrote the same data set.
        if _is_vacant(folder):
            raise
        _require_same(folder, info)


def _require_same(folder: str, info: dict) -> None:
    found = _read_info(folder)
    if found == info:
        return
    if found is None:
        raise UserError(
            f"The folder {folder} holds something else than PartialShapes; choose another folder "
            "or empty this one."
        )
    keys = [key for key in info if found.get(key) != info[key]]
    difference = ", ".join(f"{key} {found.get(key)} instead of {info[key]}" for key in keys)
    raise UserError(
        f"The folder {folder} holds another PartialShapes ({difference}); choose another folder "
        "or delete this one."
    )


def prepare(
    folder: str, num_train: int = NUM_TRAIN, num_val: int = NUM_VAL, version: str = VERSION
) -> None:
    """Generate the data set with seed 0 if ``folder`` does not hold it yet.

    A PartialShapes of this version with another seed or other sizes is somebody's choice and stays.
    Files of it that are missing, empty or cut off are made again, with a warning.

    Raises:
        UserError: the folder holds something else, or PartialShapes of another version.
    """
    if not _is_vacant(folder):
        found = _read_info(folder)
        if found is None:
            found = _damaged_info(folder, _info(0, num_train, num_val, version))
        if found is not None and found.get("version") == version:
            _mend(folder, found)
            return
    generate(folder, num_train, num_val, version=version)


def _damaged_info(folder: str, default: dict) -> dict | None:
    """What a folder of which a json is damaged has to hold; None if it may be somebody's data.

    It is ours if nothing else lies in it, and every json is ours, or is none at all. What the
    others say is taken, else `default`.
    """
    splits = EDITIONS[default["version"]].SPLITS
    names = {"annotations", *splits}
    try:
        if not set(os.listdir(folder)) <= names or not os.listdir(
            os.path.join(folder, "annotations")
        ):
            return None
    except OSError:
        return None
    found = default
    for split in splits:
        try:
            with open(json_path(folder, split), encoding="utf-8") as file:
                content = json.load(file)
        except (OSError, ValueError, RecursionError):
            continue
        info = content.get("info") if isinstance(content, dict) else None
        if not isinstance(info, dict) or not info.items() >= {"generator": GENERATOR}.items():
            return None
        found = info
    keys = ("seed", *(f"num_{split}" for split in splits))
    return found if all(type(found.get(key)) is int for key in keys) else None


def _mend(folder: str, info: dict) -> None:
    """Make again what is not whole. Two processes may do so at once: they write the same bytes."""
    damaged = [
        split
        for split in EDITIONS[info["version"]].SPLITS
        if not _is_json(json_path(folder, split), info)
        or not all(
            _is_png(os.path.join(folder, split, f"{index + 1:06d}.png"))
            for index in range(info[f"num_{split}"])
        )
    ]
    if not damaged:
        return
    logger.warning(
        "%s: files of PartialShapes are missing, empty or cut off (in %s); they are made again",
        *(folder, ", ".join(damaged)),
    )
    try:
        for split in damaged:
            _write_split(folder, split, info, workers=0, mend=True)
    except OSError as error:
        raise UserError(
            f"Cannot write PartialShapes into {folder} ({error.strerror or error}); choose a "
            "folder that is writable, or delete this one."
        ) from error


def _is_json(path: str, info: dict) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)["info"] == info
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _is_png(path: str) -> bool:
    """Whether a file begins and ends as an image of the data set; pixels are not decoded."""
    try:
        with open(path, "rb") as file:
            head = file.read(24)
            file.seek(-len(_PNG_END), os.SEEK_END)
            end = file.read()
    except OSError:  # missing, or shorter than that
        return False
    return head[:8] == _PNG_HEAD and head[16:] == _PNG_SIZE and end == _PNG_END


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of ``python -m psis_d2.data.datasets.partial_shapes``."""
    parser = argparse.ArgumentParser(
        description="Generate PartialShapes, a synthetic COCO-format data set.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data set")
    parser.add_argument("--train", type=int, default=NUM_TRAIN, help="training images")
    parser.add_argument("--val", type=int, default=NUM_VAL, help="validation images")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 = this one")
    parser.add_argument("--edition", choices=EDITIONS, default=VERSION, help="which of the two")
    parser.add_argument("--preview", metavar="FILE.png", help="also draw a picture of the data")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command line."""
    args = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with exit_on_user_error():
        generate(args.out, args.train, args.val, args.seed, args.workers, version=args.edition)
        print(f"PartialShapes is in {args.out}")
        if args.preview:
            from psis_d2.data.datasets.shapes_preview import draw_preview
            from psis_d2.visualization import save_png

            save_png(args.preview, draw_preview(args.seed, version=args.edition))
            print(f"A picture of it is in {args.preview}")


if __name__ == "__main__":
    main()
