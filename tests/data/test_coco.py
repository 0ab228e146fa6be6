import json
import logging
from array import array
from pathlib import Path

import psis_d2  # noqa: F401  (before detectron2)
from psis_d2.data.coco import load_categories, load_coco, match_annotations, register_coco_json
from psis_d2.errors import UserError

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

IMAGES = [
    {"id": 9, "file_name": "b.png", "height": 10, "width": 20},
    {"id": 2, "file_name": "sub/a.png", "height": 30, "width": 40},
]
TRIANGLE = [1, 1, 5, 1, 3, 4]

pytestmark = pytest.mark.usefixtures("catalogs")


def annotation(key=1, **changes):
    """One annotation; a change to ``...`` leaves the key out."""
    base = {"id": key, "image_id": 9, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 0}
    return {k: v for k, v in {**base, **changes}.items() if v is not ...}


def test_dicts_are_detectron2s_standard_with_the_annotation_id(write_json):
    json_file, folder = write_json(
        IMAGES,
        [
            annotation(50, segmentation=[TRIANGLE], area=6, attributes={"occluded": True}),
            annotation(4, image_id=2, category_id=7, bbox=[0, 0, 2.5, 1], iscrowd=1),
            annotation(5, category_id=1, iscrowd=...),
        ],
    )
    assert load_coco(json_file, folder, "toy") == [
        {
            "file_name": f"{folder}/sub/a.png",
            "height": 30,
            "width": 40,
            "image_id": 2,
            "annotations": [
                {
                    "id": 4,
                    "bbox": [0.0, 0.0, 2.5, 1.0],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": 2,
                    "iscrowd": 1,
                }
            ],
        },
        {
            "file_name": f"{folder}/b.png",
            "height": 10,
            "width": 20,
            "image_id": 9,
            "annotations": [
                {
                    "id": 50,
                    "bbox": [1.0, 2.0, 3.0, 4.0],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": 1,
                    "iscrowd": 0,
                    "segmentation": [array("d", TRIANGLE)],
                    "area": 6.0,
                },
                {
                    "id": 5,
                    "bbox": [1.0, 2.0, 3.0, 4.0],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": 0,
                    "iscrowd": 0,
                },
            ],
        },
    ]
    metadata = MetadataCatalog.get("toy")
    assert metadata.thing_classes == ["dog", "cat", "bird"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 3: 1, 7: 2}


@pytest.mark.parametrize("segmentation", [..., None, [], [[1, 1, 4, 4]], [1, 1, 3, 3], {}])
def test_every_spelling_of_no_mask_keeps_the_box(write_json, segmentation):
    json_file, folder = write_json(IMAGES, [annotation(segmentation=segmentation)])
    (entry,) = load_coco(json_file, folder, "toy")[1]["annotations"]
    assert entry["bbox"] == [1, 2, 3, 4] and "segmentation" not in entry


def test_box_only_image(write_json):
    images = [IMAGES[0], {**IMAGES[1], "box_only": True}]
    both = [annotation(i, image_id=i, segmentation=[TRIANGLE]) for i in (2, 9)]
    flagged, other = load_coco(*write_json(images, both), "toy")
    assert "segmentation" not in flagged["annotations"][0] and "box_only" not in flagged
    assert "segmentation" in other["annotations"][0]


def test_flat_boxes_are_left_out_and_counted(write_json, caplog):
    boxes = [[1, 2, 0, 4], [1, 2, 3, 0], [1, 2, -1, 4], [1, 2, 3, 4]]
    json_file, folder = write_json(IMAGES, [annotation(i, bbox=b) for i, b in enumerate(boxes)])
    with caplog.at_level(logging.WARNING, logger="psis_d2"):
        dicts = load_coco(json_file, folder, "toy")
    assert [entry["id"] for entry in dicts[1]["annotations"]] == [3]
    assert "3 annotations have a box of zero width or height" in caplog.text


