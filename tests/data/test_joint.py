"""Boxes from one data set, masks from another, in the class space of the first."""

import json

from psis_d2.data import build_test_loader, build_train_loader, get_training_dicts, seen_ids_for
from psis_d2.data.classes import get_model_class_ids
from psis_d2.data.joint import joint_class_ids, move_to_joint_classes, read_category_map
from psis_d2.errors import UserError

import pytest

SYNSETS = [{"id": i + 1, "name": f"{word}.n.01"} for i, word in enumerate(("sky", "cat", "dog"))]
SQUARE = [[4.0, 4.0, 14.0, 4.0, 14.0, 14.0, 4.0, 14.0]]


def entry(key, image_id, category_id, **extra):
    return {"id": key, "image_id": image_id, "category_id": category_id, "bbox": [3, 3, 12, 12]} | (
        extra
    )


@pytest.fixture
def joint_cfg(cfg, make_dataset, tmp_path):
    """Boxes of three synsets (image ids 1, 2), masks of cat, dog and bird (image ids 2, 3)."""
    boxes = [entry(1, 1, 1), entry(2, 1, 2), entry(3, 2, 3)]
    make_dataset("joint_boxes", {1: (24, 24), 2: (24, 24)}, boxes, SYNSETS)
    masks = [
        entry(1, 2, 3, segmentation=SQUARE),
        entry(2, 3, 1, segmentation=SQUARE),
        entry(3, 3, 7, segmentation=SQUARE),
        entry(4, 3, 1),
    ]
    make_dataset("joint_masks", {2: (24, 24), 3: (24, 24)}, masks)  # dog 1, cat 3, bird 7
    path = tmp_path / "map.yaml"
    path.write_text("cat: cat.n.01\ndog: dog.n.01\nbird: null\n")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("joint_boxes", "joint_masks"), ("joint_masks",)
    cfg.PSIS.CATEGORY_MAP = str(path)
    cfg.PSIS.SEEN_CLASSES = "mapped"
    return cfg


def test_ids_names_and_seen_classes_are_the_models(joint_cfg):
    assert get_model_class_ids(joint_cfg, "joint_boxes") is None
    assert get_model_class_ids(joint_cfg, "joint_masks") == [2, 1, None]  # dog, cat, bird
    assert seen_ids_for(joint_cfg) == [1, 2]
    joint_cfg.PSIS.SEEN_CLASSES = "auto"
    assert seen_ids_for(joint_cfg) == [1, 2]


def test_training_dicts_of_both_sets(joint_cfg):
    dicts = get_training_dicts(joint_cfg)
    found = [
        (r["image_id"], r["exhaustive"], a["category_id"], "segmentation" in a)
        for r in dicts
        for a in r["annotations"]
    ]
    assert found == [
        (1, True, 0, False),
        (1, True, 1, False),
        (2, True, 2, False),
        (2, False, 1, True),
        (3, False, 2, True),
        (3, False, 2, False),  # the bird between them is left out
    ]


def test_masks_of_classes_that_are_not_seen_are_gone(joint_cfg, tmp_path):
    (tmp_path / "seen.txt").write_text("dog.n.01\n")
    joint_cfg.PSIS.SEEN_CLASSES = str(tmp_path / "seen.txt")
    masked = {
        a["category_id"]
        for r in get_training_dicts(joint_cfg)
        for a in r["annotations"]
        if "segmentation" in a
    }
    assert masked == {2}


def test_samples_say_whether_everything_is_annotated(joint_cfg):
    joint_cfg.SOLVER.IMS_PER_BATCH = 4
    batch = next(iter(build_train_loader(joint_cfg)))
    flags = {tuple(s["instances"].gt_exhaustive.unique().tolist()) for s in batch}
    assert flags == {(True,), (False,)}
    assert sorted(c for s in batch for c in s["instances"].gt_classes.tolist()) == [
        0,
        1,
        1,
        2,
        2,
        2,
    ]
    joint_cfg.PSIS.CATEGORY_MAP, joint_cfg.PSIS.SEEN_CLASSES = "", "all"
    joint_cfg.DATASETS.TRAIN = ("joint_boxes",)
    batch = next(iter(build_train_loader(joint_cfg)))
    assert not any(s["instances"].has("gt_exhaustive") for s in batch)


def test_given_boxes_have_the_models_classes(joint_cfg):
    samples = [s for batch in build_test_loader(joint_cfg, "joint_masks", True) for s in batch]
    assert [s["instances"].gt_classes.tolist() for s in samples] == [[1], [2, 2]]


def test_without_a_map_other_categories_are_refused(joint_cfg):
    joint_cfg.PSIS.CATEGORY_MAP, joint_cfg.PSIS.SEEN_CLASSES = "", "all"
    with pytest.raises(UserError, match="differ in their category names"):
        get_training_dicts(joint_cfg)
    joint_cfg.PSIS.SEEN_CLASSES = "mapped"
    joint_cfg.DATASETS.TRAIN = ("joint_boxes",)
    with pytest.raises(UserError, match="'mapped' needs a PSIS.CATEGORY_MAP"):
        get_training_dicts(joint_cfg)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("cat: cat.n.01\nbird: null\n", "says nothing of 'dog'"),
        ("cat: cat.n.01\ndog: hound.n.01\nbird: null\n", "maps to 'hound.n.01'"),
        ("cat: [1]\n", "one line `category: class`"),
        ("- cat\n", "one line `category: class`"),
        ("cat: {\n", "Cannot read the category map"),
    ],
)
def test_bad_maps_are_refused(joint_cfg, tmp_path, content, words):
    (tmp_path / "map.yaml").write_text(content)
    with pytest.raises(UserError, match=words):
        get_training_dicts(joint_cfg)


def test_a_map_may_be_json_or_missing_or_beside_the_data(tmp_path, monkeypatch):
    (tmp_path / "map.json").write_text(json.dumps({"tv": "television.n.01", "cup": None}))
    expected = {"tv": "television.n.01", "cup": None}
    assert read_category_map(str(tmp_path / "map.json")) == expected
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert read_category_map("map.json") == expected
    with pytest.raises(UserError, match=r"none\.json exists neither here nor in"):
        read_category_map("none.json")


def test_a_category_that_is_called_like_a_class_needs_no_line():
    assert joint_class_ids(["cup", "tv"], ["tv", "mug", "cup"], {"cup": "mug"}, "x") == [1, 0]


def test_a_set_with_all_classes_is_exhaustive_under_other_names():
    dicts = [{"annotations": [{"category_id": 0}, {"category_id": 1}]}]
    move_to_joint_classes(dicts, [1, 0], 2)
    assert dicts == [{"annotations": [{"category_id": 1}, {"category_id": 0}], "exhaustive": True}]
