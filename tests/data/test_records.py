"""The checks that data passes, whatever it comes from: here, registered functions."""

import json
from pathlib import Path

from psis_d2.data.catalog import get_class_names, get_dataset_dicts
from psis_d2.data.loader import build_test_loader, build_train_loader
from psis_d2.data.records import usable_records
from psis_d2.errors import UserError

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from PIL import Image

from toy_data import polygon

pytestmark = pytest.mark.usefixtures("catalogs")


def annotation(**changes):
    """One annotation; a change to ``...`` leaves the key out."""
    base = {"bbox": [1, 2, 9, 10], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    base["segmentation"] = polygon(1, 2)
    return {key: value for key, value in {**base, **changes}.items() if value is not ...}


def record(*annotations, **changes):
    base = {"file_name": "a.png", "image_id": 1, "height": 24, "width": 32}
    return {**base, "annotations": list(annotations), **changes}


def register(*records, name="function", classes=("cup", "hat")):
    DatasetCatalog.register(name, lambda: list(records))
    if classes:
        MetadataCatalog.get(name).thing_classes = list(classes)
    return name


def test_numpy_becomes_python():
    entry = annotation(
        id=np.int64(5),
        bbox=np.array([1, 2, 9, 10], np.float32),
        category_id=np.int32(1),
        iscrowd=np.bool_(False),
        area=np.float32(12.5),
        segmentation=[np.array(polygon(1, 2)[0])],
    )
    image = record(entry, image_id=np.uint8(3), height=np.int16(24), width=np.float64(32))
    (found,) = get_dataset_dicts(register(image))
    (only,) = found["annotations"]
    mode = only.pop("bbox_mode")
    assert mode is BoxMode.XYXY_ABS
    assert json.loads(json.dumps(found)) == found  # no type that json does not know
    assert type(found["image_id"]) is int and type(only["id"]) is int
    assert only == {
        **{"id": 5, "bbox": [1, 2, 9, 10], "category_id": 1, "iscrowd": 0, "area": 12.5},
        "segmentation": polygon(1, 2),
    }


def test_boxes_as_arrays_and_a_path_as_file_name_train(cfg, tmp_path):
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(tmp_path / "a.png")
    entry = annotation(bbox=np.array([1, 2, 9, 10]))
    name = register(record(entry, file_name=Path(tmp_path / "a.png")))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), (name,)
    cfg.SOLVER.IMS_PER_BATCH = 1
    (sample,) = next(iter(build_train_loader(cfg)))
    assert sample["instances"].gt_has_mask.tolist() == [True]
    (sample,) = next(iter(build_test_loader(cfg, name, with_boxes=True)))
    assert sample["instances"].gt_ids.tolist() == [1]


def test_what_a_function_returns_is_used_also_where_the_metadata_names_a_json(write_json):
    json_file, folder = write_json([], [])
    name = register(record(annotation()))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=folder, evaluator_type="coco")
    (found,) = get_dataset_dicts(name)
    assert found["file_name"] == "a.png" and len(found["annotations"]) == 1


def test_detectron2s_own_registration_keeps_the_box_of_a_malformed_mask(write_json):
    images = [{"id": 1, "file_name": "a.png", "height": 24, "width": 32}]
    entry = {"id": 9, "image_id": 1, "category_id": 3, "bbox": [1, 2, 8, 8], "iscrowd": 0}
    json_file, folder = write_json(images, [{**entry, "segmentation": [[1, 1, 2, 2]]}])
    register_coco_instances("theirs", {}, json_file, folder)
    assert get_class_names("theirs") == ["dog", "cat", "bird"]
    (found,) = get_dataset_dicts("theirs")
    assert [a["id"] for a in found["annotations"]] == [9]


def test_the_arguments_are_not_changed():
    given = record(annotation(iscrowd="0", bbox=(1, 2, 9, 10)), box_only="true")
    before = repr(given)
    get_dataset_dicts(register(given))
    assert repr(given) == before


def test_a_function_that_lacks_a_library():
    def read():
        raise ModuleNotFoundError("No module named 'lvis'", name="lvis")

    DatasetCatalog.register("needy", read)
    with pytest.raises(UserError, match="'needy' needs the library lvis, .* pip install lvis"):
        get_dataset_dicts("needy")


