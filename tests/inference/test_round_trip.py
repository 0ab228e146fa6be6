"""Photographs with masks for some categories: checked, learned from, labeled, opened, learned from.

As one who has boxes for many categories and masks for few goes through it, by commands alone.
"""

import json
from collections import Counter
from pathlib import Path

from psis_d2.cli import run_command

import pytest
from pycocotools.coco import COCO

NOTHING = ({"segmentation": None}, {"segmentation": []}, {})  # how exports spell "no mask"
FEW = [
    "SOLVER.IMS_PER_BATCH",
    "2",
    "INPUT.MIN_SIZE_TRAIN",
    "[160, 192]",
    "INPUT.MIN_SIZE_TEST",
    "192",
]
FEW += ["DATALOADER.NUM_WORKERS", "0", "SOLVER.WARMUP_ITERS", "2"]


def part_of(json_file: Path, images: int) -> dict:
    """One image with a crowd, the first others of a json, and what is in them."""
    content = json.loads(json_file.read_text())
    crowded = next(a["image_id"] for a in content["annotations"] if a["iscrowd"])
    content["images"].sort(key=lambda record: record["id"] != crowded)
    content["images"] = content["images"][:images]
    ids = {record["id"] for record in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    return content


def without_masks(content: dict, categories: set[int]) -> dict:
    """A copy in which objects of some categories have boxes alone."""
    annotations = []
    for i, annotation in enumerate(content["annotations"]):
        if annotation["category_id"] in categories and not annotation["iscrowd"]:
            rest = {k: v for k, v in annotation.items() if k not in ("segmentation", "area")}
            annotation = rest | NOTHING[i % len(NOTHING)]
        annotations.append(annotation | {"note": f"of another tool {i}"})
    return {**content, "annotations": annotations}


@pytest.mark.slow
@pytest.mark.usefixtures("catalogs")
def test_from_boxes_to_masks_and_back(coco_subset, labeling_tools, tmp_path, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    coco = coco_subset / "coco"
    images = {part: str(coco / f"{part}2017") for part in ("train", "val")}
    whole = {
        part: part_of(coco / "annotations" / f"instances_{part}2017.json", count)
        for part, count in (("train", 30), ("val", 20))
    }
    stripped = {category["id"] for category in whole["train"]["categories"][1::2]}
    boxes = without_masks(whole["train"], stripped)
    Path("train.json").write_text(json.dumps(boxes))
    Path("val.json").write_text(json.dumps(whole["val"]))
    given = ["--train-json", "train.json", "--train-images", images["train"]]
    val = ["--val-json", "val.json", "--val-images", images["val"]]

    assert run_command("check", [*given, *val, "--html", "check.html", "--json", "check.json"]) == 0
    assert Path("check.html").read_text().count("data:image") > 4

    line = ["--config-file", "light/agnostic", "--num-gpus", "0", *val, *FEW]
    train = ["SOLVER.MAX_ITER", "15", "OUTPUT_DIR"]
    assert run_command("train", [*line[:4], *given, *line[4:], *train, "first"]) == 0
    model = "first/model_final.pth"

    label = [model, "--device", "cpu", "--images", images["train"], "--boxes", "train.json"]
    assert run_command("autolabel", [*label, "--output", "rle.json"]) == 0
    assert run_command("autolabel", [*label, "--output", "polygons.json", "--polygons"]) == 0
    for name in ("rle", "polygons"):
        labeled = json.loads(Path(f"{name}.json").read_text())
        report = json.loads(Path(f"{name}.report.json").read_text())
        assert report["unreadable"] == []
        # Every object has a mask, or the report says why not; and all else is as it was.
        assert report["labeled"] + sum(report["left"].values()) == len(boxes["annotations"])
        new = 0
        for before, after in zip(boxes["annotations"], labeled["annotations"], strict=True):
            drawn = after.get("source") == "psis_d2"
            new += drawn
            changed = ("segmentation", "area", "score", "source") if drawn else ()
            assert before.keys() <= after.keys()
            assert {k: v for k, v in before.items() if k not in changed} == {
                k: v for k, v in after.items() if k not in changed
            }
            assert not drawn or before["category_id"] in stripped
        lacking = [
            a
            for a in labeled["annotations"]
            if not a.get("segmentation") and a["category_id"] in stripped and not a["iscrowd"]
        ]
        unexplained = Counter(report["left"])
        for reason in ("has a mask already", "is a crowd region"):
            unexplained.pop(reason, None)
        assert new == report["labeled"] > 0 and len(lacking) == unexplained.total()

    # pycocotools reads every mask; the importers of CVAT and Label Studio every one, too.
    counts = {"images": 30, "bbox": len(boxes["annotations"])}
    for name in ("rle", "polygons"):
        read = COCO(f"{name}.json")
        for annotation in filter(lambda a: a.get("segmentation"), read.anns.values()):
            record = read.imgs[annotation["image_id"]]
            mask = read.annToMask(annotation)
            assert mask.shape == (record["height"], record["width"])
            assert mask.any() or "source" not in annotation
        found = labeling_tools(f"{name}.json", images["train"])
        kinds = Counter(found["datumaro"])
        assert {key: kinds[key] for key in counts} == counts
        rles = sum(isinstance(a.get("segmentation"), dict) for a in read.anns.values())
        polygons = (a.get("segmentation") for a in read.anns.values())
        parts = sum(len(x) for x in polygons if isinstance(x, list))
        assert kinds["mask"] == rles and kinds["polygon"] == parts
    objects = sum(not a["iscrowd"] for a in boxes["annotations"])
    expected = {"images": 30, "rectanglelabels": objects, "polygonlabels": parts}
    assert found["label studio"] == expected

    again = ["--train-json", "rle.json", "--train-images", images["train"]]
    assert run_command("train", [*line[:4], *again, *line[4:], *train, "second"]) == 0
    results = json.loads(Path("second/results.json").read_text())
    assert {"bbox_all", "segm_all", "gtbox_all"} <= results.keys()
