"""Visual Genome's files, written here in their real layout, and what becomes of them."""

import copy
import json
from pathlib import Path

from psis_d2.data.catalog import get_class_names, get_dataset_dicts
from psis_d2.data.datasets.builtin import register_visual_genome
from psis_d2.data.datasets.visual_genome import convert, json_path, map_coco_categories, prepare
from psis_d2.errors import UserError

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

URL = "https://cs.stanford.edu/people/rak248/"


def thing(key, box, *synsets, names=("thing",)):
    """An object as version 1.4 of objects.json has it."""
    x, y, w, h = box
    return {
        "synsets": list(synsets),
        "h": h,
        "object_id": key,
        "merged_object_ids": [],
        "names": list(names),
        "w": w,
        "y": y,
        "x": x,
    }


def image(key, coco_id=None, folder="VG_100K", width=100, height=80):
    """An image as image_data.json has it."""
    return {
        "width": width,
        "url": f"{URL}{folder}/{key}.jpg",
        "height": height,
        "image_id": key,
        "coco_id": coco_id,
        "flickr_id": None,
    }


IMAGES = [image(1), image(2, 139, "VG_100K_2"), image(7, 500), image(9)]
TREE, SHADE = "tree.n.01", "shade.n.01"
OBJECTS = [
    {
        "image_id": 1,
        "image_url": f"{URL}VG_100K/1.jpg",
        "objects": [
            thing(11, (0, 0, 50, 40), TREE, names=["tree"]),
            thing(12, (60, 10, 20, 20), TREE, names=["trees", "oak"]),  # an alias
            thing(13, (0, 0, 50, 40), TREE),  # drawn twice
            thing(14, (1, 0, 50, 40), TREE),  # nearly the same: IoU 1960 / 2040
            thing(15, (0, 0, 50, 40), SHADE),  # the same box, another class
            thing(16, (5, 5, 10, 10)),  # no synset
        ],
    },
    {
        "image_id": 2,
        "image_url": "",
        "objects": [
            thing(21, (90, 70, 30, 30), SHADE),  # reaches out of the image
            thing(22, (100, 10, 5, 5), SHADE),  # lies outside
            thing(23, (10, 10, 5, 5), SHADE, TREE),  # two synsets
        ],
    },
    {
        "image_id": 7,
        "image_url": "",
        "objects": [
            thing(71, (3, 4, 5, 6), "zebra.n.01"),
            thing(72, (3, 4, 5, 6), "apple.n.01"),
            thing(73, (-5, -5, 15, 10), TREE),
        ],
    },
    {"image_id": 9, "image_url": "", "objects": []},
]


