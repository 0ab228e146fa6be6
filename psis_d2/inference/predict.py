"""Masks for pictures and videos: overlays to look at, and results in COCO's format."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress

from psis_d2.errors import UserError, check_choice
from psis_d2.files import written_at_once
from psis_d2.inference.box_files import GivenBoxes
from psis_d2.inference.heat_maps import heat_map_picture, keep_heat_maps, write_heat_maps
from psis_d2.inference.journal import Journal
from psis_d2.inference.media import Video, VideoWriter, find_media, read_picture
from psis_d2.inference.predictor import Predictor
from psis_d2.visualization import draw_prediction, save_png

import numpy as np
import torch
from detectron2.structures import Instances
from pycocotools import mask as mask_util
from tqdm import tqdm

CATEGORIES = ("all", "seen", "unseen")
_SMALL = 512  # pixels of the larger side, up to which overlays may be enlarged


def predict(
    predictor: Predictor,
    inputs: Sequence[str],
    output: str,
    *,
    min_score: float = 0.5,
    pictures: bool = True,
    webcam: int | None = None,
    frames: int | None = None,
    boxes: str | None = None,
    categories: str = "all",
    heat_maps: bool = False,
    save_heat_maps: bool = False,
) -> int:
    """Find the objects of images and videos.

    Writes below ``output``: an overlay of every image (``NAME.png``) and video (``NAME.mp4``), and
    ``results.json``, a list in COCO's result format: ``image_id`` (images are numbered from 1 in
    their order; frames of videos follow), ``category_id`` (the model's class, numbered from 1),
    ``bbox``, ``score`` and ``segmentation``, with ``file_name`` (and ``frame``) beside them. What
    the numbers mean stands in ``images.json``, a COCO file of these images and categories without
    annotations. A run that was stopped goes on with the first image that is not done; a video
    starts again.

    Args:
        predictor: the model.
        inputs: files, folders and patterns, see :func:`~psis_d2.inference.media.find_media`.
        output: folder to write to.
        min_score: detections below it are left out.
        pictures: whether overlays are written.
        webcam: number of a camera whose frames are predicted, too, until it is interrupted (Ctrl-C)
            or `frames` have come.
        frames: at most so many frames of each video and camera; None = all.
        boxes: a COCO json, whose objects are drawn in place of those that the model finds; images
            are known by the ends of their paths.
        categories: objects of which categories: "all", "seen" or "unseen".
        heat_maps: also write ``NAME.heat-maps.png`` of each image with objects, see
            :mod:`psis_d2.inference.heat_maps`; annotated masks of `boxes` are drawn dashed.
        save_heat_maps: also write ``NAME.heat-maps.npz`` of each image with objects, see
            :func:`~psis_d2.inference.heat_maps.write_heat_maps`.

    Returns:
        The number of objects found.

    Raises:
        UserError: an input cannot be read, the output not written, or the model has no heat-maps.
    """
    check_choice("categories", categories, CATEGORIES)
    images, videos = find_media(inputs)
    given = GivenBoxes(boxes, predictor) if boxes else None
    if given and (videos or webcam is not None):
        raise UserError(f"{boxes} has boxes of images; leave videos and cameras out.")
    if given and not any(map(given.record_of, images)):
        raise UserError(f"{boxes} names none of the images; check that they belong together.")
    if heat_maps or save_heat_maps:
        keep_heat_maps(predictor)
    videos += [] if webcam is None else [webcam]
    names = _overlay_names([*images, *videos])
    job = {
        "model": predictor.fingerprint,
        "inputs": [x if x == webcam else os.path.abspath(x) for x in (*images, *videos)],
        "min_score": min_score,
        "pictures": pictures,
        "frames": frames,
        "boxes": given.digest if given else "",
        "categories": categories,
        "heat_maps": heat_maps,
        "save_heat_maps": save_heat_maps,
    }
    journal = Journal(os.path.join(output, "unfinished"), job)
    for number, path in enumerate(tqdm(images, desc="images", unit="image", disable=not images)):
        if number in journal.done:
            continue
        image = read_picture(path)
        found, truth = given.predict(path, image) if given else (predictor(image), [])
        found = _of_categories(confident(found, min_score), categories, predictor)
        if pictures:
            drawn = overlay(image, found, predictor, given=given is not None)
            save_png(os.path.join(output, names[path] + ".png"), drawn)
        if heat_maps:
            truth = [truth[row] for row in found.row.tolist()] if given else None
            picture = heat_map_picture(image, found, predictor, truth)
            if picture is not None:
                save_png(os.path.join(output, names[path] + ".heat-maps.png"), picture)
        if save_heat_maps and len(found):
            target = os.path.join(output, names[path] + ".heat-maps.npz")
            write_heat_maps(target, path, found)
        size = {"file_name": path, "height": image.shape[0], "width": image.shape[1]}
        journal.add(number, [[size, result_records(found)]])
    for number, path in enumerate(videos, start=len(images)):
        if number not in journal.done:
            target = os.path.join(output, names[path] + ".mp4") if pictures else None
            chosen = (min_score, categories)
            journal.add(number, _predict_video(predictor, path, target, chosen, frames))
    count = _write_results(journal, output, predictor.class_names)
    journal.remove()
    return count


def confident(found: Instances, min_score: float) -> Instances:
    """The objects with at least this score."""
    return found[found.scores >= min_score]


def _of_categories(found: Instances, categories: str, predictor: Predictor) -> Instances:
    """The objects of seen, unseen or all categories."""
    if categories == "all":
        return found
    seen = torch.tensor(sorted(predictor.seen_ids), dtype=torch.int64)
    return found[torch.isin(found.pred_classes, seen) == (categories == "seen")]


def result_records(found: Instances) -> list[dict]:
    """An image's objects as COCO result records, without ``image_id``.

    ``category_id`` is the class + 1; ``score`` the detection's, ``mask_score`` that of the mask.
    """
    boxes = found.pred_boxes.tensor.clone()
    boxes[:, 2:] -= boxes[:, :2]
    records = []
    for row, (box, category) in enumerate(
        zip(boxes.tolist(), found.pred_classes.tolist(), strict=True)
    ):
        record = {"category_id": category + 1, "bbox": [round(v, 3) for v in box]}
        record["score"] = round(found.scores[row].item(), 6)
        if found.has("pred_masks"):
            record["segmentation"] = encode_mask(found.pred_masks[row].numpy())
            record["mask_score"] = round(found.mask_scores[row].item(), 6)
        records.append(record)
    return records


def encode_mask(mask: np.ndarray) -> dict:
    """A bool mask [H, W] as COCO's compressed RLE, its counts a text as json needs it."""
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode("ascii")}


