"""Pictures of what a mask head saw beside its masks, such as those of CPMask's Fig. 4."""

import itertools
import os
from collections.abc import Iterator, Sequence

import psis_d2.modeling  # noqa: F401  (registers detectors and heads)
from psis_d2.data import build_test_loader, get_class_names, get_dataset_dicts, seen_ids_for
from psis_d2.data.mapper import PartialMaskMapper
from psis_d2.engine.trainer import Trainer, build_checkpointer
from psis_d2.errors import UserError, check_choice
from psis_d2.evaluation.given_box_models import GivenBoxModel
from psis_d2.modeling.context import RegionContext
from psis_d2.visualization import UNSEEN_MARK, heat_map_grid, instance_colors, save_png

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from detectron2.structures import Instances
from pycocotools import mask as mask_util
from torch import Tensor, nn

CATEGORIES = ("unseen", "seen", "all")
_FIELD = "heat_map_"


def keep_heat_maps(head: nn.Module) -> None:
    """Let a mask head leave its heat-maps with the regions that it predicts masks for."""
    predict = head.predict

    def explain_and_predict(context: RegionContext) -> Tensor:
        sizes = [len(regions) for regions in context.regions]
        for name, maps in head.heat_maps(context).items():
            for regions, part in zip(context.regions, maps.split(sizes), strict=True):
                regions.set(_FIELD + name, part)
        return predict(context)

    head.predict = explain_and_predict


def decode(annotation: dict, height: int, width: int) -> np.ndarray | None:
    """An annotation's mask, bool [height, width]; None if it has none."""
    rle = annotation.get("segmentation")
    if rle is None:
        return None
    if isinstance(rle, list):
        rle = mask_util.merge(mask_util.frPyObjects(rle, height, width))
    return mask_util.decode(rle).astype(bool)


def validation_objects(cfg, model: nn.Module) -> Iterator[tuple[np.ndarray, Instances, list]]:
    """Of each validation image: RGB image, annotated objects with predicted masks, true masks."""
    name = cfg.DATASETS.TEST[0]
    records = {record["image_id"]: record for record in get_dataset_dicts(name)}
    given = GivenBoxModel(model)
    for batch in build_test_loader(cfg, name, with_boxes=True):
        record = records[batch[0]["image_id"]]
        found = given(batch)[0]["instances"].to("cpu")
        size = record["height"], record["width"]
        truth = {a["id"]: decode(a, *size) for a in record["annotations"]}
        image = read_image(record["file_name"], format="RGB")
        yield image, found, [truth[i] for i in found.gt_ids.tolist()]


def detected_objects(
    cfg, model: nn.Module, paths: Sequence[str], min_score: float
) -> Iterator[tuple[np.ndarray, Instances, list]]:
    """Of each image file: RGB image, detections with masks, no true masks."""
    mapper = PartialMaskMapper(cfg, is_train=False)
    for path in paths:
        if not os.path.isfile(path):
            raise UserError(f"The image {path} does not exist; check the path.")
        image = read_image(path, format="RGB")
        record = {"file_name": path, "image_id": path}
        record |= {"height": image.shape[0], "width": image.shape[1]}
        found = model([mapper(record)])[0]["instances"].to("cpu")
        found = found[found.scores >= min_score]
        yield image, found, [None] * len(found)


def samples_of(
    image: np.ndarray, found: Instances, truth: list, class_names: list[str], seen: set[int]
) -> Iterator[tuple[int, dict]]:
    """Class and picture material, see :func:`heat_map_grid`, of each object of an image."""
    classes = found.pred_classes.tolist()
    for i, (category, color) in enumerate(
        zip(classes, instance_colors(classes, seen), strict=True)
    ):
        fields = found[i].get_fields()
        maps = {
            name.removeprefix(_FIELD): value[0].numpy()
            for name, value in fields.items()
            if name.startswith(_FIELD)
        }
        mark = "" if category in seen else UNSEEN_MARK
        yield (
            category,
            {
                **{"image": image, "box": fields["pred_boxes"].tensor[0].numpy()},
                **{"mask": fields["pred_masks"][0].numpy(), "truth": truth[i]},
                **{"label": class_names[category] + mark, "color": color, "maps": maps},
            },
        )


def draw_heat_maps(
    cfg: CfgNode,
    output: str,
    images: Sequence[str] = (),
    *,
    categories: str = "",
    objects: int = 12,
    per_image: int = 2,
    min_score: float = 0.5,
) -> None:
    """Write a picture of objects, their masks and the heat-maps of their mask head.

    Args:
        cfg: a config whose mask head has ``heat_maps``; ``MODEL.WEIGHTS`` names a trained model.
        output: png to write.
        images: image files, objects being what the detector finds in them; without any, objects of
            the validation data in their annotated boxes.
        categories: "unseen", "seen" or "all"; "" = unseen, or all if there are image files.
        objects: how many are drawn, at most.
        per_image: how many of one image, at most.
        min_score: of detections in image files.

    Raises:
        UserError: there is nothing to draw, or a file is missing.
    """
    wanted = categories or ("all" if images else "unseen")
    check_choice("categories", wanted, CATEGORIES)
    model = Trainer.build_model(cfg)
    build_checkpointer(cfg, model).load(cfg.MODEL.WEIGHTS)
    model.eval()
    keep_heat_maps(model.roi_heads.mask_head)

    names = get_class_names((cfg.DATASETS.TEST or cfg.DATASETS.TRAIN)[0])
    seen = set(seen_ids_for(cfg))
    groups = {"seen": seen, "unseen": set(range(len(names))) - seen, "all": set(range(len(names)))}
    if images:
        found_objects = detected_objects(cfg, model, images, min_score)
    else:
        found_objects = validation_objects(cfg, model)
    samples: list[dict] = []
    with torch.no_grad():
        for image, found, truth in found_objects:
            of_image = samples_of(image, found, truth, names, seen)
            fitting = (sample for category, sample in of_image if category in groups[wanted])
            samples += itertools.islice(fitting, per_image)
            if len(samples) >= objects:
                break
    if not samples:
        raise UserError(
            "There is no object to draw; lower --min-score or ask for --categories all."
        )
    if not samples[0]["maps"]:
        raise UserError(
            f"{cfg.MODEL.ROI_MASK_HEAD.NAME} has no heat-maps; give a config whose mask head has."
        )
    save_png(output, heat_map_grid(samples[:objects]))
