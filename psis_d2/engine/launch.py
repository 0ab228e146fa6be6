"""Start the processes of a run: one, several GPUs, several machines, torchrun, or CPU processes.

All of them end together: one that dies or hangs ends the others, a signal to the parent reaches
all, and none outlives its parent.
"""

import contextlib
import functools
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait

from psis_d2.engine import signals
from psis_d2.engine.signals import SignalGate, die_with_parent
from psis_d2.errors import LostProcess, UserError, as_user_error

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

TIMEOUT = 1800.0
"""Seconds after which a process that keeps the others waiting counts as hanging, by default."""

# After the first process has failed, the others get so long to say what they know ...
_LAST_WORDS = 5.0
# ... and after a signal so long to write a checkpoint and leave.
_GRACE = 40.0
# So long torchrun may not answer before it counts as gone.
_AGENT_SECONDS = 5.0


def launch(
    main: Callable,
    *,
    num_gpus: int = 0,
    num_cpu_processes: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple = (),
    timeout: float = TIMEOUT,
) -> None:
    """Call ``main(*args)`` in every process of the run.

    * Under torchrun (``WORLD_SIZE`` in the environment) this process joins the group that the
      environment describes.
    * With several GPUs, one process each is spawned; they talk through NCCL.
    * Without, ``num_cpu_processes`` processes talk through gloo.

    Args:
        main: a function that can be pickled.
        num_gpus: GPUs of each machine, 0 for the CPU.
        num_cpu_processes: processes of each machine when ``num_gpus`` is 0.
        num_machines, machine_rank: as in Detectron2.
        dist_url: where the processes meet; "auto" = a free port of this machine.
        args: arguments of `main`.
        timeout: seconds that processes wait for each other before one counts as hanging.

    Raises:
        UserError: what a process raised, once for all of them.
        LostProcess: a process has died or hangs; it is named.
        SystemExit: a process has ended with a status, or a signal has ended the run (128 + it).
    """
    under_torchrun = _under_torchrun()
    if num_machines > 1 and dist_url == "auto" and not under_torchrun:
        raise UserError("--dist-url is needed with --num-machines > 1: give tcp://HOST:PORT.")
    per_machine = num_gpus or num_cpu_processes
    if under_torchrun:
        _join_from_environment(num_gpus, timeout)
        main(*args)
        dist.destroy_process_group()
    elif per_machine * num_machines > 1:
        if dist_url == "auto":
            dist_url = f"tcp://127.0.0.1:{_free_port()}"
        group = _Group(
            num_gpus > 0, machine_rank, per_machine, num_machines, dist_url, timeout, os.getpid()
        )
        _Processes(main, args, group).run()
    else:
        main(*args)


def is_first(machine_rank: int = 0) -> bool:
    """Whether this process starts a run, or is the first of those that torchrun started."""
    return machine_rank == 0 and not (_under_torchrun() and os.environ["RANK"] != "0")


@functools.cache
def follow_torchrun() -> None:
    """Let this process end with the torchrun that started it, if one did.

    To be called first: later it may be gone already, and nobody would end this process.
    """
    if _under_torchrun():
        die_with_parent(os.getppid())


def _under_torchrun() -> bool:
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


@dataclass
class _Group:
    """How the processes find each other."""

    on_gpu: bool
    machine_rank: int
    per_machine: int
    num_machines: int
    url: str
    timeout: float
    parent: int

    def rank(self, local_rank: int) -> int:
        return self.machine_rank * self.per_machine + local_rank

    def join(self, local_rank: int) -> None:
        if self.on_gpu:
            torch.cuda.set_device(local_rank)
        else:
            # The processes share the machine's cores instead of each claiming all of them.
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // self.per_machine))
        dist.init_process_group(
            "nccl" if self.on_gpu else "gloo",
            init_method=self.url,
            world_size=self.per_machine * self.num_machines,
            rank=self.rank(local_rank),
            timeout=timedelta(seconds=self.timeout),
        )
        _create_local_group(self.per_machine)


# ------------------------------------------------------------------------- in each process


@dataclass
class _Report:
    """How a process ended, in its own words."""

    status: int
    error: UserError | None = None
    crashed: bool = False  # it has printed a traceback


def _process(
    local_rank: int, main: Callable, args: tuple, group: _Group, report: Connection
) -> None:
    # A group of its own: the parent passes on what a terminal sends to all, once.
    os.setpgid(0, 0)
    die_with_parent(group.parent)
    signals.tell_parent = report.send
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        with SignalGate():
            group.join(local_rank)
            main(*args)
        dist.destroy_process_group()
        end = _Report(0)
    except KeyboardInterrupt:
        end = _Report(128 + signal.SIGINT)
    except SystemExit as error:
        if isinstance(error.code, str):
            end = _Report(2, getattr(error, "error", UserError(error.code)))
        else:
            end = _Report(error.code or 0)
    except Exception as error:
        end = _Report(1, as_user_error(error))
        if end.error is None:
            end.crashed = True
            traceback.print_exc()
    with contextlib.suppress(OSError):
        report.send(end)
    sys.stdout.flush()
    sys.exit(end.status)


# --------------------------------------------------------------------------- in the parent


