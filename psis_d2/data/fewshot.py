"""Few-shot data: a fixed number of objects of every novel category, drawn once, kept as a json.

As in CPMask (Fan et al., ECCV 2020, sec. 4.4) and Meta R-CNN (Yan et al., ICCV 2019): a model is
trained on the base categories and fine-tuned on 10 or 20 objects of each novel one, with box and
mask. The json that :func:`draw_few_shots` makes holds these objects only; others in the same images
are not annotated in it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Collection, Iterable

from psis_d2.data.catalog import coco_reader, prepare_dataset
from psis_d2.data.coco import load_coco, match_annotations, register_coco_json
from psis_d2.data.splits import resolve_seen_classes
from psis_d2.errors import UserError
from psis_d2.files import written_at_once

from detectron2.data import DatasetCatalog, MetadataCatalog

SHOTS = (10, 20)
SEEDS = (0, 1, 2)
"""The draws that have names: ``<data set>_fewshot_<novel>_<shots>_seed<seed>``."""


def few_shot_json(json_file: str, novel: str, shots: int, seed: int) -> str:
    """Path of the draw from ``json_file``: beside it."""
    name = f"fewshot_{os.path.basename(novel)}_{shots}_seed{seed}.json"
    return os.path.join(os.path.dirname(json_file), name)


def select_shots(
    dicts: Iterable[dict], class_ids: Collection[int], shots: int, seed: int
) -> dict[int, list[int]]:
    """Draw objects that have a mask, the same number of each category.

    The draw depends on the annotation ids and the seed only, not on the order; with one seed, a
    smaller number gives a subset of a larger one. Crowd regions are not drawn.

    Args:
        dicts: standard dataset dicts with cleaned annotations that have ids.
        class_ids: contiguous ids of the novel categories.
        shots: objects of each.
        seed: any integer.

    Returns:
        Contiguous category id -> sorted annotation ids; a category with too few objects has all
        that there are.
    """
    candidates: dict[int, list[int]] = {i: [] for i in sorted(class_ids)}
    for record in dicts:
        for annotation in record["annotations"]:
            usable = "segmentation" in annotation and not annotation["iscrowd"]
            if usable and annotation["category_id"] in candidates:
                candidates[annotation["category_id"]].append(annotation["id"])

    def rank(annotation_id: int) -> bytes:
        return hashlib.sha256(f"{seed}:{annotation_id}".encode()).digest()

    return {i: sorted(sorted(ids, key=rank)[:shots]) for i, ids in candidates.items()}


def draw_few_shots(
    json_file: str, novel: str, shots: int, seed: int
) -> tuple[dict, dict[str, list[int]]]:
    """Draw from a COCO-format json.

    Args:
        json_file: annotations to draw from.
        novel: the novel categories, spelled as ``PSIS.SEEN_CLASSES`` is.
        shots: objects of each.
        seed: any integer.

    Returns:
        The content of a json with all categories, the drawn objects and their images; and the drawn
        annotation ids by category name.

    Raises:
        UserError: the json or the split cannot be used, or a category has too few objects.
    """
    if shots < 1:
        raise UserError(f"The number of shots is {shots}, but it must be at least 1.")
    source = f"few shots of {json_file}"
    dicts = load_coco(json_file, "", source)
    class_names = MetadataCatalog.get(source).thing_classes
    class_ids = resolve_seen_classes(novel, class_names, dataset_name=json_file, key="--novel")
    drawn = select_shots(dicts, class_ids, shots, seed)
    lacking = [f"{class_names[i]} {len(ids)}" for i, ids in drawn.items() if len(ids) < shots]
    if lacking:
        raise UserError(
            f"{json_file} has too few objects with a mask for {shots} of each novel category "
            f"({', '.join(lacking)}); draw fewer, or name other categories."
        )
    chosen = {annotation_id for ids in drawn.values() for annotation_id in ids}
    with open(json_file, encoding="utf-8-sig") as file:
        content = json.load(file)
    entries = match_annotations(dicts, content["annotations"])
    annotations = [entry for (_, key), entry in entries.items() if key in chosen]
    images = {a["image_id"] for a in annotations}
    few = {
        "info": {
            "description": "Objects drawn for few-shot training; others in their images are not "
            "annotated here.",
            **{"source": os.path.basename(json_file), "novel": os.path.basename(novel)},
            **{"shots": shots, "seed": seed},
        },
        "images": [image for image in content["images"] if image["id"] in images],
        "annotations": annotations,
        "categories": content["categories"],
    }
    if "licenses" in content:
        few["licenses"] = content["licenses"]
    return few, {class_names[i]: ids for i, ids in drawn.items()}


def make_fewshot(
    novel: str,
    shots: int = 10,
    seed: int = 0,
    *,
    dataset: str | None = None,
    json_file: str | None = None,
    out: str | None = None,
) -> tuple[str, dict, dict[str, list[int]]]:
    """Draw few-shot data and write it as a json, unless the same draw is there.

    Args:
        novel: the novel categories, as ``PSIS.SEEN_CLASSES``.
        shots: objects of each of them.
        seed: another seed is another draw.
        dataset: registered data set to draw from, or ...
        json_file: ... a COCO-format json.
        out: where to write; None = beside the source, where the draw's name finds it.

    Returns:
        The file, its content, and the annotation ids drawn by category.

    Raises:
        UserError: there are too few objects, or the file cannot be written or holds another draw.
    """
    if dataset:
        prepare_dataset(dataset)
        reader = coco_reader(dataset)
        if reader is None:
            raise UserError(f"Data set '{dataset}' has no json; draw from --json FILE.")
        json_file = reader.json_file
    content, drawn = draw_few_shots(json_file, novel, shots, seed)
    out = out or few_shot_json(json_file, novel, shots, seed)
    if not os.path.lexists(out):
        try:
            with written_at_once(out) as file:
                json.dump(content, file)
        except OSError as error:
            raise UserError(
                f"Cannot write {out} ({error.strerror or error}); give a writable path as --out."
            ) from error
    elif not _is_same(out, content):
        raise UserError(
            f"{out} is there already and holds something else; delete it or give --out."
        )
    return out, content, drawn


def _is_same(path: str, content: dict) -> bool:
    """Whether the file holds this very draw."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file) == content
    except (OSError, ValueError):
        return False


def register_few_shots(dataset: str, novel: str) -> None:
    """Register all named draws of a registered data set whose categories are known.

    Their files need not exist yet. Names that are registered already stay as they
    are.
    """
    metadata = MetadataCatalog.get(dataset)
    for shots in SHOTS:
        for seed in SEEDS:
            name = f"{dataset}_fewshot_{novel}_{shots}_seed{seed}"
            if name in DatasetCatalog:
                continue
            json_file = few_shot_json(metadata.json_file, novel, shots, seed)
            command = (
                f"psis-d2 make-fewshot --dataset {dataset} --novel {novel} "
                f"--shots {shots} --seed {seed}"
            )
            prepare = functools.partial(_require, json_file, command)
            register_coco_json(name, json_file, metadata.image_root, prepare)
            MetadataCatalog.get(name).set(
                thing_classes=metadata.thing_classes,
                thing_dataset_id_to_contiguous_id=metadata.thing_dataset_id_to_contiguous_id,
            )


def _require(json_file: str, command: str) -> None:
    if not os.path.isfile(json_file):
        raise UserError(f"The few-shot data {json_file} is not drawn yet; do it once: {command}")
