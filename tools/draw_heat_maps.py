#!/usr/bin/env python3
"""Draw what a mask head saw beside its masks: CPMask's boundaries and mean affinities (its Fig. 4).

    python tools/draw_heat_maps.py --config-file configs/cpmask_R50.yaml --output heat.png \
        MODEL.WEIGHTS output/cpmask_R50/model_final.pth
    python tools/draw_heat_maps.py --config-file ... --image a.jpg --image b.jpg MODEL.WEIGHTS ...

Without --image, objects of the validation data in their annotated boxes, of unseen categories;
with --image, what the detector finds in them. A dashed red line is the annotated mask. Each
heat-map has a scale of its own, written above it: blue is the lowest value, yellow the highest.
"""

import argparse
import itertools
import os
from collections.abc import Iterator

import psis_d2.modeling  # noqa: F401  (registers detectors and heads)
from psis_d2.data import build_test_loader, get_class_names, get_dataset_dicts, seen_ids_for
from psis_d2.data.mapper import PartialMaskMapper
from psis_d2.engine import Trainer
from psis_d2.engine.setup import add_data_arguments, build_config, choose_gpus
from psis_d2.engine.trainer import build_checkpointer
from psis_d2.errors import UserError, exit_on_user_error
from psis_d2.evaluation.given_box_models import GivenBoxModel
from psis_d2.modeling.context import RegionContext
from psis_d2.visualization import UNSEEN_MARK, heat_map_grid, instance_colors, save_png

import numpy as np
import torch
from detectron2.data.detection_utils import read_image
from detectron2.structures import Instances
from detectron2.utils.logger import setup_logger
from pycocotools import mask as mask_util
from torch import Tensor, nn

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
    cfg, model: nn.Module, paths: list[str], min_score: float
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


def main() -> None:
    """Load, predict, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--output", default="heat_maps.png", help="picture to write")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        help="image file, may be repeated; else validation data",
    )
    parser.add_argument(
        "--categories", choices=["unseen", "seen", "all"], help="default: unseen; all with --image"
    )
    parser.add_argument("--objects", type=int, default=12, help="objects in the picture")
    parser.add_argument("--per-image", type=int, default=2, help="objects of an image at the most")
    parser.add_argument("--min-score", type=float, default=0.5, help="of detections in --image")
    add_data_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs, MODEL.WEIGHTS too")
    args = parser.parse_args()
    args.num_gpus = choose_gpus(None)
    cfg = build_config(args)
    setup_logger(name="psis_d2").setLevel("WARNING")
    model = Trainer.build_model(cfg)
    build_checkpointer(cfg, model).load(cfg.MODEL.WEIGHTS)
    model.eval()
    keep_heat_maps(model.roi_heads.mask_head)

    names = get_class_names((cfg.DATASETS.TEST or cfg.DATASETS.TRAIN)[0])
    seen = set(seen_ids_for(cfg))
    wanted = args.categories or ("all" if args.image else "unseen")
    groups = {"seen": seen, "unseen": set(range(len(names))) - seen, "all": set(range(len(names)))}
    if args.image:
        objects = detected_objects(cfg, model, args.image, args.min_score)
    else:
        objects = validation_objects(cfg, model)
    samples: list[dict] = []
    with torch.no_grad():
        for image, found, truth in objects:
            of_image = samples_of(image, found, truth, names, seen)
            fitting = (sample for category, sample in of_image if category in groups[wanted])
            samples += itertools.islice(fitting, args.per_image)
            if len(samples) >= args.objects:
                break
    if not samples:
        raise UserError(
            "There is no object to draw; lower --min-score or ask for --categories all."
        )
    if not samples[0]["maps"]:
        raise UserError(
            f"{cfg.MODEL.ROI_MASK_HEAD.NAME} has no heat-maps; give a config whose mask head has."
        )
    save_png(args.output, heat_map_grid(samples[: args.objects]))
    print(f"The picture is in {args.output}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
