"""The model's classes and the categories of data sets."""

from psis_d2.data.classes import check_classes, get_model_class_ids, get_model_class_names
from psis_d2.data.loader import build_test_loader
from psis_d2.data.training_set import get_training_dicts
from psis_d2.errors import UserError

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from toy_data import SIZES, annotations


def categories(*names):
    return [{"id": i + 1, "name": name} for i, name in enumerate(names)]


@pytest.fixture
def two(toy, make_dataset):
    """A second data set: its categories are given, its one object is of the first of them."""

    def make(*names):
        entry = {**annotations()[0], "category_id": 1}
        make_dataset("second", {1: SIZES[1]}, [entry], categories(*names))
        toy.DATASETS.TEST = ("second",)
        toy.MODEL.ROI_HEADS.NUM_CLASSES = 3
        return toy

    return make


@pytest.mark.parametrize(
    ("names", "class_ids"),
    [
        (("dog", "cat", "bird"), None),
        (("bird", "dog", "cat"), [2, 0, 1]),
        (("cat",), [1]),
        (("bird", "cat"), [2, 1]),
    ],
)
def test_categories_to_evaluate_on_are_matched_by_name(two, names, class_ids):
    cfg = two(*names)
    assert get_model_class_ids(cfg, "second") == class_ids
    assert get_model_class_ids(cfg, "toy") is None
    (sample,) = next(iter(build_test_loader(cfg, "second", with_boxes=True)))
    assert sample["instances"].gt_classes.tolist() == [["dog", "cat", "bird"].index(names[0])]
    check_classes(cfg)


@pytest.mark.parametrize("names", [("dog", "cat", "bird", "cow"), ("dog", "lion"), ("Dog",)])
def test_other_categories_are_refused(two, names):
    cfg = two(*names)
    with pytest.raises(UserError, match="'toy' .* and 'second' .* differ in their category names"):
        build_test_loader(cfg, "second")


def test_training_data_may_have_another_order_but_not_fewer_categories(two, make_dataset):
    cfg = two("bird", "dog", "cat")
    cfg.DATASETS.TRAIN = ("toy", "second")
    assert get_training_dicts(cfg)[-1]["annotations"][0]["category_id"] == 2
    make_dataset("few", {1: SIZES[1]}, [annotations()[0]], categories("dog", "cat"))
    cfg.DATASETS.TRAIN = ("toy", "few")
    # What is not annotated in it is unknown, not background: that is what the map is for.
    with pytest.raises(UserError, match="'toy' .* and 'few' .*: 'bird'; .*PSIS.CATEGORY_MAP"):
        get_training_dicts(cfg)


def test_classes_that_are_given_go_before_those_of_the_data(two):
    cfg = two("bird", "dog", "cat")
    cfg.PSIS.CLASSES = ["cat", "bird", "dog"]
    assert get_model_class_names(cfg) == ["cat", "bird", "dog"]
    assert get_model_class_ids(cfg, "toy") == [2, 0, 1]
    assert get_model_class_ids(cfg, "second") == [1, 2, 0]
    cfg.PSIS.CLASSES = ["cat", "bird", "dog", "cow"]
    with pytest.raises(UserError, match="PSIS.CLASSES has 4 classes, the model 3"):
        check_classes(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    cfg.DATASETS.TRAIN = ()
    check_classes(cfg)


@pytest.mark.usefixtures("catalogs")
def test_what_is_not_read_yet_is_left_to_the_time_of_reading(cfg):
    def read():
        raise AssertionError("read too early")

    DatasetCatalog.register("later", read)
    MetadataCatalog.get("known").thing_classes = ["cup"]
    DatasetCatalog.register("known", read)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("later",), ("known",)
    check_classes(cfg)
