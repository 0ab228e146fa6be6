"""The data loaders of a config: samples depend on their draw only, and errors are readable."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import sys
from collections.abc import Callable, Iterator

from psis_d2.data.catalog import forget_dataset_dicts
from psis_d2.data.classes import get_model_dicts
from psis_d2.data.mapper import PartialMaskMapper
from psis_d2.data.samplers import TrainingBatches
from psis_d2.data.training_set import get_training_dicts
from psis_d2.errors import UserError

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.data.samplers import InferenceSampler, RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset


def build_train_loader(
    cfg, start_iter: int = 0, mapper: Callable[[dict], dict] | None = None
) -> Loader:
    """The endless training data of this process.

    Batch ``k`` depends on the config and on ``SEED`` only: not on the number of workers, not on
    where training was resumed, not on the random numbers the model draws. (A negative ``SEED``
    means a random one, shared by all processes.) With ``DATALOADER.ASPECT_RATIO_GROUPING`` a batch
    has only images wider than high, or only others.

    Args:
        cfg: the config; ``SOLVER.IMS_PER_BATCH`` counts the images of all processes.
        start_iter: iteration to begin with; earlier batches are skipped without reading images.
        mapper: makes a sample of a dataset dict; by default a :class:`PartialMaskMapper`.

    Returns:
        An iterable of lists of ``IMS_PER_BATCH / number of processes`` mapped samples. Each
        ``iter()`` begins at ``start_iter``.

    Raises:
        UserError: the data or the config is not usable.
    """
    world_size = comm.get_world_size()
    total = cfg.SOLVER.IMS_PER_BATCH
    if total < 1 or total % world_size:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {total} and cannot be shared evenly by {world_size} "
            f"processes; choose a multiple of {world_size}."
        )
    dicts = get_training_dicts(cfg)
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    groups = None
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        groups = [int(record["width"] > record["height"]) for record in dicts]
    batches = TrainingBatches(
        len(dicts),
        total // world_size,
        seed=seed,
        start=start_iter,
        rank=comm.get_rank(),
        world_size=world_size,
        groups=groups,
        repeat_factors=_repeat_factors(cfg, dicts),
    )
    dataset = SeededDataset(dicts, mapper or PartialMaskMapper(cfg, is_train=True), seed)
    # The data set has its own copy, and training reads no other.
    forget_dataset_dicts(set(cfg.DATASETS.TRAIN) - set(cfg.DATASETS.TEST))
    return Loader(dataset, num_workers=cfg.DATALOADER.NUM_WORKERS, batch_sampler=batches)


def build_test_loader(
    cfg, name: str, with_boxes: bool = False, dicts: list[dict] | None = None
) -> Loader:
    """The images of one data set, one a batch, shared by the processes.

    Args:
        cfg: the config.
        name: the data set.
        with_boxes: whether samples carry the annotated boxes, (the model's) classes and ids as
            ``instances``.
        dicts: what :func:`get_dataset_dicts` returns for the name, if that was read already; they
            become the loader's.

    Returns:
        A finite iterable, with ``len()``, of lists of one mapped sample.

    Raises:
        UserError: the data is not usable, or has a category that is none of the model's classes.
    """
    dicts = get_model_dicts(cfg, name, dicts)
    if not dicts:
        raise UserError(f"Data set '{name}' has no images to evaluate on.")
    mapper = PartialMaskMapper(cfg, is_train=False, with_boxes=with_boxes)
    return Loader(
        SeededDataset(dicts, mapper, seed=0),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        batch_size=1,
        sampler=InferenceSampler(len(dicts)),
    )


def _repeat_factors(cfg, dicts: list[dict]) -> torch.Tensor | None:
    sampler = cfg.DATALOADER.SAMPLER_TRAIN
    if sampler == "TrainingSampler":
        return None
    if sampler == "RepeatFactorTrainingSampler":
        # Newer versions of Detectron2 have this option and pass it on in the same way.
        options = {}
        if "REPEAT_SQRT" in cfg.DATALOADER:
            options["sqrt"] = cfg.DATALOADER.REPEAT_SQRT
        return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dicts, cfg.DATALOADER.REPEAT_THRESHOLD, **options
        )
    raise UserError(
        f"DATALOADER.SAMPLER_TRAIN is '{sampler}'; known are TrainingSampler and "
        "RepeatFactorTrainingSampler."
    )


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
            worker_init_fn=_begin_worker,
            **options,
        )

    def __len__(self) -> int:
        """Number of batches; training data has none, as it never ends."""
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in _naming_lost_workers(iter(self._loader)):
            for sample in batch:
                if isinstance(sample, UserError):
                    raise sample
            yield batch


def _naming_lost_workers(batches: Iterator[list]) -> Iterator[list]:
    """The batches; a worker that dies while it hands one over is PyTorch's error for dead workers.

    PyTorch itself sees there a connection that ends, in one of several ways.
    """
    try:
        yield from batches
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        if "DataLoader worker" in str(error):  # PyTorch has named it
            raise
        workers = getattr(batches, "_workers", ())
        for worker in workers:  # a killed process may take a moment to be seen as gone
            worker.join(timeout=0.5)
        gone = [worker.pid for worker in workers if not worker.is_alive()]
        if not gone:
            raise
        pids = ", ".join(map(str, gone))
        raise RuntimeError(f"DataLoader worker (pid(s) {pids}) exited unexpectedly") from error


def _begin_worker(worker_id: int) -> None:
    # What a terminal sends to all processes is for the one that trains, which ends its workers.
    os.setpgid(0, 0)
    sys.excepthook = _report_error


def _report_error(kind: type[BaseException], error: BaseException, trace) -> None:
    """Print an error of a worker, but not that nobody takes its batches any more.

    The thread that hands them over reports every error here. When the process that trains was
    killed, the launcher says so; a page of Python's own before that sentence would hide it.
    """
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _as_list(batch: list) -> list:
    return batch
