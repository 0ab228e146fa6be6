"""Evaluate a model as its config says: on every data set, kind of boxes and source of masks."""

import itertools
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence

from psis_d2.data import build_test_loader, get_dataset_dicts, seen_ids_for
from psis_d2.data.classes import category_groups, get_model_class_ids
from psis_d2.data.foreign_masks import names_file
from psis_d2.evaluation.base import PredictionCollector, write_json
from psis_d2.evaluation.coco import PartialCOCOEvaluator
from psis_d2.evaluation.given_box_models import BoxShrink, GivenBoxModel, ShrunkBoxModel
from psis_d2.evaluation.given_boxes import GivenBoxEvaluator
from psis_d2.evaluation.grabcut_model import build_grabcut_model
from psis_d2.evaluation.mask_file_model import build_mask_file_model, check_mask_file
from psis_d2.evaluation.names import short_name

from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from torch import nn

logger = logging.getLogger(__name__)

TEST_MASKS = ("model", "grabcut")
TEST_BOXES = {"detected": ("detected",), "gt": ("gt",), "both": ("detected", "gt")}


def build_evaluator(
    cfg, dataset_name: str, boxes: str = "detected", shrunk: bool = False
) -> PredictionCollector:
    """The evaluator of one data set.

    Args:
        cfg: the config.
        dataset_name: a registered COCO-format data set.
        boxes: which boxes it will see, "detected" or "gt" (from the annotations).
        shrunk: whether they are shrunk; the files then go to a folder of their own.
    """
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", short_name(dataset_name))
    kind = GivenBoxEvaluator if boxes == "gt" else PartialCOCOEvaluator
    class_ids = get_model_class_ids(cfg, dataset_name)

    def own_ids(chosen: Collection[int]) -> list[int]:
        """Categories of the data set that are some of the model's classes."""
        if class_ids is None:
            return sorted(chosen)
        return [own for own, class_id in enumerate(class_ids) if class_id in chosen]

    return kind(
        dataset_name=dataset_name,
        seen_ids=own_ids(seen_ids_for(cfg)),
        output_dir=os.path.join(folder, "shrunk_boxes") if shrunk else folder,
        max_dets=cfg.TEST.DETECTIONS_PER_IMAGE,
        class_ids=class_ids,
        overlap=cfg.TEST.OVERLAP,
        boundary=cfg.TEST.BOUNDARY_AP,
        groups={name: own_ids(ids) for name, ids in category_groups(cfg).items()},
        crowds=cfg.PSIS.CROWDS,
    )


def evaluate(
    cfg,
    model: nn.Module,
    build_evaluator: Callable[..., DatasetEvaluator] = build_evaluator,
    names: Sequence[str] | None = None,
    note: str = "",
) -> OrderedDict:
    """Evaluate on data sets: boxes as ``TEST.BOXES`` says, masks as ``TEST.MASKS``.

    Masks of a file are measured in annotated boxes, without asking the model. With
    ``TEST.BOX_SHRINK`` below 1 everything is measured once more, in shrunk boxes; the names of
    these tasks begin with ``shrunk_``. All processes of a distributed run call it together.

    Args:
        cfg: the config, whose ``OUTPUT_DIR`` gets the predictions and tables.
        model: a meta-architecture of Detectron2's, with weights.
        build_evaluator: called as :func:`build_evaluator` is.
        names: data sets, those of ``DATASETS.TEST`` by default.
        note: what stands in the headings of all tables.

    Returns:
        {task: {metric: value}}; with several data sets {data set: {task: {...}}}, where a name is
        shortened by :func:`~psis_d2.evaluation.names.short_name`. The same is written to
        ``OUTPUT_DIR/results.json``.

    Raises:
        UserError: the config or the data is not usable.
    """
    check_mask_file(cfg)
    shrinks = [None]
    if cfg.TEST.BOX_SHRINK != 1.0:
        shrinks.append(BoxShrink(cfg.TEST.BOX_SHRINK, cfg.TEST.BOX_SHRINK_SEED))
    names = list(cfg.DATASETS.TEST if names is None else names)
    results = OrderedDict()
    for name in names:
        of_dataset = results[short_name(name)] = OrderedDict()
        for boxes, shrink in itertools.product(TEST_BOXES[cfg.TEST.BOXES], shrinks):
            dicts = get_dataset_dicts(name, cfg.PSIS.CROWDS)
            if boxes == "gt" and not any(record["annotations"] for record in dicts):
                logger.info("%s has no annotations, so there are no boxes to give.", name)
                continue
            loader = build_test_loader(cfg, name, with_boxes=boxes == "gt", dicts=dicts)
            tested = model
            if boxes == "gt":
                tested = GivenBoxModel(model, shrink)
            elif shrink:
                tested = ShrunkBoxModel(model, shrink)
            if names_file(cfg.TEST.MASKS):
                tested = build_mask_file_model(cfg, dicts)
            elif cfg.TEST.MASKS == "grabcut":
                annotated = boxes == "gt" and not shrink
                tested = build_grabcut_model(cfg, tested, name, annotated)
            evaluator = build_evaluator(cfg, name, boxes, shrunk=shrink is not None)
            if note:
                evaluator.note = note
            tasks = inference_on_dataset(tested, loader, evaluator) or {}
            prefix = "shrunk_" if shrink else ""
            of_dataset.update({f"{prefix}{task}": x for task, x in tasks.items()})
    if len(results) == 1:
        results = next(iter(results.values()))
    if comm.is_main_process() and results:
        write_json(f"{cfg.OUTPUT_DIR}/results.json", results, indent=1)
    return results
