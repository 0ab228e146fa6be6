import itertools
from collections import Counter

import psis_d2  # noqa: F401  (before detectron2)
from psis_d2.data.samplers import TrainingBatches

import pytest
import torch


def take(count, *args, **options):
    return list(itertools.islice(TrainingBatches(*args, **options), count))


def test_every_epoch_is_another_permutation():
    draws, indices = zip(*itertools.chain(*take(15, 10, 2, seed=1)), strict=True)
    epochs = [indices[:10], indices[10:20], indices[20:]]
    assert draws == tuple(range(30))
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(epochs)) == 3


def test_the_seed_decides():
    assert take(5, 10, 2, seed=1) == take(5, 10, 2, seed=1) != take(5, 10, 2, seed=2)


def test_the_global_random_numbers_are_left_alone():
    state = torch.get_rng_state()
    take(20, 10, 2, seed=1, repeat_factors=torch.full((10,), 1.5))
    assert torch.equal(torch.get_rng_state(), state)


OPTIONS = {
    "plain": {},
    "groups": {"groups": [0, 1, 1, 0, 1, 1, 1, 0, 1, 1]},
    "repeats": {"repeat_factors": torch.linspace(1, 3, 10)},
    "both": {"groups": [0, 1] * 5, "repeat_factors": torch.linspace(1, 3, 10)},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("start", [0, 1, 13])
def test_a_late_start_continues_the_stream(name, start):
    whole = take(30, 10, 3, seed=4, **OPTIONS[name])
    assert take(30 - start, 10, 3, seed=4, start=start, **OPTIONS[name]) == whole[start:]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("start", [0, 5])
def test_ranks_share_out_one_stream(name, start):
    alone = take(30, 10, 2, seed=4, start=3 * start, **OPTIONS[name])
    ranks = [
        take(10, 10, 2, seed=4, start=start, rank=rank, world_size=3, **OPTIONS[name])
        for rank in range(3)
    ]
    assert list(itertools.chain(*zip(*ranks, strict=True))) == alone


def test_groups_do_not_mix_and_nothing_is_lost():
    groups = [0, 1, 1, 0, 1, 1, 1, 0, 1, 1]
    batches = take(60, 10, 4, seed=0, groups=groups)
    assert {len({groups[index] for _, index in batch}) for batch in batches} == {1}
    draws = [draw for batch in batches for draw, _ in batch]
    assert len(set(draws)) == len(draws)
    # Both groups wait for at most three more images.
    assert max(draws) <= len(draws) - 1 + 6
    counts = Counter(index for batch in batches for _, index in batch)
    assert set(counts) == set(range(10)) and max(counts.values()) - min(counts.values()) <= 2


def test_repeat_factors_are_met_exactly_or_on_average():
    factors = torch.tensor([1.0, 2.0, 1.5, 3.25])
    batches = take(7750, 4, 1, seed=0, repeat_factors=factors)
    counts = Counter(index for ((_, index),) in batches)
    # 7.75 draws an epoch: about 1000 epochs.
    epochs = counts[0]
    assert counts[1] - 2 * epochs in range(-2, 3)
    assert counts[2] / epochs == pytest.approx(1.5, abs=0.06)
    assert counts[3] / epochs == pytest.approx(3.25, abs=0.06)
