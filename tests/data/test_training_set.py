"""What training may see: splits, image lists, shares, several data sets."""

import itertools
import json
import logging

from psis_d2.data import training_set
from psis_d2.data.catalog import get_class_names, shared_dataset_dicts
from psis_d2.data.coco import register_coco_json
from psis_d2.data.loader import build_test_loader, build_train_loader
from psis_d2.data.training_set import get_training_dicts, seen_ids_for
from psis_d2.errors import UserError

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from toy_data import SIZES, annotations, polygon


def masked(dicts):
    """(image id, contiguous category id) of all annotations with a mask."""
    return {
        (record["image_id"], annotation["category_id"])
        for record in dicts
        for annotation in record["annotations"]
        if "segmentation" in annotation
    }


def test_training_keeps_the_masks_of_seen_categories(toy, caplog):
    with caplog.at_level(logging.INFO, logger="psis_d2"):
        dicts = get_training_dicts(toy)
    assert masked(dicts) == {(i, 0) for i in SIZES}
    assert sum(len(record["annotations"]) for record in dicts) == 19
    (line,) = [message for message in caplog.messages if message.startswith("masks: ")]
    assert line == "masks: 9 of 19 instances keep theirs (2 of 3 categories seen); 18 had one"


def test_the_oracle_keeps_unseen_masks_and_the_split_stays(toy):
    toy.PSIS.ORACLE = True
    assert masked(get_training_dicts(toy)) == {(i, c) for i in SIZES for c in (0, 1)}
    assert seen_ids_for(toy) == [0, 2]


def test_auto_sees_the_categories_with_masks(toy, make_dataset):
    make_dataset("partial", SIZES, annotations(lambda i: [[1, 2, 3, 4]] if i < 9 else []))
    toy.DATASETS.TRAIN = ("partial",)
    toy.PSIS.SEEN_CLASSES = "auto"
    assert seen_ids_for(toy) == [0]
    assert masked(get_training_dicts(toy)) == {(i, 0) for i in SIZES}
    toy.DATASETS.TRAIN = ("partial", "toy")
    assert seen_ids_for(toy) == [0, 1]


def test_auto_reads_the_json_once_and_again_after_a_change(toy, monkeypatch):
    toy.PSIS.SEEN_CLASSES = "auto"
    reads = []

    def read(name, crowds):
        reads.append(name)
        return shared_dataset_dicts(name, crowds)

    monkeypatch.setattr(training_set, "shared_dataset_dicts", read)
    assert seen_ids_for(toy) == seen_ids_for(toy) == [0, 1]
    assert reads == ["toy"]
    json_file = MetadataCatalog.get("toy").json_file
    with open(json_file) as file:
        content = json.load(file)
    content["annotations"] = annotations(lambda i: None)
    with open(json_file, "w") as file:
        json.dump(content, file)
    assert seen_ids_for(toy) == [0]
    assert reads == ["toy", "toy"]


def test_image_list(toy, tmp_path, caplog):
    path = tmp_path / "images.txt"
    path.write_text("3\n5.png\nnowhere.png\n")
    toy.PSIS.MASK_IMAGES = str(path)
    with caplog.at_level(logging.WARNING, logger="psis_d2"):
        assert masked(get_training_dicts(toy)) == {(3, 0), (5, 0)}
    assert "1 entries" in caplog.text and "'nowhere.png'" in caplog.text
    toy.PSIS.ORACLE = True
    assert masked(get_training_dicts(toy)) == {(i, c) for i in (3, 5) for c in (0, 1)}


def test_image_list_of_nothing_known(toy, tmp_path):
    path = tmp_path / "images.txt"
    path.write_text("77\n")
    toy.PSIS.MASK_IMAGES = str(path)
    with pytest.raises(UserError, match="No entry of the image list .*images.txt .* is '77'"):
        get_training_dicts(toy)


def test_image_fractions_are_nested(toy):
    chosen = []
    for fraction in (0.0, 0.3, 0.6, 1.0):
        toy.PSIS.MASK_IMAGE_FRACTION = fraction
        chosen.append({image for image, _ in masked(get_training_dicts(toy))})
    assert [len(images) for images in chosen] == [0, 3, 5, 9]
    assert chosen[0] < chosen[1] < chosen[2] < chosen[3]
    toy.PSIS.MASK_IMAGE_SEED = 1
    toy.PSIS.MASK_IMAGE_FRACTION = 0.6
    assert {image for image, _ in masked(get_training_dicts(toy))} != chosen[2]


def test_training_fractions_are_nested(toy):
    chosen = []
    for fraction in (0.3, 0.6, 1.0):
        toy.PSIS.TRAIN_IMAGE_FRACTION = fraction
        chosen.append({record["image_id"] for record in get_training_dicts(toy)})
    assert [len(images) for images in chosen[:2]] == [3, 5]
    assert chosen[0] < chosen[1] < chosen[2]
    toy.PSIS.TRAIN_IMAGE_SEED, toy.PSIS.TRAIN_IMAGE_FRACTION = 1, 0.6
    assert {record["image_id"] for record in get_training_dicts(toy)} != chosen[1]
    # Of the share, a share keeps its masks.
    toy.PSIS.MASK_IMAGE_FRACTION = 0.4
    dicts = get_training_dicts(toy)
    assert (len(dicts), len({image for image, _ in masked(dicts)})) == (5, 2)


