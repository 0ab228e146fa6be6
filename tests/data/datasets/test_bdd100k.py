"""BDD100K's files, written here in their real layout, and what becomes of them."""

import json
from pathlib import Path

from psis_d2.cli import main
from psis_d2.data.catalog import get_class_names, get_dataset_dicts
from psis_d2.data.datasets import bdd100k
from psis_d2.data.datasets.bdd100k import CATEGORIES, json_path, polygon, prepare
from psis_d2.data.datasets.builtin import register_bdd100k
from psis_d2.errors import UserError

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from matplotlib.path import Path as Outline
from one_sentence import refusal
from PIL import Image
from pycocotools import mask as mask_util

HEIGHT, WIDTH = bdd100k.SIZE
CAR, RIDER = CATEGORIES.index("car") + 1, CATEGORIES.index("rider") + 1


def bitmask(*objects):
    """Pixels of objects (category, flags, number, XYWH box)."""
    pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    for category, flags, number, (x, y, w, h) in objects:
        pixels[y : y + h, x : x + w] = [category, flags, number >> 8, number & 255]
    return pixels


def label(category, box=None, **extra):
    """A label as the jsons of 2020 have it."""
    found = {"id": "1", "category": category, "attributes": {"occluded": False}, "box2d": None}
    if box is not None:
        x, y, w, h = box
        found["box2d"] = {"x1": x, "y1": y, "x2": x + w, "y2": y + h}
    return found | extra


def poly2d(*points, types=""):
    return [{"vertices": list(points), "types": types or "L" * len(points), "closed": True}]


@pytest.fixture
def folder(tmp_path):
    """A folder with two training images and one of validation, and boxes for four more."""
    root = tmp_path / "bdd100k"
    bitmasks = {
        "train/a": bitmask(
            (CAR, 4, 1, (10, 20, 30, 40)),
            (CAR, 0, 300, (100, 20, 30, 40)),  # a number of two bytes
            (RIDER, 2, 3, (200, 20, 30, 40)),  # a crowd
            (RIDER, 1, 4, (300, 20, 30, 40)),  # ignored
        ),
        "train/b": bitmask(),  # nothing in it
        "val/c": bitmask((CAR, 8, 1, (0, 0, 1, 1))),
    }
    for name, pixels in bitmasks.items():
        path = root / "labels/ins_seg/bitmasks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        picture(root / "images/10k" / f"{name}.jpg")
    frames = [
        {"name": "a.jpg", "labels": [label("car", (1, 1, 5, 5))]},  # has masks
        {"name": "c.jpg", "labels": [label("car", (1, 1, 5, 5))]},  # of validation
        {"name": "d.jpg", "labels": None},
        {"name": "gone.jpg", "labels": []},
        {
            "name": "e.jpg",
            "labels": [
                label("person", (10, 10, 20, 30)),  # as spelled in 2018
                label("traffic light", (10, 10, 20, 30)),
                label("other vehicle", (50, 10, 20, 30)),
                label("bus", (1270, 700, 50, 50), attributes={"crowd": True}),
                label("truck", (1300, 0, 5, 5)),  # outside
                label("lane", poly2d=poly2d((0, 0), (5, 5))),
            ],
        },
        {"name": "f.jpg", "labels": []},
    ]
    write(root / "labels/det_20/det_train.json", frames)
    for name in "acdef":
        picture(root / "images/100k/train" / f"{name}.jpg")
    return root


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def read(folder, name):
    return json.loads(Path(json_path(str(folder), name)).read_text())


def of_image(content, file_name):
    (image,) = (x for x in content["images"] if x["file_name"] == file_name)
    return [a for a in content["annotations"] if a["image_id"] == image["id"]]


def test_bitmasks(folder):
    counts = prepare(str(folder), boxes=False, progress=False)
    content = read(folder, "train")
    assert [c["name"] for c in content["categories"]] == list(CATEGORIES)
    assert [x["file_name"] for x in content["images"]] == [
        "images/10k/train/a.jpg",
        "images/10k/train/b.jpg",
    ]
    found = of_image(content, "images/10k/train/a.jpg")
    assert [(a["category_id"], a["bbox"], a["iscrowd"]) for a in found] == [
        (RIDER, [200, 20, 30, 40], 1),
        (RIDER, [300, 20, 30, 40], 1),
        (CAR, [10, 20, 30, 40], 0),
        (CAR, [100, 20, 30, 40], 0),
    ]
    for a in found:
        assert a["area"] == mask_util.area(a["segmentation"]) == 1200
    assert [a["id"] for a in content["annotations"]] == [1, 2, 3, 4]
    (pixel,) = read(folder, "val")["annotations"]
    assert pixel["bbox"] == [0, 0, 1, 1]
    assert counts["train"] == {"images": 2, "objects": 4, "crowds and ignored objects": 2}
    assert not Path(json_path(str(folder), "train_boxes")).exists()


