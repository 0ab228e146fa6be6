"""The ground truth as evaluation sees it: every instance has a box, some have a mask."""

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from psis_d2.data.catalog import get_class_names, shared_dataset_dicts
from psis_d2.errors import UserError
from psis_d2.evaluation.predictions import ImagePredictions

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroundTruth:
    """The annotations of one data set, cleaned for the COCO code.

    What is no mask for training (missing, null, empty, malformed) is none here either.

    Attributes:
        dataset_name: Detectron2's name of the data set.
        class_names: by contiguous category id.
        json_ids: category id in the annotation file, by contiguous category id.
        image_sizes: {image id: (height, width)} in pixels.
        annotations: dicts with ``image_id``, ``id`` (as in the file), ``category_id``
            (contiguous), ``bbox`` (XYWH pixels), ``area`` (pixels), ``iscrowd`` (0 or 1), and, only
            where there is a usable mask, ``segmentation`` (compressed RLE).
        annotation_ids: {annotation id: that in the annotation file}, where it is another; None for
            one that had none, while another has its number.
        annotated: False where there is no annotation at all, as for COCO's test-dev.
        absent: of LVIS, {image id: categories (contiguous) that the image has none of}. What is
            neither annotated nor absent in an image was not looked for there. None elsewhere.
        not_exhaustive: of LVIS, {image id: categories of which not every object is annotated}.
    """

    dataset_name: str
    class_names: list[str]
    json_ids: list[int]
    image_sizes: dict
    annotations: list[dict]
    annotation_ids: dict[int, int | str | None] = field(default_factory=dict)
    annotated: bool = True
    absent: dict[int | str, frozenset[int]] | None = None
    not_exhaustive: dict[int | str, frozenset[int]] = field(default_factory=dict)

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Instances and instances with a mask, each int [C] by category. Crowds do not count."""
        instances = np.zeros(len(self.class_names), dtype=np.int64)
        masked = np.zeros_like(instances)
        for annotation in self.annotations:
            if not annotation["iscrowd"]:
                instances[annotation["category_id"]] += 1
                masked[annotation["category_id"]] += "segmentation" in annotation
        return instances, masked

    def log_masks(self) -> int:
        """Say once how much of the ground truth masks are measured on.

        Returns:
            The number of instances with a mask.
        """
        instances, masked = (int(count.sum()) for count in self.counts())
        if masked:
            logger.info(
                "%s: masks are measured on %d of %d instances; %d without a mask are set aside.",
                *(self.dataset_name, masked, instances, instances - masked),
            )
        else:
            logger.warning(
                "%s: none of the %d annotated instances has a mask, so masks are not measured.",
                *(self.dataset_name, instances),
            )
        return masked

    def overlaps(self) -> dict[tuple, float]:
        """How far other objects reach into each (Zhao et al., "Rethinking Mask Heads", Eq. 1).

        An object's overlap is the largest share of its box, cut at the image's border, that the
        mask of one other object of the image covers, whatever its category. Crowd regions are no
        objects; objects without a mask overlap no other.

        Returns:
            {(image id, annotation id): overlap, 0 to 1} of all objects.
        """
        of_image = defaultdict(list)
        for annotation in self.annotations:
            if not annotation["iscrowd"]:
                of_image[annotation["image_id"]].append(annotation)
        found = {}
        for image_id, objects in of_image.items():
            masked = [k for k, a in enumerate(objects) if "segmentation" in a]
            overlaps = [0.0] * len(objects)
            if masked:
                boxes = [box_region(a["bbox"], *self.image_sizes[image_id]) for a in objects]
                masks = [objects[k]["segmentation"] for k in masked]
                # With the crowd flag, the COCO code divides the intersection by the box's area.
                shares = mask_util.iou(boxes, masks, [1] * len(masks))
                shares[masked, range(len(masked))] = 0  # of an object with itself
                overlaps = shares.max(axis=1).tolist()
            found |= {(image_id, a["id"]): x for a, x in zip(objects, overlaps, strict=True)}
        return found

    def overlapped(self, threshold: float) -> set[tuple]:
        """{(image id, annotation id)} of the objects of that overlap or more, above 0."""
        return {key for key, overlap in self.overlaps().items() if overlap >= threshold}

    def check_predictions(self, predictions: Iterable[ImagePredictions]) -> None:
        """Make sure that predictions are of this data set's images, sizes and categories.

        The COCO code gives masks of different sizes no overlap and says nothing.

        Args:
            predictions: classes being contiguous category ids.

        Raises:
            UserError: they are not.
        """
        for of_image in predictions:
            if not len(of_image):
                continue
            image_id = of_image.image_id
            if image_id not in self.image_sizes:
                raise UserError(
                    f"There are predictions for image {image_id}, which the annotation file of "
                    f"{self.dataset_name} does not list; evaluate on the data set that was loaded."
                )
            if (largest := of_image.classes.max()) >= len(self.class_names):
                raise UserError(
                    f"The model predicts category number {largest}, but "
                    f"{self.dataset_name} has only {len(self.class_names)} categories (counted "
                    "from 0); use the model's own data set or number of classes."
                )
            listed = self.image_sizes[image_id]
            if of_image.size is not None and tuple(of_image.size) != listed:
                height, width = of_image.size
                raise UserError(
                    f"Image {image_id} of {self.dataset_name} is {width}x{height} "
                    f"pixels, but its annotation file says {listed[1]}x{listed[0]}; correct "
                    "'width' and 'height' there."
                )


# By data set and crowds: the dicts that a ground truth was made of, and it.
_known: dict[tuple[str, str], tuple[list[dict], GroundTruth]] = {}


def load_ground_truth(dataset_name: str, crowds: str = "ignore") -> GroundTruth:
    """The annotations of a registered data set, read and encoded once in a process.

    Args:
        dataset_name: the data set.
        crowds: see :func:`~psis_d2.data.records.usable_records`.

    Raises:
        UserError: the data cannot be read.
    """
    records = shared_dataset_dicts(dataset_name, crowds)
    known, truth = _known.get((dataset_name, crowds), (None, None))
    if known is not records:
        truth = _encode_all(dataset_name, records)
        _known[dataset_name, crowds] = records, truth
    return truth


def _encode_all(dataset_name: str, records: list[dict]) -> GroundTruth:
    class_names = get_class_names(dataset_name)
    to_contiguous = MetadataCatalog.get(dataset_name).get("thing_dataset_id_to_contiguous_id")
    if to_contiguous is None:
        to_contiguous = {i: i for i in range(len(class_names))}

    def by_image(key: str) -> dict[int | str, frozenset[int]]:
        return {record["image_id"]: frozenset(record.get(key, ())) for record in records}

    of_lvis = any("neg_category_ids" in record for record in records)
    return GroundTruth(
        dataset_name=dataset_name,
        class_names=class_names,
        json_ids=sorted(to_contiguous, key=to_contiguous.get),
        image_sizes={record["image_id"]: (record["height"], record["width"]) for record in records},
        annotations=[
            _encode(raw, record) for record in records for raw in record.get("annotations", ())
        ],
        annotation_ids=_ids_in_file(a for record in records for a in record.get("annotations", ())),
        annotated=any(record.get("annotations") for record in records),
        absent=by_image("neg_category_ids") if of_lvis else None,
        not_exhaustive=by_image("not_exhaustive_category_ids") if of_lvis else {},
    )


def _ids_in_file(annotations: Iterable[dict]) -> dict[int, int | str | None]:
    ids = [(a["id"], a.get("json_id")) for a in annotations]
    taken = {own for _, own in ids}
    return {key: own for key, own in ids if own is not None or key in taken}


def box_region(bbox: list[float], height: int, width: int) -> dict:
    """The pixels of a box, cut at the image's border.

    Args:
        bbox: XYWH in pixels.
        height: of the image.
        width: of the image.

    Returns:
        Compressed RLE of size ``height`` x ``width``.
    """
    boxes = np.array([bbox], dtype=np.float64)
    return mask_util.frPyObjects(boxes, height, width)[0]


def _encode(raw: dict, record: dict) -> dict:
    """A standard annotation with an XYWH box and, if it has a mask, an RLE."""
    annotation = {
        "image_id": record["image_id"],
        "id": raw["id"],
        "category_id": raw["category_id"],
        "bbox": list(BoxMode.convert(raw["bbox"], raw["bbox_mode"], BoxMode.XYWH_ABS)),
        "iscrowd": raw.get("iscrowd", 0),
    }
    mask = raw.get("segmentation")
    if isinstance(mask, list):
        annotation["segmentation"] = mask_util.merge(
            mask_util.frPyObjects(mask, record["height"], record["width"])
        )
    elif mask is not None:
        annotation["segmentation"] = mask
    annotation["area"] = raw.get("area") or _area(annotation)
    return annotation


def _area(annotation: dict) -> float:
    if "segmentation" in annotation:
        return int(mask_util.area(annotation["segmentation"]))
    return annotation["bbox"][2] * annotation["bbox"][3]