def test_training_fraction_of_nothing(toy):
    toy.PSIS.TRAIN_IMAGE_FRACTION = 0.001
    with pytest.raises(UserError, match="TRAIN_IMAGE_FRACTION 0.001 of 9 images is none"):
        get_training_dicts(toy)


def test_images_without_a_mask_may_be_left_out(toy):
    toy.PSIS.MASK_IMAGE_FRACTION = 0.6
    with_mask = {image for image, _ in masked(get_training_dicts(toy))}
    toy.PSIS.MASKED_IMAGES_ONLY = True
    dicts = get_training_dicts(toy)
    assert {record["image_id"] for record in dicts} == with_mask
    assert len(with_mask) == 5
    # The boxes of other categories in these images stay.
    assert all(len(record["annotations"]) >= 2 for record in dicts)
    toy.PSIS.MASK_IMAGE_FRACTION = 0.0
    with pytest.raises(UserError, match="MASKED_IMAGES_ONLY is True, but no training image has"):
        get_training_dicts(toy)


def test_image_list_and_fraction_both_count(toy, tmp_path):
    path = tmp_path / "images.txt"
    path.write_text("1\n2\n3\n4\n5\n")
    toy.PSIS.MASK_IMAGE_FRACTION = 0.6
    by_fraction = masked(get_training_dicts(toy))
    toy.PSIS.MASK_IMAGES = str(path)
    assert masked(get_training_dicts(toy)) == {pair for pair in by_fraction if pair[0] <= 5}


def test_images_without_instances(make_dataset, cfg):
    only_crowd = {**annotations()[0], "iscrowd": 1}
    make_dataset("sparse", {1: (8, 8), 2: (8, 8), 3: (8, 8)}, [only_crowd, annotations()[2]])
    cfg.DATASETS.TRAIN = ("sparse",)
    assert [record["image_id"] for record in get_training_dicts(cfg)] == [2]
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert [record["image_id"] for record in get_training_dicts(cfg)] == [1, 2, 3]
    batches = itertools.islice(build_train_loader(cfg), 6)
    assert {len(sample["instances"]) for batch in batches for sample in batch} == {0, 1}


def test_nothing_to_train_on(make_dataset, cfg):
    with pytest.raises(UserError, match="DATASETS.TRAIN is empty"):
        get_training_dicts(cfg)
    make_dataset("bare", {1: (8, 8)}, [])
    cfg.DATASETS.TRAIN = ("bare",)
    with pytest.raises(UserError, match=r"training data \(bare\) has no images with instances"):
        get_training_dicts(cfg)


def test_split_that_does_not_fit(toy):
    toy.PSIS.SEEN_CLASSES = "voc"
    with pytest.raises(UserError, match="'voc' names 'person', .* data set 'toy' does not have"):
        get_training_dicts(toy)


def test_several_training_sets_are_joined(toy, make_dataset):
    make_dataset("more", {50: (24, 32)}, [{**annotations()[0], "image_id": 50}])
    toy.DATASETS.TRAIN = ("toy", "more")
    assert [record["image_id"] for record in get_training_dicts(toy)] == [*SIZES, 50]


@pytest.mark.parametrize(
    ("categories", "difference"),
    [
        ([{"id": 1, "name": "dog"}, {"id": 2, "name": "lion"}], "'cat' / 'lion', 'bird'"),
        ([{"id": i, "name": n} for i, n in enumerate(["dog", "cat", "bird", "cow"])], "'cow'"),
    ],
)
def test_training_and_test_sets_must_have_the_same_categories(
    toy, make_dataset, categories, difference
):
    make_dataset("other", {1: (8, 8)}, [annotations()[0]], categories)
    get_class_names("toy")
    with pytest.raises(UserError, match=f"'toy' .* and 'other' .* names: {difference};"):
        build_test_loader(toy, "other")
    toy.DATASETS.TRAIN = ("toy", "other")
    with pytest.raises(UserError, match=f"'toy' .* and 'other' .* names: {difference};"):
        get_training_dicts(toy)


def test_seen_ids_where_the_training_data_is_not(toy, tmp_path):
    register_coco_json("gone", str(tmp_path / "gone.json"), str(tmp_path))
    toy.DATASETS.TRAIN = ("gone",)
    assert seen_ids_for(toy) == [0, 2]
    toy.PSIS.SEEN_CLASSES = "auto"
    with pytest.raises(UserError, match="gone.json does not exist"):
        seen_ids_for(toy)
    toy.PSIS.SEEN_CLASSES = "all"
    toy.DATASETS.TEST = ()
    with pytest.raises(UserError, match="gone.json does not exist"):
        seen_ids_for(toy)


@pytest.mark.usefixtures("catalogs")
def test_auto_asks_a_registered_function_each_time(cfg):
    masks = [polygon(0, 0), None]

    def records():
        annotation = {"bbox": [0, 0, 8, 8], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        annotation["segmentation"] = masks.pop(0)
        base = {"file_name": "a.png", "image_id": 1, "height": 8, "width": 8}
        return [{**base, "annotations": [annotation]}]

    DatasetCatalog.register("function", records)
    MetadataCatalog.get("function").thing_classes = ["thing"]
    cfg.DATASETS.TRAIN = ("function",)
    cfg.PSIS.SEEN_CLASSES = "auto"
    assert [seen_ids_for(cfg), seen_ids_for(cfg)] == [[0], []]