def test_ignored_regions_are_crowd(write_json):
    json_file, folder = write_json(IMAGES, [annotation(ignore=1), annotation(2, ignore=0)])
    assert [a["iscrowd"] for a in load_coco(json_file, folder, "toy")[1]["annotations"]] == [1, 0]


def test_json_with_byte_order_mark(write_json):
    json_file, folder = write_json(IMAGES, [annotation()])
    with open(json_file, encoding="utf-8") as file:
        text = file.read()
    with open(json_file, "w", encoding="utf-8-sig") as file:
        file.write(text)
    assert len(load_coco(json_file, folder, "toy")) == 2


def test_ids_may_repeat_in_the_published_minival_files(write_json):
    twice = [annotation(1), annotation(1, image_id=2)]
    paths = write_json(IMAGES, twice, file_name="instances_minival2014.json")
    assert [len(r["annotations"]) for r in load_coco(*paths, "toy")] == [1, 1]


ANNOTATION_ERRORS = {
    "unknown image": (
        annotation(77, image_id=5),
        "Annotation 77 in .*instances.json belongs to image id 5",
    ),
    "no image": (annotation(77, image_id=...), "Annotation 77 .* belongs to image id None"),
    "unknown category": (annotation(77, category_id=2), "Annotation 77 .* has category id 2"),
    "category in text": (annotation(77, category_id="3"), "Annotation 77 .* category id '3'"),
    "category as list": (annotation(77, category_id=[3]), r"Annotation 77 .* category id \[3\]"),
    "same id": (annotation(1), "two annotations with id 1"),
    "id as list": (annotation([2]), r"Annotation number 2 .* the id \[2\], which is neither"),
    "id as flag": (annotation(True), "Annotation number 2 .* the id True, which is neither"),
    "no box": (annotation(77, bbox=...), "Annotation 77 .* has no usable bbox"),
    "null box": (annotation(77, bbox=None), "Annotation 77 .* has no usable bbox"),
    "three numbers": (annotation(77, bbox=[1, 2, 3]), "Annotation 77 .* four finite numbers"),
    "text in box": (annotation(77, bbox=[1, 2, 3, "4"]), "Annotation 77 .* no usable bbox"),
    "nan in box": (annotation(77, bbox=[1, 2, 3, float("nan")]), "77 .* no usable bbox"),
    "infinite box": (annotation(77, bbox=[1, 2, float("inf"), 4]), "77 .* no usable bbox"),
    "gigantic number": (annotation(77, bbox=[1, 2, 10**400, 4]), "77 .* no usable bbox"),
}


@pytest.mark.parametrize("case", ANNOTATION_ERRORS)
def test_annotation_errors(write_json, case):
    bad, message = ANNOTATION_ERRORS[case]
    json_file, folder = write_json(IMAGES, [annotation(1), bad])
    with pytest.raises(UserError, match=message) as caught:
        load_coco(json_file, folder, "toy")
    assert json_file in str(caught.value) and "\n" not in str(caught.value)


def without(key):
    return {k: v for k, v in IMAGES[0].items() if k != key}


IMAGE_ERRORS = {
    "no height": (without("height"), r"Image b.png \(id 9\) in .* no usable height and width"),
    "null width": ({**IMAGES[0], "width": None}, r"Image b.png .*found 10 and None"),
    "zero width": ({**IMAGES[0], "width": 0}, r"Image b.png .* no usable height and width"),
    "infinite": ({**IMAGES[0], "width": float("inf")}, "Image b.png .* no usable height"),
    "same id": ({**IMAGES[0], "id": 2}, "lists image id 2 twice"),
    "no file name": (without("file_name"), "an image without id and file_name: .*9"),
    "no id": (without("id"), "an image without id and file_name: .*b.png"),
}


@pytest.mark.parametrize("case", IMAGE_ERRORS)
def test_image_errors(write_json, case):
    bad, message = IMAGE_ERRORS[case]
    json_file, folder = write_json([IMAGES[1], bad], [])
    with pytest.raises(UserError, match=message):
        load_coco(json_file, folder, "toy")


