"""PartialShapes: a small synthetic instance segmentation data set, made on the spot.

    python -m psis_d2.data.datasets.partial_shapes --out datasets/partial_shapes --preview look.png

Twenty categories, ten seen and ten unseen, whose texture and hue are tied to the category, on
clutter of the same textures. Files are in COCO format, with the masks as RLE because rings and
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

from psis_d2.data.datasets.shapes_scene import (
    IMAGE_SIZE,
    SEEN_SHAPES,
    SHAPE_NAMES,
    SPLITS,
    UNSEEN_SHAPES,
    render_image,
)
from psis_d2.errors import UserError, exit_on_user_error
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
    "render_image",
]

logger = logging.getLogger(__name__)

GENERATOR = "PartialShapes"
VERSION = "1"
"""Changes whenever the same seed gives other images or annotations."""

NUM_TRAIN = 800
NUM_VAL = 150


def json_path(folder: str, split: str) -> str:
    """Path of the annotations of ``train`` or ``val`` in a data set folder."""
    return os.path.join(folder, "annotations", f"instances_{split}.json")


def encode_image(seed: int, split: str, index: int) -> tuple[bytes, dict, list[dict]]:
    """Draw one image and encode it for the files.

    Returns:
        The PNG file's bytes, the image's json record, and its annotations without their ids.
    """
    image, objects = render_image(seed, split, index)
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
    for category_id, mask in objects:
        rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        annotations.append(
            {
                "image_id": record["id"],
                "category_id": category_id,
                "bbox": [float(x) for x in coco_mask.toBbox(rle)],
                "area": float(mask.sum()),
                "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
                "iscrowd": 0,
            }
        )
    return png.tobytes(), record, annotations


def _encode_job(job: tuple[int, str, int]) -> tuple[bytes, dict, list[dict]]:
    return encode_image(*job)


def _encode_split(
    seed: int, split: str, count: int, workers: int
) -> Iterator[tuple[bytes, dict, list[dict]]]:
    """Encoded images in the order of their index, whatever the number of workers."""
    jobs = [(seed, split, index) for index in range(count)]
    if workers == 0:
        yield from map(_encode_job, jobs)
        return
    # Forking this process could deadlock if it runs threads; a server that has imported everything
    # and runs none can be forked safely, and the import is paid once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([encode_image.__module__])
    with context.Pool(workers) as pool:
        yield from pool.imap(_encode_job, jobs, chunksize=8)


def _info(seed: int, num_train: int, num_val: int) -> dict:
    return {
        "description": "PartialShapes, a synthetic set for partially supervised segmentation",
        "generator": GENERATOR,
        "version": VERSION,
        "seed": seed,
        "num_train": num_train,
        "num_val": num_val,
    }


def _categories() -> list[dict]:
    return [
        {"id": i + 1, "name": name, "supercategory": "seen" if name in SEEN_SHAPES else "unseen"}
        for i, name in enumerate(SHAPE_NAMES)
    ]


def _read_info(folder: str) -> dict | None:
    """What the folder says about its own making; None if it does not hold PartialShapes."""
    infos = []
    for split in SPLITS:
        try:
            with open(json_path(folder, split), encoding="utf-8") as file:
                infos.append(json.load(file)["info"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
    same = infos[0] == infos[1] and isinstance(infos[0], dict)
    return infos[0] if same and infos[0].get("generator") == GENERATOR else None


def _is_vacant(folder: str) -> bool:
    return not os.path.lexists(folder) or (os.path.isdir(folder) and not os.listdir(folder))


def _write_split(
    folder: str, split: str, info: dict, workers: int, bar: tqdm | None = None
) -> None:
    os.makedirs(os.path.join(folder, split))
    os.makedirs(os.path.dirname(json_path(folder, split)), exist_ok=True)
    images, annotations = [], []
    for png, record, objects in _encode_split(info["seed"], split, info[f"num_{split}"], workers):
        with open(os.path.join(folder, split, record["file_name"]), "wb") as file:
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
    with open(json_path(folder, split), "w", encoding="utf-8") as file:
        json.dump(content, file)


def generate(
    folder: str,
    num_train: int = NUM_TRAIN,
    num_val: int = NUM_VAL,
    seed: int = 0,
    workers: int = 0,
    progress: bool = True,
) -> None:
    """Write the data set: ``{train,val}/NNNNNN.png`` and ``annotations/instances_{split}.json``.

    The files are written beside ``folder`` and renamed at the end, so a half-written data set is
    never seen and two processes may do this at the same time. A folder that holds the very same
    data set already is left as it is.

    Args:
        folder: where to write; missing or empty, or the same data set.
        num_train, num_val: number of images.
        seed: non-negative; image ``i`` depends on the seed, its split and ``i`` only.
        workers: processes to draw with; 0 draws in this one. The result is the same.
        progress: show a bar on a terminal.

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
    info = _info(seed, num_train, num_val)
    if not _is_vacant(folder):
        _require_same(folder, info)
        return
    scratch = os.path.join(
        os.path.dirname(folder), f".{os.path.basename(folder)}.{uuid.uuid4().hex[:12]}.tmp"
    )
    started = time.perf_counter()
    total = num_train + num_val
    logger.info("Generating PartialShapes: %d images into %s", total, folder)
    try:
        os.makedirs(scratch)
        show = progress and sys.stderr.isatty()
        with tqdm(total=total, desc="PartialShapes", unit="image", disable=not show) as bar:
            for split in SPLITS:
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


def prepare(folder: str, num_train: int = NUM_TRAIN, num_val: int = NUM_VAL) -> None:
    """Generate the data set with seed 0 if ``folder`` does not hold it yet.

    A PartialShapes of this version with another seed or other sizes is somebody's choice and stays.

    Raises:
        UserError: the folder holds something else, or PartialShapes of another version.
    """
    if not _is_vacant(folder):
        found = _read_info(folder)
        if found is not None and found.get("version") == VERSION:
            return
    generate(folder, num_train, num_val)


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
    parser.add_argument("--preview", metavar="FILE.png", help="also draw a picture of the data")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command line."""
    args = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with exit_on_user_error():
        generate(args.out, args.train, args.val, args.seed, args.workers)
        print(f"PartialShapes is in {args.out}")
        if args.preview:
            from psis_d2.data.datasets.shapes_preview import draw_preview
            from psis_d2.visualization import save_png

            save_png(args.preview, draw_preview(args.seed))
            print(f"A picture of it is in {args.preview}")


if __name__ == "__main__":
    main()
