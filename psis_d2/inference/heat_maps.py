"""Pictures of what a mask head saw beside its masks, such as those of CPMask's Fig. 4."""

from __future__ import annotations

from collections.abc import Sequence

from psis_d2.errors import UserError
from psis_d2.files import written_at_once
from psis_d2.inference.predictor import Predictor
from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.mask_heads.base import RegionMaskHead
from psis_d2.visualization import UNSEEN_MARK, heat_map_grid, instance_colors

import numpy as np
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.structures import Instances
from torch import Tensor

FIELD = "heat_map_"
"""Begins the names of the fields in which a predictor's objects have heat-maps, float [N, S, S]."""
_MOST = 12  # objects of a picture


def keep_heat_maps(predictor: Predictor) -> None:
    """Let a predictor's objects bring along the heat-maps of their mask head.

    Raises:
        UserError: its mask head has none.
    """
    head = getattr(getattr(predictor.model, "roi_heads", None), "mask_head", None)
    if head is not None:
        predict = head.predict

        def explain_and_predict(context: RegionContext) -> Tensor:
            sizes = [len(regions) for regions in context.regions]
            maps_of_all = head.heat_maps(context) if sum(sizes) else {}
            for name, maps in maps_of_all.items():
                for regions, part in zip(context.regions, maps.split(sizes), strict=True):
                    regions.set(FIELD + name, part)
            return predict(context)

        head.predict = explain_and_predict
        blank = np.zeros((64, 64, 3), np.uint8)
        if heat_maps_of(predictor(blank, [[8.0, 8.0, 56.0, 56.0]], [0])):
            return
        head.predict = predict
    name = predictor.cfg.MODEL.META_ARCHITECTURE if head is None else type(head).__name__
    drawn = [
        other
        for other, kind in ROI_MASK_HEAD_REGISTRY
        if getattr(kind, "heat_maps", RegionMaskHead.heat_maps) is not RegionMaskHead.heat_maps
    ]
    raise UserError(
        f"The model has no heat-maps ({name}); leave --heat-maps out, or give a model whose mask "
        f"head has some: {', '.join(sorted(drawn))}."
    )


def heat_maps_of(found: Instances) -> dict[str, Tensor]:
    """The heat-maps of objects by name."""
    fields = found.get_fields().items()
    return {name.removeprefix(FIELD): x for name, x in fields if name.startswith(FIELD)}


def write_heat_maps(path: str, image: str, found: Instances) -> None:
    """Write the heat-maps of an image's objects, for ``psis-d2 analyze best-overlap``.

    The npz has ``file_name`` (of the image), ``boxes`` float32 [N, 4] (XYXY in pixels of the image)
    and ``map_<name>`` float16 [N, S, S] for each of the head's heat-maps.

    Args:
        path: to write to.
        image: path of the image.
        found: N > 0 objects of the predictor, after :func:`keep_heat_maps`.
    """
    maps = {f"map_{name}": x.half().numpy() for name, x in heat_maps_of(found).items()}
    boxes = found.pred_boxes.tensor.numpy().astype(np.float32)
    with written_at_once(path, binary=True) as file:
        np.savez_compressed(file, file_name=np.array(image), boxes=boxes, **maps)


def heat_map_picture(
    image: np.ndarray,
    found: Instances,
    predictor: Predictor,
    truth: Sequence[np.ndarray | None] | None = None,
) -> np.ndarray | None:
    """The objects of an image, each with its mask and its heat-maps, the surest first.

    Args:
        image: uint8 [H, W, 3], BGR.
        found: of the predictor, after :func:`keep_heat_maps`.
        predictor: knows the classes and which of them are seen.
        truth: an annotated mask of each, bool [H, W] or None, drawn dashed.

    Returns:
        RGB uint8 image of at most twelve objects; None if there is none.
    """
    if not len(found):
        return None
    rgb = np.ascontiguousarray(image[:, :, ::-1])
    maps = {name: x.numpy() for name, x in heat_maps_of(found).items()}
    classes = found.pred_classes.tolist()
    colors = instance_colors(classes, predictor.seen_ids)
    samples = []
    for row in found.scores.argsort(descending=True, stable=True).tolist()[:_MOST]:
        mark = "" if classes[row] in predictor.seen_ids else UNSEEN_MARK
        samples.append(
            {
                "image": rgb,
                "box": found.pred_boxes.tensor[row].numpy(),
                "mask": found.pred_masks[row].numpy(),
                "label": predictor.class_names[classes[row]] + mark,
                "color": colors[row],
                "maps": {name: x[row] for name, x in maps.items()},
                "truth": truth[row] if truth else None,
            }
        )
    return heat_map_grid(samples)
