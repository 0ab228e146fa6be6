import itertools
import json
import logging
import os
import random

import psis_d2  # noqa: F401  (before detectron2)
from psis_d2.data import build
from psis_d2.data.build import (
    build_test_loader,
    build_train_loader,
    get_class_names,
    get_dataset_dicts,
    get_training_dicts,
    seen_ids_for,
)
from psis_d2.data.coco import register_coco_json
from psis_d2.errors import UserError

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

# dog 0 (id 1), cat 1 (id 3), bird 2 (id 7); wide and high images.
SIZES = {i: (24, 32) if i % 3 else (32, 24) for i in range(1, 10)}
WIDE = {i for i in SIZES if i % 3}


def polygon(left, top, side=8):
    right, bottom = left + side, top + side
    return [[left, top, right, top, right, bottom, left, bottom]]


def annotations(unseen=None):
    """A dog and a cat in each image, a bird in image 1; ``unseen`` replaces the masks of cats."""
    result = []
    for image_id in SIZES:
        for category, place in ((1, image_id), (3, image_id + 4)):
            result.append(
                {
                    "id": len(result) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [place, 5, 8, 8],
                    "iscrowd": 0,
                    "segmentation": polygon(place, 5),
                }
            )
            if category == 3 and unseen is not None:
                result[-1]["segmentation"] = unseen(image_id)
    bird = {"id": 1000, "image_id": 1, "category_id": 7, "bbox": [2, 2, 6, 6], "iscrowd": 0}
    return [*result, bird]


@pytest.fixture
def toy(make_dataset, cfg, tmp_path):
    """Register the toy data set and make the config train and test on it; seen: dog, bird."""
    make_dataset("toy", SIZES, annotations())
    cfg.DATASETS.TRAIN = ("toy",)
    cfg.DATASETS.TEST = ("toy",)
    (tmp_path / "seen.txt").write_text("dog\nbird\n")
    cfg.PSIS.SEEN_CLASSES = str(tmp_path / "seen.txt")
    return cfg


def take(count, *args, **options):
    return list(itertools.islice(build_train_loader(*args, **options), count))


def flat(batches):
    """Everything in batches, in order, as nested lists of tensors and plain values."""
    out = []
    for sample in itertools.chain(*batches):
        instances = sample["instances"]
        out.append(
            [
                *(sample["image_id"], sample["image"], instances.gt_boxes.tensor),
                *(instances.gt_classes, instances.gt_masks.tensor, instances.gt_has_mask),
            ]
        )
    return out


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def masked(dicts):
    """(image id, contiguous category id) of all annotations with a mask."""
    return {
        (record["image_id"], annotation["category_id"])
        for record in dicts
        for annotation in record["annotations"]
        if "segmentation" in annotation
    }


# ---------------------------------------------------------------------------------- supervision


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


GARBAGE = {
    "other polygons": lambda i: polygon(0, 0, 3 * i),
    "nothing": lambda i: None,
    "malformed": lambda i: [[1, 1, i]],
    "full RLE": lambda i: {"size": list(SIZES[i]), "counts": [0, 24 * 32]},
}


@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.parametrize("crop", [False, True])
def test_garbage_in_unseen_masks_changes_no_bit(toy, make_dataset, name, crop):
    make_dataset("garbage", SIZES, annotations(GARBAGE[name]))
    toy.INPUT.CROP.ENABLED = crop
    clean = flat(take(9, toy))
    toy.DATASETS.TRAIN = ("garbage",)
    assert same(flat(take(9, toy)), clean)
    # Not because the masks were alike: where all categories are seen, the batches differ.
    toy.PSIS.SEEN_CLASSES = "all"
    garbage = flat(take(9, toy))
    toy.DATASETS.TRAIN = ("toy",)
    assert not same(flat(take(9, toy)), garbage)


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
    monkeypatch.setattr(
        build, "get_dataset_dicts", lambda name: reads.append(name) or get_dataset_dicts(name)
    )
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
    samples = list(itertools.chain(*take(6, cfg)))
    assert {len(sample["instances"]) for sample in samples} == {0, 1}


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


# ---------------------------------------------------------------------------------- data sets


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


def test_unknown_data_set():
    with pytest.raises(UserError, match=r"registered as 'coco_2017_trian' \(did you mean"):
        get_dataset_dicts("coco_2017_trian")


def test_categories_are_known_without_annotations(toy):
    assert get_class_names("toy") == ["dog", "cat", "bird"]


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


# ---------------------------------------------------------------------------------- loaders


def test_batches_have_the_config_size_and_augmentations_vary(toy):
    batches = take(18, toy)
    assert {len(batch) for batch in batches} == {2}
    first_epochs = [sample for batch in batches for sample in batch if sample["image_id"] == 4]
    assert len({tuple(sample["image"].shape) for sample in first_epochs}) > 1


@pytest.mark.parametrize("grouping", [True, False])
def test_resuming_and_workers_change_nothing(toy, grouping):
    toy.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    whole = flat(take(14, toy))
    assert same(flat(take(7, toy, start_iter=7)), whole[14:])
    toy.DATALOADER.NUM_WORKERS = 2
    assert same(flat(take(14, toy)), whole)
    assert same(flat(take(3, toy, start_iter=11)), whole[22:])