def test_boxes_join_the_masks(folder, capsys):
    assert main(["prepare-bdd100k", "--folder", str(folder)]) == 0
    content, masked = read(folder, "train_boxes"), read(folder, "train")
    assert content["images"][:2] == masked["images"]
    assert content["annotations"][:4] == masked["annotations"]
    assert [x["file_name"] for x in content["images"][2:]] == [
        "images/100k/train/e.jpg",
        "images/100k/train/f.jpg",
    ]
    found = of_image(content, "images/100k/train/e.jpg")
    names = [CATEGORIES[a["category_id"] - 1] for a in found]
    assert list(zip(names, (a["bbox"] for a in found), strict=True)) == [
        ("pedestrian", [10, 10, 20, 30]),
        ("car", [50, 10, 20, 30]),
        ("bus", [1270, 700, 10, 20]),
    ]
    assert [a["iscrowd"] for a in found] == [0, 1, 1]
    assert not any("segmentation" in a for a in found)
    assert [a["id"] for a in content["annotations"]] == list(range(1, 8))
    line = capsys.readouterr().out.splitlines()[-1]
    for words in (
        "1 box labels of images with masks",
        "1 images of validation",
        "1 images that were not labeled",
        "1 images without a file",
        "2 images with boxes alone",
        "1 labels of other categories (traffic light)",
        "1 labels of other categories (lane)",
        "1 labels without a box in the image",
        "4 images",
        "7 objects",
    ):
        assert words in line


def test_the_labels_of_2018_are_found(folder):
    old = folder / "labels/det_20/det_train.json"
    old.rename(folder / "labels/bdd100k_labels_images_train.json")
    prepare(str(folder), progress=False)
    assert len(read(folder, "train_boxes")["images"]) == 4
    (folder / "labels/bdd100k_labels_images_train.json").unlink()
    words = refusal(lambda: prepare(str(folder), progress=False))
    assert "has no detection labels" in words and "--no-boxes" in words


@pytest.fixture
def frames(folder):
    """The same masks as polygons; a broken one, and an RLE."""
    square = [(10, 20), (40, 20), (40, 60), (10, 60)]
    rle = mask_util.encode(np.asfortranarray(bitmask((1, 0, 1, (5, 6, 7, 8)))[..., 0]))
    labels = [
        label("car", poly2d=poly2d(*square)),
        label("car", (1, 2, 3, 4), poly2d=poly2d((0, 0), (5, 5))),  # a line: the box stays
        label("train", poly2d=[]),  # neither mask nor box
        label("person", rle={"size": rle["size"], "counts": rle["counts"].decode()}),
        label("trailer", poly2d=poly2d(*square)),  # ignored, as a truck
    ]
    path = folder / "labels/ins_seg/polygons"
    write(path / "ins_seg_train.json", {"frames": [{"name": "a.jpg", "labels": labels}]})
    write(path / "ins_seg_val.json", [{"name": "c.jpg", "labels": None}])
    return folder


def test_polygons_and_rles(frames):
    counts = prepare(str(frames), "polygons", boxes=False, progress=False)["train"]
    found = read(frames, "train")["annotations"]
    assert [(CATEGORIES[a["category_id"] - 1], a["bbox"], a["iscrowd"]) for a in found] == [
        ("car", [10, 20, 30, 40], 0),
        ("car", [1, 2, 3, 4], 0),
        ("pedestrian", [5, 6, 7, 8], 0),
        ("truck", [10, 20, 30, 40], 1),
    ]
    assert ["segmentation" in a for a in found] == [True, False, True, True]
    assert counts["objects without a usable mask"] == 2
    assert read(frames, "val")["annotations"] == []


def test_a_curve_by_hand():
    """From (0, 0) to (8, 0) with control points (0, 8) and (8, 8): its middle is at (4, 6)."""
    ends = {"vertices": [[0, 0], [0, 8], [8, 8], [8, 0]], "types": "LCCL"}
    points = np.array(polygon(ends)).reshape(-1, 2)
    assert points[0].tolist() == [0, 0] and points[-1].tolist() == [8, 0] and len(points) == 9
    assert points[4].tolist() == [4, 6]
    # The last end may be the first vertex.
    back = {"vertices": [[8, 0], [0, 0], [0, 8], [8, 8]], "types": "LLCC"}
    points = np.array(polygon(back)).reshape(-1, 2)
    assert points[1].tolist() == [0, 0] and points[5].tolist() == [4, 6] and len(points) == 9
    plain = {"vertices": [[0, 0], [1, 2]]}
    assert polygon(plain) == [0, 0, 1, 2] and polygon({}) == []
    assert polygon({"vertices": [[1, 2], [3, 4]], "types": "CL"}) == [1, 2, 3, 4]


