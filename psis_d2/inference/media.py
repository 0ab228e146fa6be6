"""Pictures and videos that a person names on a command line, one frame after the other."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from psis_d2.data.images import read_pixels
from psis_d2.errors import UserError
from psis_d2.optional import require

import numpy as np

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


def find_media(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files that a command line means: images and videos.

    Args:
        names: files, folders (all images and videos right in them) and patterns such as
            ``photos/*.jpg`` (``**`` for folders within folders).

    Returns:
        Paths of images and of videos, each once, in the order of the names; those of a folder or
        pattern sorted.

    Raises:
        UserError: a name means nothing, or a file that is neither.
    """
    images, videos = {}, {}
    for name in names:
        if os.path.isdir(name):
            paths = sorted(os.path.join(name, x) for x in os.listdir(name) if _kind(x))
        elif os.path.isfile(name):
            paths = [name]
        else:
            paths = sorted(x for x in glob.glob(name, recursive=True) if os.path.isfile(x))
            paths = paths if len(paths) < 2 else [x for x in paths if _kind(x)]
        if not paths:
            raise UserError(f"{name} is no image, video, or folder with any; check the path.")
        for path in paths:
            kind = _kind(path)
            if kind is None:
                known = " ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
                raise UserError(f"{path} is not known as an image or a video; known are {known}.")
            (images if kind == "image" else videos)[path] = None
    return list(images), list(videos)


def _kind(path: str) -> str | None:
    suffix = os.path.splitext(path)[1].lower()
    return "image" if suffix in IMAGE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else None


def read_picture(path: str, pixel_range: Sequence[float] = ()) -> np.ndarray:
    """An image file, its EXIF rotation applied: uint8 [H, W, 3], BGR.

    Args:
        path: the file.
        pixel_range: see :func:`~psis_d2.data.images.read_pixels`.

    Raises:
        UserError: it cannot be read.
    """
    return read_pixels(path, "BGR", pixel_range)


@dataclass
class Video:
    """The frames of a video file or a camera, uint8 [H, W, 3], BGR.

    Args:
        source: path of a video, or the number of a camera.

    Raises:
        UserError: it cannot be opened.
    """

    source: str | int

    def __post_init__(self):
        cv2 = require("cv2")
        self._capture = cv2.VideoCapture(self.source)
        if not self._capture.isOpened():
            what = "camera" if isinstance(self.source, int) else "video"
            raise UserError(f"The {what} {self.source} cannot be opened; check that it is there.")
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or 25.0
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.frames = count if count > 0 else None

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            there, frame = self._capture.read()
            if not there:
                break
            yield frame
        self._capture.release()


class VideoWriter:
    """Writes an mp4 that gets its name when it is closed; without a frame there is no file.

    Args:
        path: ending in ``.mp4``.
        fps: frames a second.
    """

    def __init__(self, path: str, fps: float):
        self.path, self.fps = path, fps
        self._partial = f"{path}.part.mp4"
        self._writer = None

    def add(self, frame: np.ndarray) -> None:
        """Append a frame, uint8 [H, W, 3], BGR; all frames have one size."""
        cv2 = require("cv2")
        if self._writer is None:
            code = cv2.VideoWriter_fourcc(*"mp4v")
            size = frame.shape[1], frame.shape[0]
            self._writer = cv2.VideoWriter(self._partial, code, self.fps, size)
            if not self._writer.isOpened():
                raise UserError(f"Cannot write the video {self.path}; choose a writable folder.")
        self._writer.write(frame)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._writer is None:
            return
        self._writer.release()
        if kind is None:
            os.replace(self._partial, self.path)
        else:
            os.remove(self._partial)
