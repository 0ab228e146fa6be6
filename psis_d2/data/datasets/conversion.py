"""What the converters to COCO's format share: files in and out, masks as annotations."""

from __future__ import annotations

import json

from psis_d2.errors import UserError
from psis_d2.files import written_at_once

import numpy as np
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as mask_util


def read_json(path: str):
    """The content of a json.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Cannot read {path} ({reason}); check the path.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error}; it may be cut off.") from error


def write_json(path: str, content) -> None:
    """Write a json, as a whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with written_at_once(path) as file:
            file.write(json.dumps(content))
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror or error}).") from error


def read_pixels(path: str) -> np.ndarray:
    """The values of a PNG as they are stored: palette indices, or all channels.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        reason = getattr(error, "strerror", None) or "it is no image, or cut off"
        raise UserError(f"Cannot read {path} ({reason}); get the file again.") from error


def mask_annotation(mask: np.ndarray) -> dict:
    """Box, area and RLE of a mask, bool [height, width] with at least one pixel."""
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return rle_annotation(rle)


def rle_annotation(rle: dict) -> dict:
    """Box, area and segmentation of a compressed RLE."""
    counts = rle["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {
        "bbox": [float(x) for x in mask_util.toBbox(rle)],
        "area": float(mask_util.area(rle)),
        "segmentation": {"size": [int(x) for x in rle["size"]], "counts": text},
    }


def clip_box(x0: float, y0: float, x1: float, y1: float, height: int, width: int) -> list | None:
    """XYWH of a box (two corners) inside its image, or None if nothing is."""
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    return [float(x0), float(y0), float(x1 - x0), float(y1 - y0)] if x1 > x0 and y1 > y0 else None


def numbered(contents: dict[str, list], categories: list[dict]) -> dict:
    """A COCO-format json of images and annotations, these numbered from 1."""
    # From 1 on: the COCO code wants ids that are unique and not 0.
    annotations = [{"id": i, **a} for i, a in enumerate(contents["annotations"], start=1)]
    return {"images": contents["images"], "annotations": annotations, "categories": categories}
