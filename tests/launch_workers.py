"""What the processes of the launcher's tests run, without a model: ways to end, and to hang."""

import os
import signal
import sys
import time
from pathlib import Path

from psis_d2.engine.launch import launch
from psis_d2.errors import UserError, exit_on_user_error

import torch
import torch.distributed as dist


def run(argument: tuple[str, str, float]) -> None:
    """Two processes that end or hang in the way that is named, as an entry point starts them."""
    how, folder, timeout = argument
    with exit_on_user_error():
        launch(work, num_cpu_processes=2, args=(how, folder), timeout=timeout)


def work(how: str, folder: str) -> None:
    """Exchange numbers without end; process 1 does what is named."""
    rank = dist.get_rank()
    for step in range(1_000_000):
        dist.all_reduce(torch.ones(1))
        if step == 3:
            Path(folder, f"pid{rank}").write_text(str(os.getpid()))
        if step == 5 and (rank == 1 or how == "both refuse"):
            act(how)
        time.sleep(0.01)


def act(how: str) -> None:
    """End or hang."""
    if how in ("refuse", "both refuse"):
        raise UserError("The weights are of cheese.")
    if how == "leave":
        sys.exit(7)
    if how == "crash":
        raise ZeroDivisionError("a fault of the code")
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "hang":
        time.sleep(1000)
