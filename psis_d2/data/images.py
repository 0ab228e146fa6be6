"""Read an image of a data set, and say clearly what is wrong with it."""

import functools
import logging
import struct
from collections.abc import Sequence

from psis_d2.errors import UserError

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

logger = logging.getLogger(__name__)

# Pillow's modes of more than 8 bits, of which a conversion to colors keeps nothing but 0 and 255.
_INTEGER_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_FLOAT_MODE = "F"
# An image that uses less of its range than this is likely of fewer bits than its format.
_USED_RANGE = 1 / 8


def read_image(record: dict, image_format: str, pixel_range: Sequence[float] = ()) -> np.ndarray:
    """The image of a dataset dict, its EXIF rotation applied.

    Args:
        record: a dict with ``file_name``, ``height`` and ``width``.
        image_format: as Detectron2's ``read_image`` knows it, such as ``BGR``.
        pixel_range: see :func:`read_pixels`.

    Returns:
        uint8 [height, width, 3] (``L``: [height, width, 1]).

    Raises:
        UserError: the image cannot be read or is not as large as the dict says.
    """
    path = record["file_name"]
    image = read_pixels(path, image_format, pixel_range)
    found, expected = image.shape[:2], (record["height"], record["width"])
    if found != expected:
        swapped = " (its EXIF rotation is applied on reading)" * (found == expected[::-1])
        raise UserError(
            f"The image {path} is {found[1]} x {found[0]} pixels{swapped}, but the annotations "
            f"say {expected[1]} x {expected[0]}; correct width and height in the json."
        )
    return image


def read_pixels(path: str, image_format: str, pixel_range: Sequence[float] = ()) -> np.ndarray:
    """An image file, its EXIF rotation applied, whatever the depth of its pixels.

    Gray images of 16 bits or floats are scaled to 8 bits: Pillow's own conversion would cut them.

    Args:
        path: of the file.
        image_format: as Detectron2's ``read_image`` knows it, such as ``BGR``.
        pixel_range: two values that become 0 and 255, with all beyond them, in images of more than
            8 bits; empty for 0 and 65535 in integers, 0 and 1 in floats.

    Returns:
        uint8 [H, W, 3] (``L``: [H, W, 1]).

    Raises:
        UserError: the image cannot be read, or its values are not in the range.
    """
    try:
        with PathManager.open(path, "rb") as file, Image.open(file) as image:
            if image.mode in (*_INTEGER_MODES, _FLOAT_MODE):
                deep = ImageOps.exif_transpose(image)
                gray = Image.fromarray(_to_8_bits(np.asarray(deep), deep.mode, path, pixel_range))
                return detection_utils.convert_PIL_to_numpy(gray, image_format)
        return detection_utils.read_image(path, format=image_format)
    # Pillow reports a damaged file in any of these ways.
    except (
        *(OSError, ValueError, SyntaxError, EOFError, struct.error),
        Image.DecompressionBombError,
    ) as error:
        raise UserError(
            f"Cannot read the image {path} ({type(error).__name__}: {error}); restore the file "
            "or remove it from the json."
        ) from error


def _to_8_bits(
    values: np.ndarray, mode: str, path: str, pixel_range: Sequence[float]
) -> np.ndarray:
    """uint8 of the same shape."""
    kind = "floats" if mode == _FLOAT_MODE else "integers of more than 8 bits"
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise UserError(
            f"The image {path} (Pillow's mode {mode}) has values that are not finite; convert it."
        )
    if len(pixel_range):
        if len(pixel_range) != 2 or not pixel_range[0] < pixel_range[1]:
            raise UserError(
                f"PSIS.PIXEL_RANGE is {list(pixel_range)}; give two values, the smaller one first."
            )
        low, high = pixel_range
    else:
        low, high = (0, 1) if mode == _FLOAT_MODE else (0, 65535)
        if values.min() < low or values.max() > high:
            raise UserError(
                f"The image {path} has pixels of {kind} (Pillow's mode {mode}) from "
                f"{values.min():g} to {values.max():g}; say which of them become black and white "
                "in PSIS.PIXEL_RANGE."
            )
        if values.max() < _USED_RANGE * high:
            _warn_of_dark_images(mode, float(high))
    scaled = (values - low) * (255 / (high - low))
    return scaled.round().clip(0, 255).astype(np.uint8)


@functools.cache
def _warn_of_dark_images(mode: str, high: float) -> None:
    """Say once a process that the range is likely another one."""
    logger.warning(
        "An image of more than 8 bits (Pillow's mode %s) uses less than an eighth of the range "
        "from 0 to %g and is nearly black; state the range in PSIS.PIXEL_RANGE, such as [0, 4095] "
        "for 12 bits",
        *(mode, high),
    )
