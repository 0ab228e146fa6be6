"""Reads a COCO json with the importers of labeling tools; prints what they found, as json.

Run by test_labeling_tools.py with the interpreter of an environment that has them, since they need
other versions of our own packages.

    python labeling_tools.py labeled.json images/
"""

import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import datumaro
from label_studio_sdk.converter.imports.coco import convert_coco_to_ls


def read_with_datumaro(file: str, images: str) -> dict:
    """Kinds of annotations that CVAT's importer reads."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "annotations", "instances_default.json")
        target.parent.mkdir()
        shutil.copy(file, target)
        shutil.copytree(images, Path(folder, "images", "default"))
        dataset = datumaro.Dataset.import_from(folder, "coco_instances")
        kinds = Counter(a.type.name for item in dataset for a in item.annotations)
        return {"images": len(dataset), **kinds}


def read_with_label_studio(file: str) -> dict | str:
    """Kinds of regions that Label Studio's importer makes, crowd regions left out."""
    data = json.loads(Path(file).read_text())
    data["annotations"] = [a for a in data["annotations"] if not a["iscrowd"]]
    if any(isinstance(a.get("segmentation"), dict) for a in data["annotations"]):
        return "reads polygons only"
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "labeled.json"), Path(folder, "tasks.json")
        source.write_text(json.dumps(data))
        convert_coco_to_ls(str(source), str(target), image_root_url="/data")
        tasks = json.loads(target.read_text())
        regions = (r["type"] for t in tasks for a in t["annotations"] for r in a["result"])
        return {"images": len(tasks), **Counter(regions)}


if __name__ == "__main__":
    found = {"datumaro": read_with_datumaro(*sys.argv[1:])}
    found["label studio"] = read_with_label_studio(sys.argv[1])
    print("found:", json.dumps(found))
