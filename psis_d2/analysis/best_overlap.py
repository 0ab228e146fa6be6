"""How well soft maps in boxes cover objects, by their size (ShapeProp, Fig. 9)."""

import glob
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from zipfile import BadZipFile

from psis_d2.data.catalog import shared_dataset_dicts
from psis_d2.errors import UserError
from psis_d2.evaluation.ground_truth import GroundTruth

import numpy as np
from pycocotools import mask as mask_util
from tqdm import tqdm

ENDING = ".heat-maps.npz"


@dataclass(frozen=True)
class SavedMaps:
    """Soft maps of N boxes.

    Attributes:
        image_ids: N, in the annotation file.
        boxes: float [N, 4], XYXY in pixels of the image.
        maps: {name: float [N, S, S]}, 0 to 1 over each box.
    """

    image_ids: Sequence[int | str]
    boxes: np.ndarray
    maps: Mapping[str, np.ndarray]


def read_maps(folder: str, truth: GroundTruth) -> SavedMaps:
    """Read what ``psis-d2 predict --save-heat-maps`` left in a folder.

    Args:
        folder: with ``*.heat-maps.npz``, see :func:`psis_d2.inference.heat_maps.write_heat_maps`.
        truth: names the images; they are known by the ends of their paths.

    Raises:
        UserError: there are none, a file is something else, or an image is not in the annotations.
    """
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), f"*{ENDING}")))
    if not paths:
        raise UserError(
            f"{folder} has no *{ENDING}; write them with psis-d2 predict --save-heat-maps."
        )
    id_of = _image_ids(truth)
    image_ids, boxes, maps = [], [], defaultdict(list)
    for path in paths:
        name, own_boxes, own_maps = _read_file(path)
        image_ids += [id_of(name)] * len(own_boxes)
        boxes.append(own_boxes)
        for key, values in own_maps.items():
            maps[key].append(values)
    if len({len(parts) for parts in maps.values()} | {len(paths)}) > 1:
        raise UserError(f"{folder} has maps of different models; give each a folder of its own.")
    joined = {key: np.concatenate(parts) for key, parts in maps.items()}
    return SavedMaps(image_ids, np.concatenate(boxes), joined)


