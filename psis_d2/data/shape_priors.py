"""Shape priors: the k-means centroids of the masks that training may see.

ShapeMask (Kuo et al., ICCV 2019, sec. 3.1) blends them to a first guess of an object's shape. Masks
are cut out by their boxes, so that a prior fills a box. A file of them says what it was made from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from psis_d2.data.catalog import get_class_names
from psis_d2.data.training_set import get_training_dicts, seen_ids_for
from psis_d2.errors import UserError
from psis_d2.files import written_at_once
from psis_d2.optional import require

import numpy as np
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util
from tqdm import tqdm

logger = logging.getLogger(__name__)

SIDE = 32
"""Side of a prior in cells (paper)."""

# Samples a side that a cell is the mean of: a mask of one cell's size is not lost.
_SAMPLES = 4
_MAX_ITERATIONS = 100
_FORMAT = "psis_d2 shape priors 1"


@dataclass(frozen=True)
class ShapePriors:
    """Centroids and what they were made from."""

    priors: np.ndarray
    """float32 [K, SIDE, SIDE], or class-specific [classes, K, SIDE, SIDE], in [0, 1]; those of
    larger clusters come first."""
    provenance: dict
    """Data sets, split, seed, how many masks of which category, and a digest of the masks."""


def mask_in_box(annotation: dict, side: int = SIDE) -> np.ndarray:
    """The part of a mask that lies in its box, at a fixed size.

    A box that is narrower than a pixel is taken for one pixel wide: no mask is finer.

    Args:
        annotation: a standard annotation with ``bbox``, ``bbox_mode`` and ``segmentation``.
        side: side of the result in cells.

    Returns:
        float32 [side, side], the share of every cell that is mask.
    """
    x0, y0, x1, y1 = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    fine = side * _SAMPLES
    scale = np.array([fine / max(x1 - x0, 1), fine / max(y1 - y0, 1)])
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict):
        step_x, step_y = 1 / scale
        # From the center of a sample to the pixel whose center is nearest.
        to_pixel = np.array(
            [[step_x, 0, x0 + step_x / 2 - 0.5], [0, step_y, y0 + step_y / 2 - 0.5]]
        )
        cv2 = require("cv2")
        flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        mask = cv2.warpAffine(mask_util.decode(segmentation), to_pixel, (fine, fine), flags=flags)
    else:
        # Drawn where it is needed only: decoding whole images would take many times as long.
        polygons = [
            ((np.asarray(polygon, dtype=np.float64).reshape(-1, 2) - (x0, y0)) * scale).ravel()
            for polygon in segmentation
        ]
        rles = mask_util.frPyObjects([polygon.tolist() for polygon in polygons], fine, fine)
        mask = mask_util.decode(mask_util.merge(rles))
    cells = mask.reshape(side, _SAMPLES, side, _SAMPLES)
    return cells.mean(axis=(1, 3), dtype=np.float32)


def cluster_masks(masks: np.ndarray, num_priors: int, seed: int, what: str) -> np.ndarray:
    """K-means centroids of masks, those of larger clusters first.

    Args:
        masks: float32 [N, SIDE, SIDE] in [0, 1].
        num_priors: K.
        seed: of the initial centroids.
        what: the masks' name in the error.

    Returns:
        float32 [K, SIDE, SIDE] in [0, 1].

    Raises:
        UserError: there are fewer masks than K.
    """
    if len(masks) < num_priors:
        raise UserError(
            f"{what} has {len(masks)} usable mask(s), from which {num_priors} shape priors cannot "
            "be made; lower PSIS.SHAPEMASK.NUM_PRIORS or give more masks."
        )
    # Imported late: nothing else needs scikit-learn, which is slow to import.
    convergence_warning = require("sklearn.exceptions").ConvergenceWarning
    kmeans = require("sklearn.cluster").KMeans(
        num_priors, n_init=1, max_iter=_MAX_ITERATIONS, random_state=seed
    )
    # Threads add up in any order, and the last bits of the centroids would differ.
    with require("threadpoolctl").threadpool_limits(1), warnings.catch_warnings():
        # Masks that are all alike make fewer clusters; the rest are copies and do no harm.
        warnings.simplefilter("ignore", convergence_warning)
        kmeans.fit(masks.reshape(len(masks), -1))
    sizes = np.bincount(kmeans.labels_, minlength=num_priors)
    centroids = kmeans.cluster_centers_[np.argsort(-sizes, kind="stable")]
    # Means of values in [0, 1], but for rounding.
    return centroids.clip(0, 1).astype(np.float32).reshape(-1, *masks.shape[1:])


def make_shape_priors(cfg, dicts: Sequence[dict] | None = None) -> ShapePriors:
    """Cluster the masks that training with a config may see.

    With ``MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK`` all masks together, else those of each category;
    a category without a single mask then gets the priors of all masks.

    Args:
        cfg: the config: the data sets, what may be seen, and ``PSIS.SHAPEMASK``.
        dicts: what :func:`~psis_d2.data.get_training_dicts` gave for it, if it is there already.

    Raises:
        UserError: there are fewer masks than priors.
    """
    dicts = get_training_dicts(cfg, add_missing=False) if dicts is None else dicts
    class_names = get_class_names(cfg.DATASETS.TRAIN[0])
    request = _request(cfg, dicts)
    seed, k = request["seed"], request["num_priors"]
    chosen = _choose(_annotations(dicts), request["max_masks"], seed)
    shapes, classes = [], []
    for annotation in tqdm(chosen, desc="reading masks", unit="mask", mininterval=1):
        shape = mask_in_box(annotation)
        if shape.any():  # a polygon may lie between the samples, or outside of the box
            shapes.append(shape)
            classes.append(annotation["category_id"])
    shapes = np.stack(shapes) if shapes else np.zeros((0, SIDE, SIDE), np.float32)
    classes = np.array(classes, dtype=np.int64)
    groups: list[tuple[str, np.ndarray]] = [("The training data", shapes)]
    if request["class_specific"]:
        groups = [
            (f"Category '{name}'", shapes[classes == i]) for i, name in enumerate(class_names)
        ]
    everything = None
    priors = []
    for what, masks in tqdm(groups, desc="clustering", unit="group", mininterval=1):
        if len(masks) == 0 and len(shapes) > 0:
            if everything is None:
                everything = cluster_masks(shapes, k, seed, "The training data")
            priors.append(everything)
        else:
            priors.append(cluster_masks(masks, k, seed, what))
    counts = np.bincount(classes, minlength=len(class_names))
    provenance = {
        **request,
        "masks_used": len(shapes),
        "masks_of_class": {name: int(n) for name, n in zip(class_names, counts, strict=True) if n},
    }
    return ShapePriors(np.stack(priors) if request["class_specific"] else priors[0], provenance)


def num_priors(cfg) -> int:
    """K of a config: ``PSIS.SHAPEMASK.NUM_PRIORS``, or the paper's for its setting."""
    k = cfg.PSIS.SHAPEMASK.NUM_PRIORS
    if k < 0:
        raise UserError(f"PSIS.SHAPEMASK.NUM_PRIORS is {k}; give a positive number, or 0.")
    return k or (100 if cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK else 20)


