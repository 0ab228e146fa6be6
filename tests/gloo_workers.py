"""What the processes of distributed tests run; spawned processes import it by name."""

from pathlib import Path

from psis_d2.engine.stages import train_only
from psis_d2.engine.trainer import wrap_for_distribution

import torch
from detectron2.utils import comm

from head_contract import contract_model, register_data
from model_builders import partial_batch, tiny_model, training_losses


def train(model: torch.nn.Module, steps: int) -> dict:
    """The last losses of a distributed model; rank 0 sees masks, the others never do."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    flags = [[True, False], [True]] if comm.get_rank() == 0 else [[False, False], [False]]
    for step in range(steps):
        losses = training_losses(model, partial_batch(flags, seed=step), seed=step)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    return losses


def train_with_masks_on_rank_zero(folder: str, overrides: tuple, part: str) -> None:
    """Three steps of a part of the model; rank 0 sees masks, rank 1 never does.

    Each rank saves its parameters.
    """
    rank = comm.get_rank()
    model = tiny_model(*overrides, seed=rank)
    train_only(model, part)
    model = wrap_for_distribution(model)
    losses = train(model, steps=3)
    state = {"mask_loss": losses["loss_mask"].item(), "model": model.module.state_dict()}
    torch.save(state, f"{folder}/rank{rank}.pth")


def train_heads_with_masks_on_rank_zero(folder: str, configs: list[str]) -> None:
    """Two steps of each config's model; rank 0 sees masks, rank 1 never does.

    Each rank saves {config: the parameters before and after}.
    """
    rank, found = comm.get_rank(), {}
    register_data(Path(folder))
    for config in configs:
        model = wrap_for_distribution(contract_model(config, Path(folder), seed=rank))
        start = {name: p.detach().clone() for name, p in model.module.named_parameters()}
        train(model, steps=2)
        trained = {name: p.detach() for name, p in model.module.named_parameters()}
        found[config] = {"start": start, "trained": trained}
    torch.save(found, f"{folder}/heads{rank}.pth")


def report_groups(folder: str) -> None:
    """Each rank writes what Detectron2 believes about the processes."""
    facts = (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size())
    torch.save(facts, f"{folder}/facts{comm.get_rank()}.pth")