def test_curves_are_those_of_matplotlib():
    """Whose paths the official converter draws: three vertices a curve, the last its end."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        types = "L" + "".join(rng.choice(["L", "CCL"], 6))
        vertices = rng.uniform(0, 100, (len(types), 2))
        codes, place = [Outline.MOVETO], 1
        while place < len(types):
            curve = types[place] == "C"
            codes += [Outline.CURVE4] * 3 if curve else [Outline.LINETO]
            place += 3 if curve else 1
        theirs = Outline(vertices, codes)
        ours = Outline(
            np.array(polygon({"vertices": vertices.tolist(), "types": types})).reshape(-1, 2)
        )
        points = rng.uniform(0, 100, (400, 2))
        same = theirs.contains_points(points) == ours.contains_points(points)
        assert same.mean() > 0.97  # lines in place of curves


def test_registered_data_sets(folder, catalogs, monkeypatch):
    names = [f"bdd100k_{split}" for split in ("train", "val", "train_boxes")]
    for name in names:
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog:
                catalog.remove(name)
    register_bdd100k(str(folder.parent))
    with pytest.raises(UserError, match="make it with psis-d2 prepare-bdd100k"):
        get_dataset_dicts(names[0])
    prepare(str(folder), progress=False)
    assert get_class_names(names[2]) == list(CATEGORIES)
    dicts = get_dataset_dicts(names[2])
    masked = [sum("segmentation" in a for a in record["annotations"]) for record in dicts]
    assert masked == [4, 0, 0, 0] and len(dicts[2]["annotations"]) == 3
    assert all(Path(record["file_name"]).is_file() for record in dicts)


def test_what_is_wrong_is_named(folder):
    path = folder / "labels/ins_seg/bitmasks/train/a.png"

    def words():
        return refusal(lambda: prepare(str(folder), boxes=False, progress=False))

    Image.fromarray(bitmask((9, 0, 1, (0, 0, 5, 5)))).save(path)
    assert "has a category 9, but those of objects are 1 to 8" in words()
    Image.fromarray(bitmask()[..., 0]).save(path)
    assert "is no bitmask: it must have 1280x720 pixels of four bytes" in words()
    path.write_bytes(b"no png")
    assert "Cannot read" in words()
    for split in ("train", "val"):
        for file in (folder / "labels/ins_seg/bitmasks" / split).glob("*"):
            file.unlink()
    assert "has no images" in words()
    assert "none of labels/ins_seg/bitmasks" in refusal(lambda: prepare(str(folder / "no")))


def test_frames_that_are_none(frames):
    path = frames / "labels/ins_seg/polygons/ins_seg_train.json"
    for content, words in (
        ({"images": []}, "it must hold a list of frames with names"),
        ([{"labels": []}], "it must hold a list of frames with names"),
        (
            [{"name": "a.jpg", "labels": [label("car", box2d={"x1": None}, poly2d=[])]}],
            "has no box of four numbers",
        ),
    ):
        write(path, content)
        assert words in refusal(
            lambda: prepare(str(frames), "polygons", boxes=False, progress=False)
        )


@pytest.fixture
def samples(coco_subset):
    folder = coco_subset / "layout_samples" / "bdd100k"
    if not folder.is_dir():
        pytest.skip("no samples of BDD100K's files")
    return folder


def test_real_polygons_cover_the_real_bitmask(samples, tmp_path):
    """One frame in both forms: every object is found, with the same pixels but for its border."""
    root = tmp_path / "bdd100k"
    (frame,) = json.loads((samples / "example_annotation.json").read_text())
    masks = root / "labels/ins_seg/bitmasks/train" / f"{frame['name'][:-4]}.png"
    for split in ("train", "val"):
        picture(root / "images/10k" / split / frame["name"])
        write(root / f"labels/ins_seg/polygons/ins_seg_{split}.json", [frame])
        target = Path(str(masks).replace("/train/", f"/{split}/"))
        target.parent.mkdir(parents=True, exist_ok=True)
        real = samples / "bitmasks/quasi-video/insseg_bitmask.png"
        target.write_bytes(real.read_bytes())
    found = {}
    for kind in ("bitmasks", "polygons"):
        prepare(str(root), kind, boxes=False, progress=False)
        found[kind] = read(root, "train")["annotations"]
    assert len(found["bitmasks"]) == len(found["polygons"]) == 4
    rles = [[a["segmentation"] for a in found[kind]] for kind in ("bitmasks", "polygons")]
    ious = mask_util.iou(*rles, [0] * 4)
    assert sorted(ious.argmax(axis=1).tolist()) == [0, 1, 2, 3]
    assert ious.max(axis=1).min() > 0.9


def test_real_rles(samples, tmp_path):
    root = tmp_path / "bdd100k"
    content = json.loads((samples / "scalabel/ins_seg_rle_sample.json").read_text())
    (frame,) = content["frames"]
    for split in ("train", "val"):
        write(root / f"labels/ins_seg/rles/ins_seg_{split}.json", content)
        picture(root / "images/10k" / split / frame["name"])
    prepare(str(root), boxes=False, progress=False)
    found = read(root, "train")["annotations"]
    assert len(found) == len(frame["labels"]) == 8
    for annotation, real in zip(found, frame["labels"], strict=True):
        assert CATEGORIES[annotation["category_id"] - 1] == real["category"]
        if real["rle"]:
            assert annotation["segmentation"]["counts"] == real["rle"]["counts"]
