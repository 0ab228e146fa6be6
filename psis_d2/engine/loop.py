"""One step of training: a batch in parts, in the number format that the config chooses."""

import contextlib
import logging
import time
from collections import defaultdict

from psis_d2.engine.non_finite import FiniteLosses
from psis_d2.errors import UserError, check_choice

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

logger = logging.getLogger(__name__)

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class TrainingLoop(FiniteLosses, SimpleTrainer):
    """Detectron2's loop with gradient accumulation and autocast on any device.

    A process's share of a batch goes through the model in parts; the gradients add up to those of
    the mean over its images. Parameters, their gradients and the optimizer stay float32.

    Args:
        model: the model, wrapped for several processes or not.
        data_loader: gives lists of images.
        optimizer: of the model's parameters.
        parts: how many parts a process's share of a batch is divided into.
        dtype: what autocast computes in, None for float32.
    """

    def __init__(self, model, data_loader, optimizer, parts: int = 1, dtype=None):
        super().__init__(model, data_loader, optimizer)
        self.parts = parts
        self.dtype = dtype
        self.device = next(model.parameters()).device.type
        # float16 alone has so short a range that small gradients vanish
        self.scaler = torch.amp.GradScaler(self.device, enabled=dtype is torch.float16)

    def run_step(self):
        """Load a batch, add up its gradients part by part, and make one step."""
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        losses = defaultdict(float)
        parts = split(batch, self.parts)
        for number, part in enumerate(parts, 1):
            share = len(part) / len(batch)
            with self._no_exchange(last=number == len(parts)):
                with torch.autocast(self.device, dtype=self.dtype, enabled=self.dtype is not None):
                    found = self.model(part)
                    total = sum(found.values()) * share
                self.scaler.scale(total).backward()
            for name, loss in found.items():
                losses[name] = losses[name] + loss.detach() * share
        self._write_metrics(losses, data_time)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self):
        """Detectron2's, with the loss scale of float16 where it has it."""
        state = super().state_dict()
        return {**state, "grad_scaler": self.scaler.state_dict()} if self._scales else state

    def load_state_dict(self, state_dict):
        """The counterpart; a checkpoint of another number format goes on with a new scale."""
        super().load_state_dict(state_dict)
        if self._scales and "grad_scaler" in state_dict:
            self.scaler.load_state_dict(state_dict["grad_scaler"])

    @property
    def _scales(self) -> bool:
        return self.scaler.is_enabled()

    def _no_exchange(self, last: bool):
        """Processes exchange gradients once a step, with the last part."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()


def split(batch: list, parts: int) -> list[list]:
    """A batch in parts of (almost) one size, none of them empty."""
    parts = min(parts, len(batch))
    bounds = [round(i * len(batch) / parts) for i in range(parts + 1)]
    return [batch[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


def build_loop(cfg, model, data_loader, optimizer) -> TrainingLoop:
    """The loop that a config asks for.

    Raises:
        UserError: the batch cannot be divided so, or the number format is unknown.
    """
    solver = cfg.SOLVER
    images = solver.IMS_PER_BATCH // comm.get_world_size()
    if solver.ACCUMULATE != 1 and not 1 < solver.ACCUMULATE <= images:
        raise UserError(
            f"SOLVER.ACCUMULATE is {solver.ACCUMULATE}, but a process has {images} images of a "
            f"batch of {solver.IMS_PER_BATCH}; choose 1 to {images}."
        )
    dtype = None
    if solver.AMP.ENABLED:
        check_choice("SOLVER.AMP.DTYPE", solver.AMP.DTYPE, DTYPES)
        dtype = DTYPES[solver.AMP.DTYPE]
        if dtype is torch.float16 and not next(model.parameters()).is_cuda:
            logger.warning(
                "SOLVER.AMP.DTYPE float16 needs a CUDA GPU: this run computes in float32; bfloat16 "
                "is there for the CPU, too."
            )
            dtype = None
    return TrainingLoop(model, data_loader, optimizer, solver.ACCUMULATE, dtype)
