"""Samples that depend on their draw only, and a loader with readable errors."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator

from psis_d2.errors import UserError

import numpy as np
import torch
from detectron2.data import DatasetFromList
from torch.utils.data import DataLoader, Dataset


class SeededDataset(Dataset):
    """Map dataset dicts so that a sample depends on its draw and on nothing else.

    Augmentations use the global random number generators of Python, NumPy and torch. They are
    seeded for each sample and set back afterwards: what the caller draws later does not depend on
    whether samples are made in its process or in workers.
    """

    def __init__(self, dicts: list[dict], mapper: Callable[[dict], dict], seed: int):
        """Keep the dicts serialized, which workers share instead of copying.

        Args:
            dicts: standard dataset dicts.
            mapper: makes a sample of one of them.
            seed: combined with the number of the draw.
        """
        self._dicts = DatasetFromList(dicts, copy=False, serialize=True)
        self._mapper = mapper
        self._seed = seed

    def __len__(self) -> int:
        return len(self._dicts)

    def __getitem__(self, key: int | tuple[int, int]) -> dict | UserError:
        """Sample of ``(draw, index)``, or of an index that is its own draw.

        A :class:`UserError` is returned, not raised: torch would turn one that leaves a worker into
        a page of traceback. :class:`Loader` raises it.
        """
        draw, index = key if isinstance(key, tuple) else (key, key)
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        digest = hashlib.sha256(f"{self._seed}:{draw}".encode()).digest()
        sample_seed = int.from_bytes(digest[:4], "little")
        random.seed(sample_seed)
        np.random.seed(sample_seed)
        # Not torch.manual_seed, which would reseed the GPU of the caller too.
        torch.default_generator.manual_seed(sample_seed)
        try:
            return self._mapper(self._dicts[index])
        except UserError as error:
            return error
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])


class Loader:
    """torch's ``DataLoader`` over a :class:`SeededDataset`, with readable errors.

    Batches are plain lists. Starting it draws from no global random number generator.
    """

    def __init__(self, dataset: SeededDataset, *, num_workers: int = 0, **options):
        """Wrap a loader.

        Args:
            dataset: the samples.
            num_workers: processes that make samples; 0 makes them here, with the same result.
            **options: ``batch_sampler``, or ``sampler`` and ``batch_size``, of torch's loader.
        """
        self.dataset = dataset
        self._loader = DataLoader(
            dataset,
            num_workers=num_workers,
            collate_fn=_as_list,
            generator=torch.Generator().manual_seed(0),
            worker_init_fn=_leave_group,
            **options,
        )

    def __len__(self) -> int:
        """Number of batches; training data has none, as it never ends."""
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self._loader:
            for sample in batch:
                if isinstance(sample, UserError):
                    raise sample
            yield batch


def _leave_group(worker_id: int) -> None:
    """What a terminal sends to all processes is for the one that trains, which ends its workers."""
    os.setpgid(0, 0)


def _as_list(batch: list) -> list:
    return batch
