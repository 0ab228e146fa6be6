"""What a run needs of the machine, seen to before it begins: disk, open files, memory."""

import ctypes
import functools
import logging
import os
import resource
import shutil

from psis_d2.errors import UserError

import torch
from detectron2.utils.events import EventStorage
from fvcore.common.history_buffer import HistoryBuffer

logger = logging.getLogger(__name__)

# A worker's pipes, queue and semaphores, and the samples that it hands over.
_FILES_PER_WORKER = 16
_FILES = 64  # what Python, PyTorch, logs and the process group keep open
_ENOUGH_FILES = 65536
# Values of a metric that are kept: Detectron2's estimate of the time left looks at so many.
_HISTORY = 1000
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_NEVER = -1


def checkpoint_bytes(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """About the size of a checkpoint: the weights, and what the optimizer keeps for each."""
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    size = weights
    for group in optimizer.param_groups:
        copies = 2 if "betas" in group else int(bool(group.get("momentum")))
        size += copies * sum(p.numel() * p.element_size() for p in group["params"])
    return size


def check_disk(folder: str, size: int, count: int) -> None:
    """Compare the free disk with the checkpoints to come.

    Room for fewer than all of them is a warning, as somebody may remove the older ones; without
    room for the first, and for the one that is written before that goes, there is no training.

    Args:
        folder: where they are written; addresses of other storage are not looked at.
        size: bytes of one.
        count: how many there will be.

    Raises:
        UserError: not even the first fits.
    """
    if not folder or "://" in folder:
        return
    free = shutil.disk_usage(folder).free
    asked = f"{count} checkpoints of {_megabytes(size)}, and {_megabytes(free)} are free"
    if free < min(count, 2) * size:
        raise UserError(
            f"OUTPUT_DIR {folder} has no room: the run writes {asked}; make room or give another "
            "OUTPUT_DIR."
        )
    if free < count * size:
        logger.warning(
            "OUTPUT_DIR %s will be full before the end: the run writes %s; make room, or raise "
            "SOLVER.CHECKPOINT_PERIOD.",
            folder,
            asked,
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def allow_open_files(workers: int) -> None:
    """Raise this process's limit of open files as far as it may, and see that it is enough.

    Args:
        workers: processes of the data loader.

    Raises:
        UserError: the workers cannot even start.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = _ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < highest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
        soft = highest
    needed = _FILES + _FILES_PER_WORKER * workers
    if soft != resource.RLIM_INFINITY and soft < needed:
        raise UserError(
            f"This shell allows {soft} open files, and {workers} workers of the data loader need "
            f"some {needed}; raise the limit (ulimit -n 4096) or lower DATALOADER.NUM_WORKERS."
        )


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for the tensors of its next step.

    glibc asks the system for every block above 32 MB and gives it back at once: the next step's is
    filled with zeros again, page by page. On a CPU that was a tenth of MaskX's training step. The
    process is larger for it, that one by an eighth: free blocks lie between others. Workers of the
    data loader inherit this. Settings of the allocator in the environment (MALLOC_ARENA_MAX, for
    example) and other allocators stay as they are.

    Returns:
        Whether something was changed.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's alone
    if mallopt is None:
        return False
    # No block by mmap; what is free at the heap's end stays there.
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))


def forget_old_metrics(storage: EventStorage) -> None:
    """Keep the last values of every metric only.

    Detectron2 keeps a million of each, some 2 kB an iteration, though nobody reads them: gigabytes
    in a long training.

    Args:
        storage: of a training that begins.
    """
    storage.histories().default_factory = functools.partial(HistoryBuffer, max_length=_HISTORY)