CATEGORY_ERRORS = {
    "none": ([], "lists no categories"),
    "same id": ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "two categories with id 1"),
    "same name": ([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "the name 'a'"),
    "no name": ([{"id": 1}], "a category without an id and a name"),
}


@pytest.mark.parametrize("case", CATEGORY_ERRORS)
def test_category_errors(write_json, case):
    categories, message = CATEGORY_ERRORS[case]
    json_file, folder = write_json(IMAGES, [], categories)
    with pytest.raises(UserError, match=message):
        load_coco(json_file, folder, "toy")


CONTENT_ERRORS = {
    "cut off": ('{"images": [', "instances.json is not valid JSON: .*may be cut off"),
    "a list": ("[]", "instances.json is not in COCO format: it must hold an object"),
    "no images": ('{"annotations": [], "categories": []}', "a list of objects named images"),
    "thousands of digits": ('{"images": [' + "9" * 5000, "is not valid JSON"),
    "brackets in brackets": ("[" * 100_000, "is not valid JSON"),
    "wrong types": (
        '{"images": {}, "annotations": [1], "categories": []}',
        "named images and annotations",
    ),
}


def test_a_list_of_images_has_no_annotations(write_json):
    json_file, folder = write_json(IMAGES, [])
    content = json.loads(Path(json_file).read_text())
    del content["annotations"]
    Path(json_file).write_text(json.dumps(content))
    dicts = load_coco(json_file, folder, "toy")
    assert [record["image_id"] for record in dicts] == [2, 9]
    assert not any(record["annotations"] for record in dicts)


def test_what_images_of_lvis_were_searched_for(write_json):
    images = [dict(IMAGES[0], neg_category_ids=[7, 99], not_exhaustive_category_ids=[1]), IMAGES[1]]
    plain, searched = load_coco(*write_json(images, []), "toy")
    assert searched["neg_category_ids"] == [2] and searched["not_exhaustive_category_ids"] == [0]
    assert "neg_category_ids" not in plain


@pytest.mark.parametrize("area", [0, -3.0, True, None, "12", float("inf"), float("nan")])
def test_an_area_that_is_none_is_left_out(write_json, area):
    json_file, folder = write_json(IMAGES, [annotation(1, area=area), annotation(2, area=2.5)])
    first, second = load_coco(json_file, folder, "toy")[1]["annotations"]
    assert "area" not in first and second["area"] == 2.5


@pytest.mark.parametrize("case", CONTENT_ERRORS)
def test_content_errors(tmp_path, case):
    text, message = CONTENT_ERRORS[case]
    path = tmp_path / "instances.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_coco(str(path), str(tmp_path), "toy")


def test_json_that_is_no_text(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match="Cannot read the annotation file .*a.json"):
        load_coco(str(path), str(tmp_path), "toy")


def test_missing_paths(write_json, tmp_path):
    json_file, folder = write_json(IMAGES, [])
    with pytest.raises(UserError, match="annotation file .*nowhere.json does not exist"):
        load_coco(str(tmp_path / "nowhere.json"), folder, "toy")
    with pytest.raises(UserError, match="image folder .*nowhere of data set 'toy' does not exist"):
        load_coco(json_file, str(tmp_path / "nowhere"), "toy")


def test_known_categories_are_respected(write_json):
    MetadataCatalog.get("toy").set(
        thing_classes=["bird", "cat", "dog", "fish"],
        thing_dataset_id_to_contiguous_id={7: 0, 3: 1, 1: 2, 8: 3},
    )
    json_file, folder = write_json(IMAGES, [annotation(category_id=1)])
    assert load_coco(json_file, folder, "toy")[1]["annotations"][0]["category_id"] == 2
    assert MetadataCatalog.get("toy").thing_classes == ["bird", "cat", "dog", "fish"]


