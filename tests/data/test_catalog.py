"""Data sets by name: registered functions and jsons, categories, files that are made."""

import os

from psis_d2.data import catalog
from psis_d2.data.catalog import get_class_names, get_dataset_dicts
from psis_d2.data.coco import register_coco_json
from psis_d2.errors import UserError

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from toy_data import polygon


def test_unknown_data_set():
    with pytest.raises(UserError, match=r"registered as 'coco_2017_trian' \(did you mean"):
        get_dataset_dicts("coco_2017_trian")


def test_categories_are_known_without_annotations(toy):
    assert get_class_names("toy") == ["dog", "cat", "bird"]


@pytest.mark.usefixtures("catalogs")
def test_data_set_registered_as_a_function():
    def record(**changes):
        annotation = {"bbox": [0, 0, 4, 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
        base = {"file_name": "a.png", "image_id": "a", "height": 8, "width": 8}
        entries = [{**annotation, "segmentation": s} for s in (polygon(0, 0, 4), [[1, 1]])]
        return {**base, "annotations": entries, **changes}

    DatasetCatalog.register("function", lambda: [record(), record(image_id="b")])
    MetadataCatalog.get("function").thing_classes = ["thing"]
    dicts = get_dataset_dicts("function")
    assert [a["id"] for r in dicts for a in r["annotations"]] == [1, 2, 3, 4]
    assert [["segmentation" in a for a in r["annotations"]] for r in dicts] == [[True, False]] * 2
    assert get_class_names("function") == ["thing"]

    DatasetCatalog.register("sizeless", lambda: [{"file_name": "a.png", "image_id": 1}])
    with pytest.raises(UserError, match="'sizeless' .* without height and width: a.png"):
        get_dataset_dicts("sizeless")
    with pytest.raises(UserError, match="'sizeless' has no category names"):
        get_class_names("sizeless")


def test_a_data_set_that_makes_its_files(write_json, catalogs, tmp_path):
    calls = []

    def prepare():
        calls.append(os.path.exists(tmp_path / "made.json"))
        if not calls[-1]:
            images = [{"id": 1, "file_name": "1.png", "height": 8, "width": 8}]
            write_json(images, [], file_name="made.json")

    register_coco_json("made", str(tmp_path / "made.json"), str(tmp_path / "images"))
    MetadataCatalog.get("made").psis_prepare = prepare
    assert get_class_names("made") == ["dog", "cat", "bird"]
    assert len(get_dataset_dicts("made")) == 1
    assert calls == [False, True]


def test_a_json_is_read_once_a_process_until_it_is_forgotten(toy, monkeypatch):
    catalog.forget_dataset_dicts(["toy"])
    reads, load = [], catalog.load_coco
    monkeypatch.setattr(catalog, "load_coco", lambda *args: reads.append(args) or load(*args))
    mine = get_dataset_dicts("toy")
    before = [(x["height"], len(x["annotations"])) for x in mine]
    category = mine[0]["annotations"][0]["category_id"]
    mine[0]["annotations"][0]["category_id"] = 7
    mine[0]["annotations"].append({})
    mine[0]["height"] = 3
    other = get_dataset_dicts("toy")
    assert other == catalog.shared_dataset_dicts("toy") != mine
    assert [(x["height"], len(x["annotations"])) for x in other] == before
    assert other[0]["annotations"][0]["category_id"] == category
    assert len(reads) == 1
    catalog.shared_dataset_dicts("toy", "instances")  # another reading of the same file
    catalog.forget_dataset_dicts(["another"])
    assert get_dataset_dicts("toy") == other and len(reads) == 2
    catalog.forget_dataset_dicts(["toy"])
    assert get_dataset_dicts("toy") == other and len(reads) == 3
