"""A model whose loss is a mean over images, and processes that train it."""

from psis_d2.engine.loop import TrainingLoop
from psis_d2.engine.trainer import wrap_for_distribution

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook


class Regression(torch.nn.Module):
    """Mean squared error over images: exactly what a mean over parts adds up to."""

    def __init__(self, features: int = 3):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(features, 1)
        self.sizes = []

    def forward(self, batch):
        self.sizes.append(len(batch))
        x = torch.stack([item["x"] for item in batch])
        y = torch.stack([item["y"] for item in batch])
        error = (self.layer(x).squeeze(1) - y) ** 2
        return {"loss_a": error.mean(), "loss_b": 0.1 * error.sqrt().mean()}


def numbers(n: int) -> list[dict]:
    """A batch of `n` "images"."""
    torch.manual_seed(3)
    return [{"x": torch.randn(3), "y": torch.randn(())} for _ in range(n)]


def train(model, batches, parts=1, dtype=None) -> dict:
    """One step a batch; the last logged losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loop = TrainingLoop(model, batches, optimizer, parts, dtype)
    with EventStorage() as storage:
        for _ in batches:
            loop.run_step()
        return {name: value for name, (value, _) in storage.latest().items()}


def train_share_in_parts(folder: str) -> None:
    """Two steps on this process's half of eight images, in two parts."""
    rank = comm.get_rank()
    model = wrap_for_distribution(Regression())
    exchanges = []

    def count(state, bucket):
        exchanges.append(bucket.index())
        return allreduce_hook(state, bucket)

    model.register_comm_hook(None, count)
    train(model, [numbers(8)[4 * rank : 4 * rank + 4]] * 2, parts=2)
    weight = model.module.layer.weight.detach()
    torch.save({"weight": weight, "exchanges": len(exchanges)}, f"{folder}/rank{rank}.pth")
