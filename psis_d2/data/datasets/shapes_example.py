"""PartialShapes as somebody's own files would be: a json in which only some objects have masks."""

from __future__ import annotations

import json
import os

from psis_d2.data.datasets.partial_shapes import generate, json_path
from psis_d2.data.datasets.shapes_scene import SEEN_SHAPES
from psis_d2.errors import UserError
from psis_d2.files import written_at_once


def write_example(folder: str, num_train: int = 200, num_val: int = 40, seed: int = 0) -> dict:
    """Write pictures and two jsons: boxes for all objects, in training masks for half the kinds.

    ``train/`` and ``val/`` hold the pictures, ``train.json`` and ``val.json`` what is in them. The
    training json has no ``segmentation`` for objects of the ten unseen kinds, the validation json
    has all masks, so that the unseen kinds can be measured.

    Args:
        folder: where to write; missing, empty, or the same example.
        num_train, num_val: pictures.
        seed: of their content.

    Returns:
        {"train": objects, "masks": how many of them have one, "val": objects}.

    Raises:
        UserError: a number is out of range, the folder holds something else, or cannot be written.
    """
    generate(folder, num_train, num_val, seed)
    counts = {}
    for split in ("train", "val"):
        with open(json_path(folder, split), encoding="utf-8") as file:
            content = json.load(file)
        if split == "train":
            seen = {c["id"] for c in content["categories"] if c["name"] in SEEN_SHAPES}
            for annotation in content["annotations"]:
                if annotation["category_id"] not in seen:
                    del annotation["segmentation"]
        try:
            with written_at_once(os.path.join(folder, f"{split}.json")) as file:
                json.dump(content, file)
        except OSError as error:
            raise UserError(
                f"Cannot write into {folder} ({error.strerror or error}); choose another folder."
            ) from error
        counts[split] = len(content["annotations"])
        if split == "train":
            counts["masks"] = sum("segmentation" in a for a in content["annotations"])
    return counts