def boxes_of(content, image_id):
    """(synset, box) of an image's annotations, in order."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    return [
        (names[a["category_id"]], a["bbox"])
        for a in content["annotations"]
        if a["image_id"] == image_id
    ]


def test_categories_are_the_most_frequent_synsets_ties_by_name():
    # Counts: tree 4 + 1 + 1 = 6, shade 1 + 2 + 1 = 4, apple 1, zebra 1.
    contents, _ = convert(OBJECTS, IMAGES, {139}, num_classes=3)
    expected = [(1, TREE), (2, SHADE), (3, "apple.n.01")]
    for content in contents.values():
        assert [(c["id"], c["name"]) for c in content["categories"]] == expected


def test_every_object_is_kept_or_counted():
    contents, counts = convert(OBJECTS, IMAGES, {139}, num_classes=3)
    assert boxes_of(contents["train"], 1) == [
        (TREE, [0, 0, 50, 40]),
        (TREE, [60, 10, 20, 20]),
        (SHADE, [0, 0, 50, 40]),
    ]
    assert boxes_of(contents["train"], 7) == [("apple.n.01", [3, 4, 5, 6]), (TREE, [0, 0, 10, 5])]
    assert boxes_of(contents["val"], 2) == [(SHADE, [90, 70, 10, 10])]
    assert counts["train"] == {
        "images": 3,
        "boxes": 5,
        "drawn twice": 2,
        "without a synset": 1,
        "of rarer synsets": 1,
    }
    assert counts["val"] == {
        "images": 1,
        "boxes": 1,
        "without a pixel of the image": 1,
        "with several synsets": 1,
    }


def test_the_first_of_several_synsets_on_demand():
    contents, _ = convert(OBJECTS, IMAGES, {139}, num_classes=3, several_synsets="first")
    assert (SHADE, [10, 10, 5, 5]) in boxes_of(contents["val"], 2)


def test_images_of_coco_val_are_not_trained_on():
    contents, _ = convert(OBJECTS, IMAGES, {139, 500}, num_classes=3)
    files = {s: [i["file_name"] for i in contents[s]["images"]] for s in ("train", "val")}
    assert files == {
        "train": ["VG_100K/1.jpg", "VG_100K/9.jpg"],
        "val": ["VG_100K_2/2.jpg", "VG_100K/7.jpg"],
    }
    trained = {a["image_id"] for a in contents["train"]["annotations"]}
    assert trained == {1}


def test_images_are_found_in_the_other_folder_or_left_out():
    there = {"VG_100K_2/1.jpg", "VG_100K_2/2.jpg", "VG_100K/7.jpg"}
    contents, counts = convert(
        OBJECTS, IMAGES, {139}, num_classes=3, is_file=lambda name: name in there
    )
    files = [i["file_name"] for i in contents["train"]["images"]]
    assert files == ["VG_100K_2/1.jpg", "VG_100K/7.jpg"]
    assert counts["train"]["images without a file"] == 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda o, i: o[0].pop("objects"), "without an image_id and a list of objects"),
        (lambda o, i: o[0]["objects"][0].pop("synsets"), "Image 1 .* without a list of synsets"),
        (lambda o, i: o[0]["objects"][1].pop("w"), "Object 12 of image 1 .* no box"),
        (lambda o, i: o[0]["objects"][1].update(x="3"), "Object 12 of image 1 .* no box"),
        (lambda o, i: o.append(o[0]), "lists image 1 twice"),
        (lambda o, i: i.pop(0), "image 1, which image_data.json does not list"),
        (lambda o, i: i[0].pop("width"), "positive image_id, width and height"),
        (lambda o, i: i[0].pop("url"), "Image 1 in image_data.json has no url"),
    ],
)
def test_bad_entries_are_named(spoil, words):
    objects, images = copy.deepcopy(OBJECTS), copy.deepcopy(IMAGES)
    spoil(objects, images)
    with pytest.raises(UserError, match=words):
        convert(objects, images, {139}, num_classes=3)


def test_more_classes_than_synsets_are_refused():
    with pytest.raises(UserError, match="5 classes .* 4 synsets"):
        convert(OBJECTS, IMAGES, set(), num_classes=5)


def test_coco_categories_find_the_most_frequent_synset_of_their_name():
    class_names = ["kite.n.03", "traffic_light.n.01", "kite.n.01", "sofa.n.01", "plant.n.02"]
    names = ["kite", "traffic light", "couch", "potted plant", "toaster"]
    assert map_coco_categories(names, class_names) == {
        "kite": "kite.n.03",
        "traffic light": "traffic_light.n.01",
        "couch": "sofa.n.01",
        "potted plant": None,  # its synset is plant.n.01
        "toaster": None,
    }


# ------------------------------------------------------------------------------------- on disk


@pytest.fixture
def folder(tmp_path):
    """Visual Genome's folder, and COCO's val json beside it."""
    root = tmp_path / "visual_genome"
    for entry in IMAGES:
        file = root / Path(entry["url"]).parent.name / Path(entry["url"]).name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    (root / "objects.json").write_text(json.dumps(OBJECTS))
    (root / "image_data.json").write_text(json.dumps(IMAGES))
    coco = {"images": [{"id": 139}], "categories": [{"id": 1, "name": "tree"}], "annotations": []}
    (tmp_path / "val.json").write_text(json.dumps(coco))
    return root


@pytest.fixture
def unregistered():
    """The names of Visual Genome are free during the test."""
    taken = [
        (catalog, name, catalog.pop(name))
        for catalog in (DatasetCatalog, MetadataCatalog)
        for name in ("vg_train", "vg_val")
    ]
    yield
    for catalog, name, entry in taken:
        catalog[name] = entry


def test_the_prepared_files_are_the_registered_data_sets(folder, tmp_path, unregistered):
    prepare(str(folder), str(tmp_path / "val.json"), num_classes=3, progress=False)
    register_visual_genome(str(tmp_path))
    assert get_class_names("vg_train") == [TREE, SHADE, "apple.n.01"]
    dicts = get_dataset_dicts("vg_train")
    assert [record["image_id"] for record in dicts] == [1, 7, 9]
    assert [len(record["annotations"]) for record in dicts] == [3, 2, 0]
    assert dicts[0]["file_name"] == str(folder / "VG_100K" / "1.jpg")
    assert not any("segmentation" in a for record in dicts for a in record["annotations"])
    assert json.loads((folder / "annotations" / "coco_categories.json").read_text()) == {
        "tree": TREE
    }
    assert not list(folder.rglob("*.part"))


def test_bad_files_are_named_and_nothing_is_written(folder, tmp_path):
    val = str(tmp_path / "val.json")
    good = (folder / "objects.json").read_text()
    for text, words in ((good[:-20], "cut off"), ('{"a": 1}', "must hold a list")):
        (folder / "objects.json").write_text(text)
        with pytest.raises(UserError, match=words):
            prepare(str(folder), val, num_classes=3, progress=False)
    (folder / "objects.json").unlink()
    with pytest.raises(UserError, match=r"objects\.json \(No such file"):
        prepare(str(folder), val, num_classes=3, progress=False)
    (folder / "objects.json").write_text(good)
    (tmp_path / "val.json").write_text("[]")
    with pytest.raises(UserError, match="not in COCO format"):
        prepare(str(folder), val, num_classes=3, progress=False)
    assert not (folder / "annotations").exists()


def test_without_images_or_preparation_the_mend_is_said(folder, tmp_path, unregistered):
    for name in ("VG_100K", "VG_100K_2"):
        (folder / name).rename(folder / f"not_{name}")
    with pytest.raises(UserError, match="VG_100K, VG_100K_2"):
        prepare(str(folder), str(tmp_path / "val.json"), num_classes=3, progress=False)
    register_visual_genome(str(tmp_path))
    assert not Path(json_path(str(folder), "train")).exists()
    with pytest.raises(UserError, match="psis-d2 prepare-visual-genome"):
        get_dataset_dicts("vg_train")