class _Processes:
    """The processes of this machine, started and watched."""

    def __init__(self, main: Callable, args: tuple, group: _Group):
        self.group = group
        context = mp.get_context("spawn")
        self.gate = SignalGate()
        self.processes, self.pipes = [], []
        for local_rank in range(group.per_machine):
            reports, report = context.Pipe(duplex=False)
            process = context.Process(
                target=_process, args=(local_rank, main, args, group, report), daemon=False
            )
            self.processes.append(process)
            self.pipes.append(reports)
        self.reports: dict[int, _Report] = {}

    def run(self) -> None:
        """Start them and wait until all have ended; see :func:`launch` for what it raises."""
        gate = self.gate = SignalGate(on_signal=self._pass_on)
        with gate, gate.deferring():
            try:
                self._start()
                self._wait(lambda: gate.received or any(p.exitcode for p in self.processes))
                if gate.received:
                    self._wait(lambda: self._first_has_left() or gate.seconds() > _GRACE)
                if gate.received or any(p.exitcode for p in self.processes):
                    self._wait(lambda: False, _LAST_WORDS)
                failure = None if gate.received else self._failure()
            finally:
                self._kill()
        if gate.received:
            raise SystemExit(128 + gate.received)
        if failure is not None:
            raise failure

    def _start(self) -> None:
        # Until it listens, a process would answer an interrupt with a traceback of its imports.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            for process in self.processes:
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    def _pass_on(self, signum: int) -> None:
        for process in self.processes:
            if process.pid and process.exitcode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signum)

    def _first_has_left(self) -> bool:
        """Whether the process that writes checkpoints is done; the others only wait for it."""
        return self.processes[0].exitcode is not None

    def _wait(self, enough: Callable[[], bool], seconds: float = float("inf")) -> None:
        """Wait until all processes have ended, or it is enough, or time is up."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not enough():
            running = [p.sentinel for p in self.processes if p.exitcode is None]
            if not running:
                return
            wait(running, timeout=0.2)
            self._listen()

    def _listen(self) -> None:
        """Take what processes say: how they ended, or that a signal came to one of them alone."""
        for i, reports in enumerate(self.pipes):
            with contextlib.suppress(EOFError, OSError):
                while reports.poll():
                    said = reports.recv()
                    if isinstance(said, _Report):
                        self.reports[i] = said
                    elif self.gate.received is None:
                        self.gate.receive(said)

    def _kill(self) -> None:
        for process in self.processes:
            if process.pid and process.exitcode is None:
                process.kill()
        for process in self.processes:
            if process.pid:
                process.join()

    def _failure(self) -> BaseException | None:
        """What ended the run, None if nothing did. Processes that lost another come last."""
        self._listen()
        ended = [(i, p.exitcode, self.reports.get(i)) for i, p in enumerate(self.processes)]
        silent = [i for i, status, report in ended if status is None and report is None]
        for i, status, report in ended:
            # NCCL ends processes that have waited too long by SIGABRT.
            gave_up = silent and self.group.on_gpu and status == -signal.SIGABRT
            if status and report is None and not gave_up:
                return LostProcess(
                    f"{self._name(i)} {_manner(status)}; the others were stopped: see what it "
                    "said, and go on with --resume."
                )
        for _, _, report in ended:
            if report and report.error and not isinstance(report.error, LostProcess):
                return report.error
        for i, _, report in ended:
            if report and report.crashed:
                return LostProcess(
                    f"{self._name(i)} ended with an error, see above; the others were stopped."
                )
            if report and report.status and report.error is None:
                return SystemExit(report.status)
        for i in silent if any(status for _, status, _ in ended) else ():
            stopped = " (it was stopped by a signal)" * _is_stopped(self.processes[i].pid)
            return LostProcess(
                f"{self._name(i)} hangs{stopped}: the others waited {self.group.timeout:g} "
                "seconds (PSIS.PROCESS_TIMEOUT) for it and were stopped; go on with --resume."
            )
        return next((report.error for _, _, report in ended if report and report.error), None)

    def _name(self, i: int) -> str:
        world = self.group.per_machine * self.group.num_machines
        return f"Process {self.group.rank(i)} of {world} (pid {self.processes[i].pid})"


def _manner(status: int) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        memory = ", most often for want of memory" * (name == "SIGKILL")
        return f"was killed by {name}{memory}"
    return f"ended with status {status}"


def _is_stopped(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] in ("T", "t")
    return False


# --------------------------------------------------------------------------------- groups


def _join_from_environment(num_gpus: int, timeout: float) -> None:
    """Join the process group that torchrun describes in the environment."""
    follow_torchrun()
    _look_for_agent()
    on_gpu = num_gpus > 0
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if on_gpu:
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started process {local_rank} on a machine with "
                f"{torch.cuda.device_count()} GPUs; lower --nproc_per_node."
            )
        torch.cuda.set_device(local_rank)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", init_method="env://", timeout=timedelta(seconds=timeout)
    )
    _create_local_group(int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size())))


def _look_for_agent() -> None:
    """See that torchrun still lives, without which PyTorch would wait for the whole timeout.

    It may have died while this process was importing. Where its own store is where the processes
    meet, it listens before it starts them.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    end = time.monotonic() + _AGENT_SECONDS
    while True:
        try:
            socket.create_connection(address, timeout=_AGENT_SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise LostProcess(
                    f"torchrun, which started this process, is gone: nobody answers at "
                    f"{address[0]}:{address[1]} ({error.strerror or error}); start the run again."
                ) from error
            time.sleep(0.5)


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
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