def priors_path(cfg) -> str:
    """The file of a config's priors: ``PSIS.SHAPEMASK.PRIORS``, else one in ``OUTPUT_DIR``.

    A run may have two of them: a class-agnostic teacher's and a class-specific student's.
    """
    agnostic = cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK
    name = "shape_priors.npz" if agnostic else "class_shape_priors.npz"
    return cfg.PSIS.SHAPEMASK.PRIORS or os.path.join(cfg.OUTPUT_DIR, name)


def save_shape_priors(path: str, shape_priors: ShapePriors) -> None:
    """Write a file in one step: the path never shows a half-written one.

    Raises:
        UserError: the path cannot be written.
    """
    try:
        with written_at_once(path, binary=True) as file:
            provenance = json.dumps(shape_priors.provenance, indent=1)
            np.savez(file, priors=shape_priors.priors, provenance=np.array(provenance))
    except OSError as error:
        raise UserError(
            f"Cannot write the shape priors {path} ({error.strerror or error}); choose a path that "
            "is writable."
        ) from error


def load_shape_priors(path: str) -> ShapePriors:
    """Read a file that :func:`save_shape_priors` wrote.

    Raises:
        UserError: there is none, or it is something else: empty, cut off, of other sizes than it
            says.
    """
    make = "make it with psis-d2 make-shape-priors"
    if not os.path.isfile(path):
        raise UserError(f"The shape priors {path} do not exist; {make}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            priors, provenance = file["priors"], json.loads(str(file["provenance"]))
        known = provenance["format"] == _FORMAT
        shape = (provenance["num_priors"], SIDE, SIDE)
        sized = priors.shape[-3:] == shape and priors.ndim == 3 + provenance["class_specific"]
        named = all(isinstance(name, str) for name in provenance["masks_of_class"])
    except Exception as error:  # NumPy and its zip files have many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is no file of shape priors ({reason}); {make}.") from error
    usable = known and sized and named and priors.dtype == np.float32 and priors.size > 0
    # A comparison with NaN is false.
    if not (usable and priors.min() >= 0 and priors.max() <= 1):
        raise UserError(f"{path} has no shape priors between 0 and 1; {make}.")
    return ShapePriors(priors, provenance)


def prepare_shape_priors(cfg) -> None:
    """Make the priors of a config of ShapeMask, unless they are there.

    A file that the config names is checked: it must not be made from masks that training may not
    see. Without a name the priors are made, unless those in ``OUTPUT_DIR`` are of the same masks; a
    file there that is none is replaced, with a warning.

    Raises:
        UserError: the named file is missing, unusable or shows too much, or there are too few
            masks.
    """
    path = priors_path(cfg)
    if cfg.PSIS.SHAPEMASK.PRIORS:
        _check_visible(cfg, path, load_shape_priors(path).provenance)
        return
    dicts = get_training_dicts(cfg, add_missing=False)
    if os.path.isfile(path) and _are_of(path, _request(cfg, dicts)):
        return
    shape_priors = make_shape_priors(cfg, dicts)
    save_shape_priors(path, shape_priors)
    logger.info(
        "Made %d shape priors from %d masks: %s",
        *(shape_priors.provenance["num_priors"], shape_priors.provenance["masks_used"], path),
    )


def _are_of(path: str, request: dict) -> bool:
    """Whether a file has the priors that :func:`_request` asks for."""
    try:
        return request.items() <= load_shape_priors(path).provenance.items()
    except UserError as error:
        logger.warning("%s They are made again.", str(error).partition("; make it")[0] + ".")
        return False


def _check_visible(cfg, path: str, provenance: dict) -> None:
    if cfg.PSIS.ORACLE:
        return
    class_names = get_class_names(cfg.DATASETS.TRAIN[0])
    seen = {class_names[i] for i in seen_ids_for(cfg)}
    hidden = sorted(set(provenance["masks_of_class"]) - seen)
    if hidden:
        raise UserError(
            f"The shape priors {path} were made from masks of {', '.join(hidden[:5])}"
            f"{' and others' * (len(hidden) > 5)}, which PSIS.SEEN_CLASSES "
            f"{cfg.PSIS.SEEN_CLASSES} hides from training; make them with "
            "psis-d2 make-shape-priors and the same split."
        )


def _request(cfg, dicts: Sequence[dict]) -> dict:
    """What determines a file of priors, beside the code."""
    return {
        "format": _FORMAT,
        "datasets": list(cfg.DATASETS.TRAIN),
        "seen_classes": cfg.PSIS.SEEN_CLASSES,
        "oracle": cfg.PSIS.ORACLE,
        "class_specific": not cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK,
        "num_priors": num_priors(cfg),
        "side": SIDE,
        "seed": cfg.PSIS.SHAPEMASK.PRIORS_SEED,
        "max_masks": cfg.PSIS.SHAPEMASK.PRIORS_MAX_MASKS,
        **_digest(dicts),
    }


def _digest(dicts: Sequence[dict]) -> dict:
    """Number and hash of the visible masks: a json of the same name may have other ones."""
    digest, count = hashlib.sha256(), 0
    for annotation in _annotations(dicts):
        content = [annotation["category_id"], annotation["bbox"], annotation["segmentation"]]
        digest.update(json.dumps(content, default=_plain).encode())
        count += 1
    return {"masks_visible": count, "masks_sha256": digest.hexdigest()}


def _plain(value):
    """What json cannot write: arrays of polygons and bytes of RLEs."""
    return value.decode() if isinstance(value, bytes) else np.asarray(value).tolist()


def _annotations(dicts: Sequence[dict]) -> list[dict]:
    """The annotations whose mask training may see."""
    return [
        annotation
        for record in dicts
        for annotation in record.get("annotations", ())
        if "segmentation" in annotation and not annotation.get("iscrowd", 0)
    ]


def _choose(annotations: list[dict], limit: int, seed: int) -> list[dict]:
    """At most `limit` of them, drawn without repetition, in their order."""
    if limit <= 0 or len(annotations) <= limit:
        return annotations
    drawn = np.random.default_rng(seed).choice(len(annotations), limit, replace=False)
    return [annotations[i] for i in np.sort(drawn)]
