"""A few images of each data set of the papers' configs, in its real layout, made of COCO's."""

import json
from collections.abc import Container
from pathlib import Path

from psis_d2.data.datasets import bdd100k, visual_genome, voc

import numpy as np
from PIL import Image
from pycocotools import mask as mask_util

# COCO's names of BDD100K's categories; it has no rider.
_ROAD = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]


def read_coco(coco: Path, split: str) -> dict:
    """The annotations of a split below a folder as ``DETECTRON2_DATASETS`` wants it."""
    path = coco / "coco" / "annotations" / f"instances_{split}2017.json"
    return json.loads(path.read_text())


def write_json(path: Path, content) -> None:
    """With the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _first_images(content: dict, count: int, categories: Container | None = None) -> dict:
    """The first images with objects of some categories, and these; None = with anything."""
    annotations = [
        a
        for a in content["annotations"]
        if categories is None or (a["category_id"] in categories and not a["iscrowd"])
    ]
    known = {a["image_id"] for a in annotations}
    images = [x for x in content["images"] if x["id"] in known][:count]
    kept = {x["id"] for x in images}
    annotations = [a for a in annotations if a["image_id"] in kept]
    return {**content, "images": images, "annotations": annotations}


def write_coco(coco: Path, folder: Path, train: int = 8, val: int = 2) -> None:
    """Some of COCO's own images."""
    for split, count in (("train", train), ("val", val)):
        content = _first_images(read_coco(coco, split), count)
        write_json(folder / "coco" / "annotations" / f"instances_{split}2017.json", content)
        (folder / "coco" / f"{split}2017").symlink_to((coco / "coco" / f"{split}2017").resolve())


def write_bdd100k(coco: Path, folder: Path) -> None:
    """Four images with bitmasks, two of validation, and four more with boxes; converted."""
    root = folder / "bdd100k"
    for split, counts in (("train", (4, 4)), ("val", (2, 0))):
        content = read_coco(coco, split)
        number_of = {c["id"]: c["name"] for c in content["categories"] if c["name"] in _ROAD}
        content = _first_images(content, sum(counts), number_of)
        frames = []
        for number, image in enumerate(content["images"]):
            own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            masked = number < counts[0]
            place = f"images/{'10k' if masked else '100k'}/{split}/{image['id']}.jpg"
            _resized(coco / "coco" / f"{split}2017" / image["file_name"], root / place)
            if masked:
                pixels = np.zeros((*bdd100k.SIZE, 4), np.uint8)
                for key, a in enumerate(own, start=1):
                    category = 1 + _ROAD.index(number_of[a["category_id"]])
                    pixels[_wide_mask(a, image)] = (category, 0, 0, key)
                path = root / "labels/ins_seg/bitmasks" / split / f"{image['id']}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
            else:
                across = (bdd100k.SIZE[1] / image["width"], bdd100k.SIZE[0] / image["height"])
                labels = []
                for a in own:
                    x, y, w, h = a["bbox"] * np.array([*across, *across])
                    category = bdd100k.CATEGORIES[_ROAD.index(number_of[a["category_id"]])]
                    box = {"x1": x, "y1": y, "x2": x + w, "y2": y + h}
                    labels.append({"id": str(a["id"]), "category": category, "box2d": box})
                frames.append({"name": f"{image['id']}.jpg", "labels": labels})
        if frames:
            write_json(root / "labels/det_20/det_train.json", frames)
    bdd100k.prepare(str(root), progress=False)


def _resized(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    height, width = bdd100k.SIZE
    Image.open(source).convert("RGB").resize((width, height)).save(target)


def _wide_mask(annotation: dict, image: dict) -> np.ndarray:
    """bool, of a COCO object in an image of BDD100K's size."""
    rle = mask_util.frPyObjects(annotation["segmentation"], image["height"], image["width"])
    mask = Image.fromarray(mask_util.decode(mask_util.merge(rle)))
    height, width = bdd100k.SIZE
    return np.asarray(mask.resize((width, height), Image.Resampling.NEAREST)) > 0


def write_voc12(sample: Path, folder: Path) -> None:
    """Eight training images and two of validation of a sample in VOC's layout; converted."""
    root = folder / "VOC2012"
    for split, count in (("train", 8), ("val", 2)):
        names = (sample / "ImageSets/Segmentation" / f"{split}.txt").read_text().split()
        path = root / "ImageSets/Segmentation" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in names[:count]))
    for name in ("JPEGImages", "SegmentationObject", "SegmentationClass"):
        (root / name).symlink_to((sample / name).resolve())
    voc.prepare(str(root), progress=False)


def write_visual_genome(coco: Path, folder: Path) -> int:
    """Boxes of COCO's images as Visual Genome has them; converted.

    Returns:
        The number of its categories.
    """
    root, split = folder / "visual_genome", "train"
    content = read_coco(coco, split)
    names = {c["id"]: c["name"] for c in content["categories"]}
    content = _first_images(content, 12, names)
    synsets = {
        key: visual_genome.COCO_SYNSETS.get(name, f"{name.replace(' ', '_')}.n.01")
        for key, name in names.items()
    }
    validation = read_coco(folder, "val")["images"]
    objects, images = [], []
    for number, image in enumerate(content["images"], start=1):
        url = f"https://cs.stanford.edu/people/rak248/VG_100K/{number}.jpg"
        # The last two are of COCO's val2017, and so are never trained on.
        last = number - (len(content["images"]) - len(validation))
        coco_id = validation[last - 1]["id"] if last > 0 else None
        sizes = {key: image[key] for key in ("width", "height")}
        images.append({"image_id": number, "url": url, "coco_id": coco_id, **sizes})
        things = []
        for a in content["annotations"]:
            if a["image_id"] == image["id"]:
                x, y, w, h = (round(value) for value in a["bbox"])
                thing = {"object_id": a["id"], "x": x, "y": y, "w": max(1, w), "h": max(1, h)}
                thing |= {"synsets": [synsets[a["category_id"]]], "merged_object_ids": []}
                things.append({**thing, "names": [names[a["category_id"]]]})
        # Of a category that COCO has not.
        ground = {"object_id": 10**9 + number, "x": 0, "y": 0, "w": image["width"], "h": 50}
        ground |= {"synsets": ["sky.n.01"], "merged_object_ids": [], "names": ["sky"]}
        things.append(ground)
        objects.append({"image_id": number, "image_url": url, "objects": things})
        picture = root / "VG_100K" / f"{number}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.symlink_to((coco / "coco" / f"{split}2017" / image["file_name"]).resolve())
    write_json(root / "objects.json", objects)
    write_json(root / "image_data.json", images)
    coco_json = folder / "coco/annotations/instances_val2017.json"
    found = {s for x in objects for thing in x["objects"] for s in thing["synsets"]}
    visual_genome.prepare(str(root), str(coco_json), len(found), progress=False)
    return len(found)