def _overlay_names(paths: Iterable[str | int]) -> dict[str | int, str]:
    """A file name without suffix for each path; paths of one name are told apart by numbers."""
    names: dict[str | int, str] = {}
    taken: set[str] = set()
    for path in paths:
        stem = os.path.splitext(os.path.basename(_title(path)))[0]
        name, number = stem, 2
        while name in taken:
            name, number = f"{stem}-{number}", number + 1
        taken.add(name)
        names[path] = name
    return names


def overlay(
    image: np.ndarray,
    found: Instances,
    predictor: Predictor,
    *,
    enlarge: bool = True,
    given: bool = False,
) -> np.ndarray:
    """An image (BGR) with its objects drawn in: RGB uint8 [S * H, S * W, 3].

    S is 1, or, with `enlarge`, up to 4 for small images, whose labels would hide what they name.
    Objects in `given` boxes, which are sure, are labeled with the scores of their masks.
    """
    if given and found.has("mask_scores"):
        found = Instances(found.image_size, **found.get_fields() | {"scores": found.mask_scores})
    scale = min(max(_SMALL // max(image.shape[:2]), 1), 4) if enlarge else 1
    rgb = np.ascontiguousarray(image[:, :, ::-1])
    names, seen = predictor.class_names, predictor.seen_ids
    return draw_prediction(rgb, found, names, seen, scale, min_score=0)


def _title(source: str | int) -> str:
    """The name of a file, or of a camera."""
    return f"webcam{source}" if isinstance(source, int) else source


def _predict_video(
    predictor: Predictor,
    source: str | int,
    target: str | None,
    chosen: tuple[float, str],
    limit: int | None,
) -> list[list]:
    """The frames' entries for the journal; writes the overlay to ``target``."""
    video = Video(source)
    name = os.path.basename(_title(source))
    entries = []
    # A camera has no end of its own: interrupting it ends the recording, not the job.
    ends = (KeyboardInterrupt,) if isinstance(source, int) else ()
    with VideoWriter(target, video.fps) if target else nullcontext() as writer, suppress(*ends):
        for index, frame in enumerate(
            tqdm(itertools.islice(video, limit), desc=name, unit="frame", total=video.frames)
        ):
            found = _of_categories(confident(predictor(frame), chosen[0]), chosen[1], predictor)
            if target:
                frame_drawn = overlay(frame, found, predictor, enlarge=False)
                writer.add(frame_drawn[:, :, ::-1])
            size = {"file_name": _title(source), "frame": index}
            size |= {"height": frame.shape[0], "width": frame.shape[1]}
            entries.append([size, result_records(found)])
    return entries


def _write_results(journal: Journal, output: str, class_names: Sequence[str]) -> int:
    images, results = [], []
    for _, entries in sorted(journal.items()):
        for size, records in entries:
            images.append({"id": len(images) + 1, **size})
            place = {k: v for k, v in size.items() if k in ("file_name", "frame")}
            results += [{"image_id": len(images), **place, **record} for record in records]
    categories = [{"id": i, "name": name} for i, name in enumerate(class_names, start=1)]
    with written_at_once(os.path.join(output, "images.json")) as file:
        json.dump({"images": images, "annotations": [], "categories": categories}, file)
    with written_at_once(os.path.join(output, "results.json")) as file:
        json.dump(results, file)
    return len(results)
