"""VOC 2012's files, written here in their real layout, and what becomes of them."""

import json
from pathlib import Path

from psis_d2.cli import main
from psis_d2.data.catalog import get_dataset_dicts
from psis_d2.data.datasets.builtin import register_voc_masks
from psis_d2.data.datasets.voc import CATEGORIES, json_path, prepare
from psis_d2.errors import UserError

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from one_sentence import refusal
from PIL import Image
from pycocotools import mask as mask_util

HEIGHT, WIDTH = 60, 80
CAT, DOG = CATEGORIES.index("cat") + 1, CATEGORIES.index("dog") + 1


def maps(*objects):
    """SegmentationObject and SegmentationClass of objects (category, XYWH box), with a border."""
    instances, classes = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    for number, (category, (x, y, w, h)) in enumerate(objects, start=1):
        around = np.s_[max(y - 1, 0) : y + h + 1, max(x - 1, 0) : x + w + 1]
        instances[around] = classes[around] = 255
        instances[y : y + h, x : x + w] = number
        classes[y : y + h, x : x + w] = category
    return instances, classes


def save_map(path, values):
    """As VOC has it: one byte a pixel, with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values).convert("P")
    image.putdata(values.ravel().tolist())
    image.putpalette([channel * 7 % 256 for channel in range(768)])
    image.save(path)


def xml(*objects):
    """An xml of objects (name, xmin, ymin, xmax, ymax, difficult)."""
    things = "".join(
        f"<object><name>{name}</name><difficult>{int(difficult)}</difficult><bndbox>"
        f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>"
        # A part has a box of its own, which is no object.
        "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>"
        "</bndbox></part></object>"
        for name, x0, y0, x1, y1, difficult in objects
    )
    return f"<annotation><folder>VOC2012</folder>{things}</annotation>"


@pytest.fixture
def folder(tmp_path):
    """Two images with masks, one of them of validation, and one with boxes alone."""
    root = tmp_path / "VOC2012"
    lists = {
        "Segmentation/train": ["2007_000032"],
        "Segmentation/val": ["2007_000033"],
        "Main/trainval": ["2007_000032", "2007_000033", "2008_000007", "2008_000008"],
    }
    for name, names in lists.items():
        path = root / "ImageSets" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{x}\n" for x in names))
    for name in ("2007_000032", "2007_000033", "2008_000007"):
        path = root / "JPEGImages" / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    scenes = {
        "2007_000032": [(CAT, (10, 10, 20, 20)), (DOG, (40, 5, 10, 50))],
        "2007_000033": [(CAT, (0, 0, 5, 5))],
    }
    for name, objects in scenes.items():
        both = maps(*objects)
        for kind, values in zip(("SegmentationObject", "SegmentationClass"), both, strict=True):
            save_map(root / kind / f"{name}.png", values)
    boxes = {
        "2007_000032": [
            ("cat", 10, 10, 31, 31, False),
            ("dog", 41, 6, 50, 55, True),  # difficult, but has a mask
            ("dog", 60, 1, 70, 20, False),  # no mask
            ("cat", 60, 30, 70, 40, True),  # no mask, and difficult
        ],
        "2007_000033": [("cat", 1, 1, 5, 5, False)],
        "2008_000007": [("dog", 71, 51, 90, 70, False), ("cat", 100, 1, 110, 9, False)],
    }
    (root / "Annotations").mkdir()
    for name, objects in boxes.items():
        (root / "Annotations" / f"{name}.xml").write_text(xml(*objects))
    return root


def read(folder, name):
    return json.loads(Path(json_path(str(folder), name)).read_text())


def rows(content):
    return [
        (CATEGORIES[a["category_id"] - 1], a["bbox"], a["iscrowd"], "segmentation" in a)
        for a in content["annotations"]
    ]


def test_masks_and_boxes_of_the_segmentation_images(folder):
    counts = prepare(str(folder), progress=False)
    content = read(folder, "train")
    assert content["images"] == [
        {
            "id": 2007000032,
            "file_name": "JPEGImages/2007_000032.jpg",
            "height": HEIGHT,
            "width": WIDTH,
        }
    ]
    assert rows(content) == [
        ("cat", [10, 10, 20, 20], 0, True),
        ("dog", [40, 5, 10, 50], 0, True),
        ("dog", [59, 0, 11, 20], 0, False),
        ("cat", [59, 29, 11, 11], 1, False),
    ]
    mask = mask_util.decode(content["annotations"][0]["segmentation"])
    assert mask.sum() == content["annotations"][0]["area"] == 400 and mask[10, 10] == 1
    assert [c["name"] for c in content["categories"]] == list(CATEGORIES)
    assert counts["train"] == {"images": 1, "objects": 4, "objects with a box alone": 2}
    assert rows(read(folder, "val")) == [("cat", [0, 0, 5, 5], 0, True)]


def test_images_with_boxes_alone(folder, capsys):
    assert main(["prepare-voc", "--folder", str(folder), "--boxes"]) == 0
    content = read(folder, "train_boxes")
    assert [x["id"] for x in content["images"]] == [2007000032, 2008000007]
    # Cut at the border; the other lies outside.
    assert rows(content)[4:] == [("dog", [70, 50, 10, 10], 0, False)]
    line = capsys.readouterr().out.splitlines()[-1]
    assert "1 boxes outside of their image" in line and "1 images without a file" in line


def test_without_xml_there_are_masks_alone(folder):
    for path in (folder / "Annotations").glob("*"):
        path.unlink()
    (folder / "Annotations").rmdir()
    counts = prepare(str(folder), progress=False)
    assert len(rows(read(folder, "train"))) == 2 and counts["train"]["images without an xml"] == 1


def test_sbd(folder, tmp_path):
    io = pytest.importorskip("scipy.io")
    sbd = tmp_path / "sbd"
    (sbd / "inst").mkdir(parents=True)
    instances = np.zeros((HEIGHT, WIDTH), np.uint8)
    instances[5:15, 20:30] = 1
    content = {"Segmentation": instances, "Categories": np.array([[DOG], [CAT]], np.uint8)}
    for name in ("2007_000032", "2007_000033", "2008_000007", "2008_000009"):
        io.savemat(sbd / "inst" / f"{name}.mat", {"GTinst": content})
    counts = prepare(str(folder), sbd=str(sbd), progress=False)["train_sbd"]
    # What VOC has masks of stays VOC's; one of validation is left out.
    found = read(folder, "train_sbd")
    assert [x["id"] for x in found["images"]] == [2007000032, 2008000007]
    assert rows(found)[4:] == [("dog", [20, 5, 10, 10], 0, True)]
    assert counts["masks without a pixel"] == 1 and counts["images without a file"] == 1
    content["Categories"] = np.array([[99]], np.uint8)
    io.savemat(sbd / "inst" / "2008_000007.mat", {"GTinst": content})
    call = lambda: prepare(str(folder), sbd=str(sbd), progress=False)  # noqa: E731
    assert "does not fit its image of 80x60 pixels" in refusal(call)
    (sbd / "inst" / "2008_000007.mat").write_bytes(b"no")
    assert "is not SBD's" in refusal(call)
    assert "has no folder inst" in refusal(lambda: prepare(str(folder), sbd=str(tmp_path)))


def test_registered_data_sets(folder, catalogs):
    names = [f"voc12_masks_{split}" for split in ("train", "val", "train_boxes", "train_sbd")]
    for name in names:
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog:
                catalog.remove(name)
    register_voc_masks(str(folder.parent))
    with pytest.raises(UserError, match="make it with psis-d2 prepare-voc --boxes"):
        get_dataset_dicts(names[2])
    prepare(str(folder), boxes=True, progress=False)
    dicts = get_dataset_dicts(names[2])
    assert [sum("segmentation" in a for a in x["annotations"]) for x in dicts] == [2, 0]
    assert all(Path(x["file_name"]).is_file() for x in dicts)


def test_what_is_wrong_is_named(folder):
    def words():
        return refusal(lambda: prepare(str(folder), progress=False))

    xml_file = folder / "Annotations/2007_000033.xml"
    xml_file.write_text(xml(("kitten", 1, 1, 5, 5, False)))
    assert "has an object 'kitten', which is no category of VOC" in words()
    xml_file.write_text(xml(("cat", "", 1, 5, 5, False)))
    assert "an object without a bndbox of four numbers" in words()
    xml_file.write_text("<annotation>")
    assert "Cannot read" in words()
    instances, classes = maps((21, (0, 0, 5, 5)))
    save_map(folder / "SegmentationClass/2007_000033.png", classes)
    assert "has a category 21" in words()
    save_map(folder / "SegmentationObject/2007_000033.png", instances[:50])
    assert "is no map of the 80x60 pixels of its image" in words()
    Image.fromarray(np.stack([instances] * 3, axis=-1)).save(
        folder / "SegmentationObject/2007_000033.png"
    )
    assert "take VOC's own PNGs, which have a palette" in words()
    (folder / "ImageSets/Segmentation/val.txt").write_text("\n")
    assert "lists no images" in words()
    (folder / "ImageSets/Segmentation/val.txt").unlink()
    assert "unpack VOC 2012 into" in words()


def test_a_mask_that_is_all_border_has_no_category(folder):
    instances, classes = maps((CAT, (0, 0, 5, 5)))
    save_map(folder / "SegmentationClass/2007_000033.png", np.full_like(classes, 255))
    (folder / "Annotations/2007_000033.xml").write_text(xml())
    counts = prepare(str(folder), progress=False)["val"]
    assert counts["masks without a category"] == 1 and counts["objects"] == 0


def test_real_maps(coco_subset, tmp_path):
    """The masks of real images, as another program has read them from the same maps."""
    real = coco_subset / "voc2012"
    if not real.is_dir():
        pytest.skip("no sample of VOC 2012")
    source, root = real / "VOCdevkit/VOC2012", tmp_path / "VOC2012"
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for kind in ("JPEGImages", "SegmentationObject", "SegmentationClass"):
        (root / kind).symlink_to(source / kind)
    for split in ("train", "val"):
        names = (source / "ImageSets/Segmentation" / f"{split}.txt").read_text().split()[:20]
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(names))
    prepare(str(root), progress=False)
    for split in ("train", "val"):
        ours = read(root, split)
        theirs = json.loads((real / f"annotations/instances_voc2012_{split}_rle.json").read_text())
        names = {c["id"]: c["name"] for c in theirs["categories"]}
        of_ours = {(a["image_id"], a["segmentation"]["counts"]): a for a in ours["annotations"]}
        images = {x["id"] for x in ours["images"]}
        expected = [a for a in theirs["annotations"] if a["image_id"] in images]
        expected = [a for a in expected if not a["iscrowd"]]
        assert len(expected) > 20
        for annotation in expected:
            own = of_ours[annotation["image_id"], annotation["segmentation"]["counts"]]
            assert CATEGORIES[own["category_id"] - 1] == names[annotation["category_id"]]
