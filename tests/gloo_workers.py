"""What the processes of distributed tests run; spawned processes import it by name."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from psis_d2.data import get_training_dicts
from psis_d2.data.mapper import PartialMaskMapper
from psis_d2.engine.stages import train_only
from psis_d2.engine.trainer import wrap_for_distribution
from psis_d2.modeling.mask_heads.base import prepare_mask_head
from psis_d2.modeling.mask_heads.blocks import conv_tower

import torch
from detectron2.modeling import build_model
from detectron2.utils import comm

from head_contract import (
    FILES,
    contract_config,
    contract_model,
    register_data,
    registered_files,
)
from model_builders import (
    CPMASK,
    OPMASK,
    SHAPEMASK,
    TEACHER_STUDENT,
    partial_batch,
    tiny_model,
    training_losses,
)


def run_in_two_processes(worker: str, folder: Path, names: list[str]) -> None:
    """Run a function of this module, worker(folder, names), on two ranks.

    They get a parent of their own, which can be stopped if they wait forever.
    """
    code = (
        "import psis_d2\n"
        f"from gloo_workers import {worker} as worker\n"
        "from psis_d2.engine.launch import launch\n"
        f"launch(worker, num_cpu_processes=2, args=({str(folder)!r}, {names!r}))\n"
    )
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests.parent), str(tests)])
    subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        timeout=400,
        check=True,
    )


def _steps(model: torch.nn.Module, garbage_seed: int | None = None) -> Iterator[dict]:
    """Steps of SGD on masks that rank 0 alone sees; the losses of each.

    Args:
        model: distributed.
        garbage_seed: of what stands in masks that nobody may see; None for nothing.
    """
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.01)
    for step in itertools.count():
        flags = [[True, False], [True]] if comm.get_rank() == 0 else [[False, False], [False]]
        batch = partial_batch(flags, seed=step, garbage_seed=garbage_seed)
        losses = training_losses(model, batch, seed=step)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        yield losses


def _train(model: torch.nn.Module, steps: int) -> dict:
    """The losses of the last of so many steps."""
    return next(itertools.islice(_steps(model), steps - 1, None))


def train_with_masks_on_rank_zero(folder: str, overrides: tuple, part: str) -> None:
    """Three steps of a part of the model; rank 0 sees masks, rank 1 never does.

    Each rank saves its parameters.
    """
    rank = comm.get_rank()
    model = tiny_model(*overrides, seed=rank)
    train_only(model, part)
    model = wrap_for_distribution(model)
    losses = _train(model, steps=3)
    state = {"mask_loss": losses["loss_mask"].item(), "model": model.module.state_dict()}
    torch.save(state, f"{folder}/rank{rank}.pth")


def train_heads_with_masks_on_rank_zero(folder: str, configs: list[str]) -> None:
    """Two steps of each config's model; rank 0 sees masks, rank 1 never does.

    Each rank saves {config: the parameters before and after, "clean" and "dirty"}; the last two are
    the losses and the parameters of the first step, without and with garbage in masks that nobody
    may see.
    """
    rank, found = comm.get_rank(), {}
    register_data(Path(folder))
    for config in configs:
        model = wrap_for_distribution(contract_model(config, Path(folder), seed=rank))
        start = _copy_of_parameters(model)
        steps = _steps(model)
        clean = {**next(steps), **_copy_of_parameters(model)}
        next(steps)
        trained = _copy_of_parameters(model)
        # rank 0's first parameters are everybody's
        other = wrap_for_distribution(contract_model(config, Path(folder), seed=rank))
        dirty = {**next(_steps(other, garbage_seed=5)), **_copy_of_parameters(other)}
        found[config] = {"start": start, "trained": trained, "clean": clean, "dirty": dirty}
    torch.save(found, f"{folder}/heads{rank}.pth")


def _copy_of_parameters(model: torch.nn.Module) -> dict:
    return {name: p.detach().clone() for name, p in model.module.named_parameters()}


def train_on_files(folder: str, configs: list[str]) -> None:
    """A step of each config's model on the files of :func:`head_contract.write_files`.

    Both ranks make what a head prepares, and GrabCut masks for objects without a mask, at the same
    time in the same folder. Each rank saves {kind of files: {config: losses and gradients}}, of the
    other masks with the first config alone.
    """
    rank, found = comm.get_rank(), {}
    for kind in FILES:
        place = Path(folder, kind)
        found[kind] = {}
        with registered_files(place) as name:
            for config in configs[: None if kind != "other" else 1]:
                found[kind][config] = _losses_on_files(config, place, name, rank)
    torch.save(found, f"{folder}/files{rank}.pth")


def _losses_on_files(config: str, place: Path, name: str, rank: int) -> dict:
    keys = ("DATASETS.TRAIN", (name,), "PSIS.SEEN_CLASSES", str(place.parent / "seen.txt"))
    keys += ("PSIS.MISSING_MASKS", "grabcut", "PSIS.CACHE_DIR", str(place / "cache"))
    # an oracle may see all masks
    keys += ("PSIS.ORACLE", False, "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.RANDOM_FLIP", "none")
    cfg = contract_config(config, place / "out" / Path(config).stem, *keys)
    prepare_mask_head(cfg)
    mapper = PartialMaskMapper(cfg)
    batch = [mapper(record) for record in get_training_dicts(cfg)[rank::2]]
    torch.manual_seed(rank)
    model = wrap_for_distribution(build_model(cfg))
    losses = training_losses(model, batch)
    sum(losses.values()).backward()
    return losses | {name: p.grad for name, p in model.module.named_parameters()}


def report_groups(folder: str) -> None:
    """Each rank writes what Detectron2 believes about the processes."""
    facts = (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size())
    torch.save(facts, f"{folder}/facts{comm.get_rank()}.pth")


def train_synchronized_heads(folder: str, names: list[str]) -> None:
    """Two steps of mask heads with synchronized norms; rank 0 sees masks, rank 1 never does.

    Each rank saves what a tower makes of three regions on rank 0 and none on rank 1, and {name: the
    mask loss and the model}.
    """
    rank, found = comm.get_rank(), {}
    torch.manual_seed(0)
    tower = conv_tower(4, 4, 2, "SyncBN").train()
    x = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    x = (x if rank == 0 else x[:0]).requires_grad_()
    output = tower(x)
    output.square().sum().backward()
    found["tower"] = {"output": output.detach(), "gradient": x.grad, "state": tower.state_dict()}
    synchronized = ("MODEL.ROI_MASK_HEAD.NORM", "SyncBN")
    keys = {
        "fcn": (),
        "opmask": (*OPMASK, "MODEL.ROI_BOX_HEAD.NORM", "SyncBN"),
        "cpmask": (
            *(*CPMASK, "PSIS.CPMASK.FUSION_NORM", "SyncBN"),
            *("PSIS.CPMASK.AFFINITY_NORM", "SyncBN"),
        ),
        "shapemask": SHAPEMASK,
        "teacher_student": TEACHER_STUDENT,
    }
    for name in names:
        model = wrap_for_distribution(tiny_model(*keys[name], *synchronized, seed=rank))
        losses = _train(model, steps=2)
        state = model.module.state_dict()
        found[name] = {"mask_loss": losses["loss_mask"].item(), "model": state}
    torch.save(found, f"{folder}/synchronized{rank}.pth")