def test_known_names_without_ids_are_matched_by_name(write_json):
    MetadataCatalog.get("toy").thing_classes = ["bird", "cat", "dog"]
    json_file, folder = write_json(IMAGES, [annotation(category_id=1)])
    assert load_coco(json_file, folder, "toy")[1]["annotations"][0]["category_id"] == 2


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 1, "name": "person"}, {"id": 2, "name": "bike"}], "2 'bike', .* with 'bicycle'"),
        ([{"id": 1, "name": "person"}, {"id": 12, "name": "lamp"}], "12 'lamp', .* no such cat"),
    ],
)
def test_json_that_disagrees_with_the_builtin_categories(write_json, categories, message):
    json_file, folder = write_json(IMAGES, [], categories)
    with pytest.raises(UserError, match=message):
        load_coco(json_file, folder, "coco_2017_val")


def test_json_that_disagrees_with_known_names(write_json):
    MetadataCatalog.get("toy").thing_classes = ["bird", "cat"]
    with pytest.raises(UserError, match="category 1 'dog', .* with no such category"):
        load_coco(*write_json(IMAGES, []), "toy")


def test_categories_alone(write_json):
    json_file, _ = write_json(IMAGES, [annotation(image_id=1234)])
    assert load_categories(json_file, "toy") == ["dog", "cat", "bird"]
    assert MetadataCatalog.get("toy").thing_classes == ["dog", "cat", "bird"]


def test_registering_is_lazy_and_can_be_repeated(write_json, tmp_path, monkeypatch):
    json_file, folder = str(tmp_path / "later.json"), str(tmp_path / "images")
    register_coco_json("mine", json_file, folder)
    monkeypatch.chdir(tmp_path)
    register_coco_json("mine", "later.json", "images")
    write_json(IMAGES, [annotation()], file_name="later.json")
    assert len(DatasetCatalog.get("mine")) == 2
    assert MetadataCatalog.get("mine").evaluator_type == "coco"
    assert MetadataCatalog.get("mine").json_file == json_file


@pytest.mark.parametrize("changed", ["json", "images"])
def test_a_name_is_not_given_to_other_paths(tmp_path, changed):
    paths = {"json": str(tmp_path / "a.json"), "images": str(tmp_path / "images")}
    register_coco_json("mine", *paths.values())
    paths[changed] += "2"
    with pytest.raises(UserError, match="'mine' is already taken by the json .*a.json"):
        register_coco_json("mine", *paths.values())


def test_reading_does_not_change_the_file(write_json):
    json_file, folder = write_json(IMAGES, [annotation(segmentation=[[1, 1, 2, 2]])])
    with open(json_file) as file:
        before = json.load(file)
    first = load_coco(json_file, folder, "toy")
    with open(json_file) as file:
        assert json.load(file) == before
    assert load_coco(json_file, folder, "toy") == first


@pytest.mark.parametrize("ids", [(7, 3), (..., ...), ("a", 3), (2**70, 3)])
def test_entries_of_the_json_are_found_by_the_ids_that_reading_gave(write_json, ids):
    # The first one is of the image that comes second.
    entries = [
        annotation(key, bbox=[1, 2, 3 + i, 4], image_id=image_id)
        for i, (key, image_id) in enumerate(zip(ids, (9, 2), strict=True))
    ]
    json_file, folder = write_json(IMAGES, entries)
    dicts = load_coco(json_file, folder, "toy")
    assert [a["id"] for r in dicts for a in r["annotations"]] == (
        [3, 7] if ids == (7, 3) else [2, 1]
    )
    found = match_annotations(dicts, entries)
    for record in dicts:
        for read in record["annotations"]:
            assert found.pop((record["image_id"], read["id"]))["bbox"] == read["bbox"]
    assert found == {}


def test_entries_that_were_left_out_are_not_found(write_json):
    entries = [annotation(1, bbox=[1, 2, 0, 4]), annotation(2)]
    dicts = load_coco(*write_json(IMAGES, entries), "toy")
    assert match_annotations(dicts, entries) == {(9, 2): entries[1]}