def test_each_pass_over_the_loader_begins_at_the_start(toy):
    loader = build_train_loader(toy, start_iter=2)
    assert same(*(flat(itertools.islice(loader, 3)) for _ in range(2)))


def test_the_seed_decides(toy):
    first = flat(take(6, toy))
    toy.SEED = 6
    assert not same(flat(take(6, toy)), first)


def test_a_negative_seed_is_random(toy):
    toy.SEED = -1
    np.random.seed(0)
    first, second = flat(take(6, toy)), flat(take(6, toy))
    assert not same(first, second)


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_callers_random_numbers_alone(toy, workers):
    toy.DATALOADER.NUM_WORKERS = workers

    def state():
        return random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()

    before = state()
    take(5, toy)
    list(build_test_loader(toy, "toy", with_boxes=True))
    np.testing.assert_equal(state(), before)


def test_what_the_caller_draws_does_not_change_the_batches(toy):
    undisturbed = flat(take(6, toy))
    disturbed = []
    for batch in itertools.islice(build_train_loader(toy), 6):
        disturbed.append(batch)
        random.random(), np.random.rand(7), torch.rand(3)
    assert same(flat(disturbed), undisturbed)


def test_aspect_ratio_grouping(toy):
    kinds = [{sample["image_id"] in WIDE for sample in batch} for batch in take(20, toy)]
    assert all(len(kind) == 1 for kind in kinds) and {True} in kinds and {False} in kinds
    toy.DATALOADER.ASPECT_RATIO_GROUPING = False
    kinds = [{sample["image_id"] in WIDE for sample in batch} for batch in take(20, toy)]
    assert any(len(kind) == 2 for kind in kinds)


def test_repeat_factor_sampling_shows_rare_categories_more_often(toy):
    toy.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    toy.DATALOADER.REPEAT_THRESHOLD = 1.0
    ids = [sample["image_id"] for batch in take(54, toy) for sample in batch]
    # The bird is in one of nine images: factor sqrt(9) = 3, all others 1; 11 draws an epoch.
    assert ids.count(1) / len(ids) == pytest.approx(3 / 11, abs=0.03)


def test_unknown_sampler(toy):
    toy.DATALOADER.SAMPLER_TRAIN = "Lottery"
    with pytest.raises(UserError, match="SAMPLER_TRAIN is 'Lottery'; known are"):
        build_train_loader(toy)


def test_processes_share_the_batch(toy, monkeypatch):
    toy.SOLVER.IMS_PER_BATCH = 6
    toy.DATALOADER.ASPECT_RATIO_GROUPING = False
    alone = [sample[0] for sample in flat(take(4, toy))]
    monkeypatch.setattr(build.comm, "get_world_size", lambda: 3)
    ranks = []
    for rank in range(3):
        monkeypatch.setattr(build.comm, "get_rank", lambda rank=rank: rank)
        ranks.append(take(4, toy))
    together = [sample[0] for step in zip(*ranks, strict=True) for sample in flat(step)]
    assert {len(batch) for batches in ranks for batch in batches} == {2}
    assert together == alone


@pytest.mark.parametrize(("total", "world"), [(3, 2), (0, 1)])
def test_batch_that_cannot_be_shared(toy, monkeypatch, total, world):
    toy.SOLVER.IMS_PER_BATCH = total
    monkeypatch.setattr(build.comm, "get_world_size", lambda: world)
    with pytest.raises(UserError, match=f"IMS_PER_BATCH is {total} .* by {world} processes"):
        build_train_loader(toy)


def test_own_mapper(toy):
    batches = take(2, toy, mapper=lambda record: record["image_id"])
    assert all(number in SIZES for batch in batches for number in batch)


@pytest.mark.parametrize("workers", [0, 2])
def test_test_loader_gives_every_image_once(toy, workers):
    toy.DATALOADER.NUM_WORKERS = workers
    loader = build_test_loader(toy, "toy")
    batches = list(loader)
    assert len(loader) == len(batches) == len(SIZES)
    assert [batch[0]["image_id"] for batch in batches] == list(SIZES)
    assert all(len(batch) == 1 and "instances" not in batch[0] for batch in batches)


def test_test_loader_with_boxes(toy):
    first = next(iter(build_test_loader(toy, "toy", with_boxes=True)))[0]
    assert first["instances"].gt_ids.tolist() == [1, 2, 1000]
    assert first["instances"].gt_classes.tolist() == [0, 1, 2]


def test_test_set_without_images(make_dataset, cfg):
    make_dataset("nothing", {}, [])
    with pytest.raises(UserError, match="'nothing' has no images to evaluate on"):
        build_test_loader(cfg, "nothing")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_one_sentence_also_from_a_worker(toy, workers):
    toy.DATALOADER.NUM_WORKERS = workers
    lost = os.path.join(MetadataCatalog.get("toy").image_root, "4.png")
    with open(lost, "wb") as file:
        file.write(b"no image")
    for loader in (build_train_loader(toy), build_test_loader(toy, "toy")):
        with pytest.raises(UserError) as caught:
            list(itertools.islice(loader, 20))
        assert lost in str(caught.value) and "\n" not in str(caught.value)