BAD = {
    "no list": (7, "'function' is no list of dicts but int"),
    "no dict": ([3], "'function' has an image that is no dict: 3"),
    "same image": ([record(), record()], "'function' lists image id 1 twice"),
    "same image as numpy": ([record(), record(image_id=np.int64(1))], "lists image id 1 twice"),
    "image id": ([record(image_id=1.5)], "an image whose id is no integer or text.*: 1.5"),
    "file name": ([record(file_name=None)], "file name is no text: 1, None"),
    "no height": ([{k: v for k, v in record().items() if k != "height"}], "without height: a.png"),
    "huge image": ([record(width=10**6)], r"Image a.png \(id 1\) .* \(found 24 and 1000000\)"),
    "annotations": ([record(annotations={"a": 1})], "annotations that are no list of dicts"),
    "same id": ([record(annotation(id=4), annotation(id=4))], "has two annotations with id 4"),
    "same text": ([record(annotation(id="a"), annotation(id="a"))], "two annotations with id a"),
    "annotation id": ([record(annotation(id=1.5))], "number 1 in .* has the id 1.5, which is"),
    "from one": ([record(annotation(category_id=2))], "category id 2; .* from 0 to 1"),
    "negative": ([record(annotation(category_id=-1))], "Annotation 1 in .* has category id -1"),
    "no category": ([record(annotation(category_id=...))], "has category id None"),
    "three numbers": ([record(annotation(bbox=[1, 2, 3]))], "numbers: x0, y0, x1, y1"),
    "nan": ([record(annotation(bbox=np.array([1, 2, 3, np.nan])))], "no usable bbox"),
    "rotated": (
        [record(annotation(bbox_mode=BoxMode.XYWHA_ABS))],
        "Annotation 1 in .* has the bbox_mode XYWHA_ABS; convert its box to XYXY_ABS or XYWH_ABS",
    ),
    "relative": ([record(annotation(bbox_mode=BoxMode.XYWH_REL))], "the bbox_mode XYWH_REL"),
    "no mode": ([record(annotation(bbox_mode=...))], "has the bbox_mode None"),
    "flag": ([record(annotation(iscrowd=2))], "iscrowd of annotation 1 in .* is 2; write 0 or 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_that_names_the_data_set(case):
    returned, message = BAD[case]
    DatasetCatalog.register("function", lambda: returned)
    MetadataCatalog.get("function").thing_classes = ["cup", "hat"]
    with pytest.raises(UserError, match=message) as caught:
        get_dataset_dicts("function")
    assert "ata set 'function'" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "numbers", "kept"),
    [
        ([7, -3, 2**63 - 1], [7, -3, 2**63 - 1], [None] * 3),
        ([2**63, 4, 9], [1, 2, 3], [2**63, 4, 9]),
        (["a", 4, 9], [1, 2, 3], ["a", 4, 9]),
        ([None, 4, 1], [1, 2, 3], [None, 4, 1]),
        ([..., ..., ...], [1, 2, 3], [None] * 3),
    ],
)
def test_annotation_ids_fit_into_64_bits_and_the_own_ones_are_kept(ids, numbers, kept):
    (found,) = get_dataset_dicts(register(record(*(annotation(id=key) for key in ids))))
    assert [a["id"] for a in found["annotations"]] == numbers
    assert [a.get("json_id") for a in found["annotations"]] == kept


def test_image_ids_of_any_size_and_kind_stay():
    ids = [2**53 + 1, 2**53, 10**30, "b", "1", 1, 3.0]
    dicts = get_dataset_dicts(register(*(record(image_id=key) for key in ids)))
    assert [r["image_id"] for r in dicts] == [2**53 + 1, 2**53, 10**30, "b", "1", 1, 3]
    assert type(dicts[-1]["image_id"]) is int


@pytest.mark.parametrize("box", [[5, 2, 5, 10], [5, 2, 4, 10], [1, 2, 9, 2], [0, 0, 1e-223, 9]])
def test_flat_boxes_of_corners_are_left_out(box, caplog):
    (found,) = get_dataset_dicts(register(record(annotation(bbox=box), annotation(id=3))))
    assert len(found["annotations"]) == 1
    assert "1 annotations have a box of zero width or height" in caplog.text


@pytest.mark.parametrize(
    ("area", "kept"), [(12, 12.0), ("12", None), (0, None), (-3, None), (float("nan"), None)]
)
def test_areas_of_its_own_are_kept_where_they_are_positive_numbers(area, kept):
    (found,) = usable_records([record(annotation(area=area))], "here")
    assert found["annotations"][0].get("area") == kept
