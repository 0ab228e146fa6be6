"""Read an image of a data set, and say clearly what is wrong with it."""

import struct

from psis_d2.errors import UserError

import numpy as np
from detectron2.data import detection_utils
from PIL import Image


def read_image(record: dict, image_format: str) -> np.ndarray:
    """The image of a dataset dict, its EXIF rotation applied.

    Args:
        record: a dict with ``file_name``, ``height`` and ``width``.
        image_format: as Detectron2's ``read_image`` knows it, such as ``BGR``.

    Returns:
        uint8 [height, width, 3] (``L``: [height, width, 1]).

    Raises:
        UserError: the image cannot be read or is not as large as the dict says.
    """
    path = record["file_name"]
    try:
        image = detection_utils.read_image(path, format=image_format)
    # Pillow reports a damaged file in any of these ways.
    except (
        *(OSError, ValueError, SyntaxError, EOFError, struct.error),
        Image.DecompressionBombError,
    ) as error:
        raise UserError(
            f"Cannot read the image {path} ({type(error).__name__}: {error}); restore the file "
            "or remove it from the json."
        ) from error
    found, expected = image.shape[:2], (record["height"], record["width"])
    if found != expected:
        swapped = " (its EXIF rotation is applied on reading)" * (found == expected[::-1])
        raise UserError(
            f"The image {path} is {found[1]} x {found[0]} pixels{swapped}, but the annotations "
            f"say {expected[1]} x {expected[0]}; correct width and height in the json."
        )
    return image
