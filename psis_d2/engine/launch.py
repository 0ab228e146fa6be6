"""Start the processes of a run: one, several GPUs, several machines, torchrun, or CPU processes."""

import os
from collections.abc import Callable
from datetime import timedelta

from psis_d2.errors import UserError

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm

_TIMEOUT = timedelta(minutes=30)


def launch(
    main: Callable,
    *,
    num_gpus: int = 0,
    num_cpu_processes: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple = (),
) -> None:
    """Call ``main(*args)`` in every process of the run.

    * Under torchrun (``WORLD_SIZE`` in the environment) this process joins the group that the
      environment describes.
    * With GPUs, Detectron2's launcher starts one process each.
    * Without, ``num_cpu_processes`` processes talk through gloo (Detectron2 v0.6 cannot).

    Args:
        main: a function that can be pickled.
        num_gpus: GPUs of each machine, 0 for the CPU.
        num_cpu_processes: processes of each machine when ``num_gpus`` is 0.
        num_machines, machine_rank: as in Detectron2.
        dist_url: where the processes meet; "auto" = a free port of this machine.
        args: arguments of `main`.
    """
    under_torchrun = "WORLD_SIZE" in os.environ and "RANK" in os.environ
    if num_machines > 1 and dist_url == "auto" and not under_torchrun:
        raise UserError("--dist-url is needed with --num-machines > 1: give tcp://HOST:PORT.")
    if under_torchrun:
        _join_from_environment(num_gpus)
        main(*args)
        dist.destroy_process_group()
    elif num_gpus > 0:
        detectron2_launch(
            main,
            num_gpus,
            num_machines=num_machines,
            machine_rank=machine_rank,
            dist_url=dist_url,
            args=args,
        )
    elif num_cpu_processes * num_machines > 1:
        if dist_url == "auto":
            dist_url = f"tcp://127.0.0.1:{_free_port()}"
        world = num_cpu_processes * num_machines
        first = machine_rank * num_cpu_processes
        mp.start_processes(
            _cpu_worker,
            args=(main, world, first, num_cpu_processes, dist_url, args),
            nprocs=num_cpu_processes,
            start_method="spawn",
        )
    else:
        main(*args)


def _cpu_worker(
    local_rank: int,
    main: Callable,
    world_size: int,
    first_rank: int,
    per_machine: int,
    dist_url: str,
    args: tuple,
) -> None:
    # The processes share the machine's cores instead of each claiming all of them.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // per_machine))
    dist.init_process_group(
        "gloo",
        init_method=dist_url,
        world_size=world_size,
        rank=first_rank + local_rank,
        timeout=_TIMEOUT,
    )
    _create_local_group(per_machine)
    main(*args)
    dist.destroy_process_group()


def _join_from_environment(num_gpus: int) -> None:
    """Join the process group that torchrun describes in the environment."""
    on_gpu = num_gpus > 0
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if on_gpu:
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started process {local_rank} on a machine with "
                f"{torch.cuda.device_count()} GPUs; lower --nproc_per_node."
            )
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if on_gpu else "gloo", init_method="env://", timeout=_TIMEOUT)
    _create_local_group(int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size())))


def _create_local_group(per_machine: int) -> None:
    """Tell Detectron2 which processes share a machine."""
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(per_machine)
        return
    for start in range(0, dist.get_world_size(), per_machine):
        ranks = list(range(start, start + per_machine))
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group


def _free_port() -> int:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
