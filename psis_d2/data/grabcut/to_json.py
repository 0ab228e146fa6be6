"""A COCO-format json in which objects whose mask training may not see have GrabCut masks."""

import json
from pathlib import Path

from psis_d2.data.catalog import coco_reader, get_class_names, get_dataset_dicts, prepare_dataset
from psis_d2.data.coco import match_annotations, register_coco_json
from psis_d2.data.grabcut import GrabCut, grabcut_masks
from psis_d2.data.splits import resolve_seen_classes
from psis_d2.data.supervision import masked_classes, restrict_masks
from psis_d2.errors import UserError
from psis_d2.files import written_at_once

from pycocotools import mask as mask_util


def make_grabcut_masks(
    output: str,
    *,
    dataset: str | None = None,
    json_file: str | None = None,
    images: str | None = None,
    seen: str = "auto",
    cache: str,
    settings: GrabCut,
    threads: int = 0,
) -> int:
    """Write the json.

    Objects of seen categories keep what they have; those of the others get the GrabCut mask of
    their box, whatever they had. An interrupted call continues where it stopped.

    Args:
        output: the file to write.
        dataset: a registered data set, or ...
        json_file, images: ... a COCO-format json and its images.
        seen: the seen categories, as ``PSIS.SEEN_CLASSES``.
        cache: folder for finished masks.
        settings: how GrabCut works.
        threads: how many work at the same time, 0 = one a core.

    Returns:
        The number of objects with a GrabCut mask.

    Raises:
        UserError: the data is not usable or something cannot be written.
    """
    if bool(dataset) == bool(json_file) or bool(json_file) != bool(images):
        raise UserError("Give either --dataset, or --json and --images.")
    name = dataset or f"grabcut:{json_file}"
    if json_file:
        register_coco_json(name, json_file, images)
    prepare_dataset(name)
    reader = coco_reader(name)
    if reader is None:
        raise UserError(f"Data set '{name}' has no COCO-format json; give --json and --images.")
    dicts = get_dataset_dicts(name)
    seen_ids = resolve_seen_classes(
        seen, get_class_names(name), masked_classes=masked_classes(dicts), dataset_name=name
    )
    restrict_masks(dicts, seen_ids)
    for record in dicts:
        annotations = record["annotations"]
        record["annotations"] = [a for a in annotations if a["category_id"] not in seen_ids]
    masks = grabcut_masks(dicts, name, cache, settings, threads)

    content = json.loads(Path(reader.json_file).read_text(encoding="utf-8-sig"))
    for key, annotation in match_annotations(dicts, content["annotations"]).items():
        annotation.pop("segmentation", None)
        # COCO's area is the mask's.
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        if key in masks:
            annotation["segmentation"] = masks[key]
            annotation["area"] = int(mask_util.area(masks[key]))
    try:
        with written_at_once(output) as file:
            file.write(json.dumps(content))
    except OSError as error:
        raise UserError(
            f"Cannot write {output} ({error.strerror or error}); choose another --output."
        ) from error
    return len(masks)