def _read_file(path: str) -> tuple[str, np.ndarray, dict[str, np.ndarray]]:
    """File name of the image, boxes [N, 4] and maps [N, S, S] of a file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
        name, boxes = content.pop("file_name").item(), content.pop("boxes").astype(np.float64)
        maps = {key.removeprefix("map_"): content[key] for key in content if key[:4] == "map_"}
        if not maps or any(len(x) != len(boxes) or x.ndim != 3 for x in maps.values()):
            raise ValueError("its arrays do not fit each other")
        if boxes.shape[1:] != (4,):
            raise ValueError("its boxes have no four corners")
    except (OSError, KeyError, ValueError, AttributeError, TypeError, BadZipFile) as error:
        raise UserError(
            f"{path} holds no heat-maps ({error}); write it with psis-d2 predict --save-heat-maps."
        ) from error
    return str(name), boxes, maps


def _image_ids(truth: GroundTruth) -> Callable[[str], int | str]:
    """A function that gives the id of an image file: that of the longest common end of paths."""
    of_name = defaultdict(list)
    for record in shared_dataset_dicts(truth.dataset_name):
        parts = os.path.normpath(record["file_name"]).split(os.sep)
        of_name[parts[-1]].append((parts[::-1], record["image_id"]))

    def id_of(path: str) -> int | str:
        parts = os.path.normpath(path).split(os.sep)[::-1]
        known = of_name[parts[0]]
        if not known:
            raise UserError(
                f"There are heat-maps of the image {path}, which {truth.dataset_name} does not "
                "list; give the annotations that belong to it."
            )
        common = [len(os.path.commonprefix([parts, other])) for other, _ in known]
        return known[int(np.argmax(common))][1]

    return id_of


def best_overlaps(truth: GroundTruth, saved: SavedMaps, progress: bool = False) -> list[dict]:
    """The best IoU of each map with a mask of its image, over all thresholds (sec. 4.3).

    A map is interpolated over the pixels whose centers lie in its box and constant beyond the
    centers of its outermost cells. The threshold is any value above 0.

    Args:
        truth: the ground truth; crowd regions and objects without a mask are no candidates.
        saved: the maps.
        progress: show a bar.

    Returns:
        A row a map: ``map`` (its name), ``image_id``, ``size``, the square root of the area of the
        object that it covers best, and ``overlap``, 0 to 1. Maps in boxes that meet no object have
        no row.
    """
    of_image = defaultdict(list)
    for annotation in truth.annotations:
        if "segmentation" in annotation and not annotation["iscrowd"]:
            of_image[annotation["image_id"]].append(annotation["segmentation"])
    rows: list[dict] = []
    boxes = tqdm(range(len(saved.boxes)), desc="overlap", unit="box", disable=not progress)
    for number in boxes:
        image_id = saved.image_ids[number]
        height, width = truth.image_sizes[image_id]
        pixels = _pixels(saved.boxes[number], height, width)
        masks = of_image[image_id]
        if pixels is None or not masks:
            continue
        x0, y0, x1, y1 = pixels
        window = mask_util.frPyObjects(
            np.array([[x0, y0, x1 - x0, y1 - y0]], dtype=np.float64), height, width
        )
        shared = mask_util.iou(masks, window, [1])[:, 0]
        met = [masks[i] for i in np.flatnonzero(shared > 0)]
        if not met:
            continue
        areas = mask_util.area(met).astype(np.int64)
        inside = mask_util.decode(met)[y0:y1, x0:x1].reshape(-1, len(met)).astype(bool)
        for name, maps in saved.maps.items():
            values = spread(maps[number], saved.boxes[number], pixels).ravel()
            found = [best_iou(values, inside[:, k], areas[k]) for k in range(len(met))]
            best = int(np.argmax(found))
            rows.append(
                {
                    "map": name,
                    "image_id": image_id,
                    "size": float(np.sqrt(areas[best])),
                    "overlap": found[best],
                }
            )
    return rows


def _pixels(box: np.ndarray, height: int, width: int) -> tuple[int, int, int, int] | None:
    """Columns and rows, x0, y0, x1, y1, of the pixels with centers in a box; None if none has."""
    low = np.maximum(np.ceil(box[:2] - 0.5), 0).astype(int)
    high = np.minimum(np.ceil(box[2:] - 0.5), (width, height)).astype(int)
    return (*low.tolist(), *high.tolist()) if (high > low).all() else None


def spread(values: np.ndarray, box: np.ndarray, pixels: tuple[int, int, int, int]) -> np.ndarray:
    """A map [S, S] over a box (XYXY), interpolated at pixels (x0, y0, x1, y1): [rows, columns]."""
    x0, y0, x1, y1 = pixels
    rows = _weights(np.arange(y0, y1) + 0.5, box[1], box[3], values.shape[0])
    columns = _weights(np.arange(x0, x1) + 0.5, box[0], box[2], values.shape[1])
    return rows @ values.astype(np.float64) @ columns.T


def _weights(places: np.ndarray, low: float, high: float, cells: int) -> np.ndarray:
    """Weights [places, cells] of linear interpolation between the centers of cells."""
    at = np.clip((places - low) / (high - low) * cells - 0.5, 0, cells - 1)
    first = np.minimum(at.astype(int), max(cells - 2, 0))
    weights = np.zeros((len(places), cells))
    numbers = np.arange(len(places))
    weights[numbers, np.minimum(first + 1, cells - 1)] = at - first
    weights[numbers, first] += 1 - (at - first)
    return weights


def best_iou(values: np.ndarray, inside: np.ndarray, area: int) -> float:
    """The largest IoU of ``values >= threshold`` with an object, over all thresholds above 0.

    Args:
        values: float [n], of the pixels of a box.
        inside: bool [n], whether they are of the object.
        area: of the whole object, in pixels.
    """
    order = np.argsort(-values, kind="stable")
    ranked = values[order]
    shared = np.cumsum(inside[order])
    ious = shared / (np.arange(1, len(ranked) + 1) + area - shared)
    # Equal values pass a threshold together, at the last of them.
    last = np.append(ranked[1:] != ranked[:-1], True) & (ranked > 0)
    return float(ious[last].max()) if last.any() else 0.0
