"""Which images come when: decided by index alone, so that training resumes exactly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch


class TrainingBatches:
    """An endless, seeded stream of batches of ``(draw, index)``; torch's ``batch_sampler``.

    ``index`` is a position in the data set and ``draw`` counts the draws of all ranks since the
    start of training; it seeds the augmentation of that draw. Every epoch is a new permutation.
    The batches of all ranks are cut from one stream and dealt out in turn, so ranks never share a
    draw and a batch depends on nothing but the arguments.

    Iterating starts at batch ``start`` each time; the batches before are counted through, which
    reads no image.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        groups: Sequence[int] | None = None,
        repeat_factors: torch.Tensor | None = None,
    ):
        """Describe the stream.

        Args:
            size: number of images.
            batch_size: images a batch of one rank.
            seed: the same on all ranks.
            start: number of this rank's batches to skip.
            rank: this process.
            world_size: number of processes.
            groups: for each image the number of its group; a batch then has images of one group.
            repeat_factors: float tensor (size,): how often an image comes in an epoch, at least 1;
                a fraction is rounded up with that probability, anew in each epoch. None: once.
        """
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.rank = rank
        self.world_size = world_size
        self.groups = groups
        self.repeat_factors = repeat_factors

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first = self.start * self.world_size + self.rank
        return itertools.islice(self._all_batches(), first, None, self.world_size)

    def _all_batches(self) -> Iterator[list[tuple[int, int]]]:
        filling: dict[int, list[tuple[int, int]]] = {}
        for draw, index in enumerate(self._indices()):
            group = 0 if self.groups is None else self.groups[index]
            batch = filling.setdefault(group, [])
            batch.append((draw, index))
            if len(batch) == self.batch_size:
                yield filling.pop(group)

    def _indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            epoch = torch.arange(self.size)
            if self.repeat_factors is not None:
                whole = self.repeat_factors.floor()
                chance = torch.rand(self.size, generator=generator)
                times = whole + (chance < self.repeat_factors - whole)
                epoch = epoch.repeat_interleave(times.long())
            yield from epoch[torch.randperm(len(epoch), generator=generator)].tolist()
