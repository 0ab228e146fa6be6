"""What the evaluators share: collecting predictions from all processes, and the groups."""

import json
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

from psis_d2.errors import UserError
from psis_d2.evaluation.ground_truth import GroundTruth, load_ground_truth
from psis_d2.evaluation.predictions import ImagePredictions
from psis_d2.files import written_at_once
from psis_d2.optional import require

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

logger = logging.getLogger(__name__)


class PredictionCollector(DatasetEvaluator, ABC):
    """An evaluator that keeps every image's predictions, masks run-length encoded.

    ``output_dir`` gets a json of them in COCO's result format, with the annotation file's ids of
    categories and images. A data set without annotations gets that and no results.

    Args:
        dataset_name: a registered COCO-format data set.
        seen_ids: contiguous ids of the categories whose masks training may see.
        output_dir: where the json files go; None writes none.
        distributed: gather the predictions of all processes; otherwise each evaluates its own.
        max_dets: highest-scored detections per image and category that count.
        class_ids: the model's class of every category of the data set (None for one that it has
            not), where these are not the same; predictions of other classes do not count.
        overlap: measure masks again on the objects of at least this overlap, 0 for not.
        boundary: measure detected masks again by Boundary IoU.
        groups: {name: contiguous category ids}, measured beside seen, unseen and all.
        crowds: see :func:`~psis_d2.data.records.usable_records`.
    """

    file_name: str
    """Of the predictions."""
    note = ""
    """What a reader of the tables has to know; it stands in their headings."""

    def __init__(
        self,
        *,
        dataset_name: str,
        seen_ids: Collection[int],
        output_dir: str | None = None,
        distributed: bool = True,
        max_dets: int = 100,
        class_ids: Sequence[int | None] | None = None,
        overlap: float = 0.0,
        boundary: bool = False,
        groups: Mapping[str, Collection[int]] = MappingProxyType({}),
        crowds: str = "ignore",
    ):
        self.dataset_name = dataset_name
        self.seen_ids = sorted(seen_ids)
        self.output_dir = output_dir
        self.distributed = distributed
        self.max_dets = max_dets
        self.crowds = crowds
        if not 0 <= overlap <= 1:
            raise UserError(
                f"TEST.OVERLAP is {overlap}; give a share of the box, up to 1, or 0 for no table."
            )
        self.overlap = overlap
        self.boundary = boundary
        if boundary:
            require("faster_coco_eval")
        self.further_groups = {name: sorted(ids) for name, ids in groups.items()}
        # Category by class.
        self.own_ids = None if class_ids is None else _invert(class_ids, dataset_name)
        self.reset()

    def reset(self) -> None:
        """Forget all predictions."""
        self._of_image = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Keep the predictions of a batch.

        Args:
            inputs: dicts with ``image_id``.
            outputs: dicts with ``instances`` in the original image's frame: ``pred_boxes``,
                ``scores``, ``pred_classes`` and, unless the model predicts boxes only,
                ``pred_masks`` (bool [N, height, width]).
        """
        for item, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            found = ImagePredictions.from_instances(instances, item["image_id"])
            if self.own_ids is not None:
                found = found.of_categories(self.own_ids)
            self._of_image[item["image_id"]] = found

    def evaluate(self) -> dict[str, dict[str, float]]:
        """The results of all processes' predictions.

        Returns:
            {task: {metric: value}} on the main process, {} on the others.

        Raises:
            UserError: the predictions cannot belong to this data set.
        """
        of_image = self._of_image
        if self.distributed:
            comm.synchronize()
            gathered = comm.gather(self._of_image, dst=0)
            if not comm.is_main_process():
                return {}
            # By image, so that one that two processes saw does not count twice.
            of_image = {key: value for part in gathered for key, value in part.items()}
        truth = load_ground_truth(self.dataset_name, self.crowds)
        predictions = list(of_image.values())
        truth.check_predictions(predictions)
        if len(of_image) < len(truth.image_sizes):
            logger.warning(
                "%s: predictions for %d of %d images; the objects of the others count as missed.",
                *(self.dataset_name, len(of_image), len(truth.image_sizes)),
            )
        if self.output_dir:
            path = os.path.join(self.output_dir, self.file_name)
            write_predictions(path, predictions, truth.json_ids, truth.annotation_ids)
        if not truth.annotated:
            logger.info(
                "%s has no annotations, so nothing is measured; its predictions are %s.",
                self.dataset_name,
                path if self.output_dir else "not written, as there is no output folder",
            )
            return {}
        return self.evaluate_predictions(truth, predictions)

    @abstractmethod
    def evaluate_predictions(
        self, truth: GroundTruth, predictions: list[ImagePredictions]
    ) -> dict[str, dict[str, float]]:
        """The results of predictions whose classes are categories. On the main process only."""

    def groups(self, truth: GroundTruth) -> dict[str, list[int]]:
        """:func:`class_groups` and further ones, of the categories that the model has."""
        groups = class_groups(self.seen_ids, len(truth.class_names)) | self.further_groups
        if self.own_ids is None:
            return groups
        known = set(self.own_ids.values())
        groups = {name: [i for i in ids if i in known] for name, ids in groups.items()}
        return {name: ids for name, ids in groups.items() if ids}

    def heading(self, what: str) -> str:
        """The line above a table."""
        return f"{what} ({self.note}):" if self.note else f"{what}:"

    def save(self, file_name: str, content, indent: int | None = None) -> None:
        """Write a json file into the output folder, if there is one."""
        if self.output_dir:
            write_json(os.path.join(self.output_dir, file_name), content, indent)


def _invert(class_ids: Sequence[int | None], dataset_name: str) -> dict[int, int]:
    """Category by class."""
    own_ids = {}
    for own, class_id in enumerate(class_ids):
        if class_id is None:
            continue
        if class_id in own_ids:
            raise UserError(
                f"PSIS.CATEGORY_MAP maps two categories of '{dataset_name}' to one class, so that "
                "its predictions are of neither; map one of them elsewhere to evaluate on it."
            )
        own_ids[class_id] = own
    return own_ids


def class_groups(seen_ids: Collection[int], num_classes: int) -> dict[str, list[int]]:
    """Contiguous category ids of ``seen``, ``unseen`` and ``all``; an empty group is left out.

    Raises:
        ValueError: a seen id is no category.
    """
    strays = [i for i in seen_ids if not 0 <= i < num_classes]
    if strays:
        raise ValueError(f"seen_ids {strays} are no categories: there are {num_classes}")
    everything = list(range(num_classes))
    groups = {
        "seen": [i for i in everything if i in seen_ids],
        "unseen": [i for i in everything if i not in seen_ids],
        "all": everything,
    }
    for name in [name for name, ids in groups.items() if not ids]:
        del groups[name]
        logger.info("No category is %s, so there are no results on %s ones.", name, name)
    return groups


def write_predictions(
    path: str,
    predictions: Iterable[ImagePredictions],
    json_ids: Sequence[int | str],
    annotation_ids: Mapping[int, int | str | None] = MappingProxyType({}),
) -> None:
    """Write predictions in COCO's result format, an image at a time, or nothing at all.

    Args:
        path: of the json.
        predictions: classes being contiguous category ids.
        json_ids: category id in the annotation file, by contiguous id.
        annotation_ids: annotation id in that file, by ours, where it is another.
    """
    with written_at_once(path) as file:
        separator = "["
        for of_image in predictions:
            if records := of_image.records(json_ids, annotation_ids):
                file.write(separator + json.dumps(_plain(records), allow_nan=False)[1:-1])
                separator = ", "
        file.write("[]" if separator == "[" else "]")


def write_json(path: str, content, indent: int | None = None) -> None:
    """Write a json file as a whole or not at all. Numbers that are not finite become null."""
    with written_at_once(path) as file:
        json.dump(_plain(content), file, allow_nan=False, indent=indent)


def _plain(value):
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
