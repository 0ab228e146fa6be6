"""Loaders: batches depend on the config and the seed, and on nothing else."""

import itertools
import os
import random
import sys

from psis_d2.data import loader as module
from psis_d2.data.loader import build_test_loader, build_train_loader
from psis_d2.errors import UserError

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog

from toy_data import SIZES, WIDE, annotations, polygon


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
    monkeypatch.setattr(module.comm, "get_world_size", lambda: 3)
    ranks = []
    for rank in range(3):
        monkeypatch.setattr(module.comm, "get_rank", lambda rank=rank: rank)
        ranks.append(take(4, toy))
    together = [sample[0] for step in zip(*ranks, strict=True) for sample in flat(step)]
    assert {len(batch) for batches in ranks for batch in batches} == {2}
    assert together == alone


@pytest.mark.parametrize(("total", "world"), [(3, 2), (0, 1)])
def test_batch_that_cannot_be_shared(toy, monkeypatch, total, world):
    toy.SOLVER.IMS_PER_BATCH = total
    monkeypatch.setattr(module.comm, "get_world_size", lambda: world)
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


class OneError(torch.utils.data.Dataset):
    """A worker asks for it, and its hand-over thread reports `error`."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, key):
        try:
            raise self.error
        except type(self.error):
            sys.excepthook(*sys.exc_info())  # as multiprocessing.resource_sharer does
        return 5


@pytest.mark.parametrize("error", [ConnectionResetError("peer"), ValueError("a real fault")])
def test_a_worker_whose_trainer_is_gone_prints_no_traceback(capfd, error):
    assert list(module.Loader(OneError(error), num_workers=1, batch_size=1)) == [[5]]
    assert ("Traceback" in capfd.readouterr().err) == isinstance(error, ValueError)
