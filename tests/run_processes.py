"""Runs as processes of their own, to be killed: started, watched, and looked for afterwards."""

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Forked from a process that has imported what a run needs, and computed nothing: a start takes no
# time, and PyTorch lives through the fork.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("train_net", "run_processes", "psis_d2.engine.trainer"),
        # what a run imports when it needs it
        *("torch.utils.tensorboard", "torch.utils.cpp_extension", "omegaconf", "faster_coco_eval"),
        *("detectron2.utils.visualizer", "PIL.PngImagePlugin"),
    ]
)


def train(line: list[str]) -> None:
    """What a child process does by default: ``train_net.py`` with a command line."""
    import train_net

    train_net.invoke_main(line)


def torchrun(argument: tuple[int, list[str]]) -> None:
    """The same in so many processes that torchrun starts, as the program of that name."""
    from torch.distributed.run import main

    processes, line = argument
    script = str(Path(__file__).parents[1] / "train_net.py")
    main(["--standalone", f"--nproc_per_node={processes}", script, *line])


def _begin(log: str, target: Callable, argument, limits: dict[int, int]) -> None:
    from psis_d2.engine.signals import die_with_parent

    import torch

    die_with_parent(os.getppid())  # the fork server's, which goes with the tests
    multiprocessing.set_start_method("fork", force=True)  # what a program has, for its workers
    os.setsid()  # as a terminal starts it, leader of the group that gets its signals
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    torch.set_num_threads(1)
    target(argument)


class Run:
    """A process that trains, leader of a process group of its own.

    Args:
        argument: of `target`; the command line.
        log: file that gets what it prints.
        target: a function of a module that can be imported.
        limits: of ``resource.setrlimit``, by their numbers.
    """

    def __init__(self, argument, log: Path, target: Callable = train, limits=None):
        self.log = log
        log.touch()
        self.process = _CONTEXT.Process(
            target=_begin, args=(str(log), target, argument, limits or {}), daemon=False
        )
        self.process.start()
        self.pid = self.process.pid
        self.seen: set[int] = set()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exc_info) -> None:
        for pid in {self.pid, *self.seen, *descendants(self.pid)}:
            if command(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.join(10)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], object], seconds: float = 200) -> None:
        """Wait until something has happened while the run goes on."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.is_alive(), f"ended early:\n{self.text()[-3000:]}"
            assert time.monotonic() < end, f"did not happen:\n{self.text()[-3000:]}"
            time.sleep(0.02)

    def status(self, seconds: float = 60) -> int | None:
        """Exit status of a run that ends by itself, minus the signal of one that was killed."""
        self.process.join(seconds)
        return self.process.exitcode

    def family(self) -> list[int]:
        """Pids of all processes that it has started, children before grandchildren."""
        found = descendants(self.pid)
        self.seen.update(found)
        return found

    def errors(self) -> list[str]:
        """Its sentences; a traceback is none."""
        assert "Traceback" not in self.text(), self.text()[-3000:]
        return [line for line in self.text().splitlines() if line.startswith("error: ")]


def descendants(pid: int) -> list[int]:
    """Pids of a process's children, their children and so on."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            for parent in _parent(folder):
                children.setdefault(parent, []).append(int(folder.name))
    found, todo = [], [pid]
    while todo:
        found += (more := sorted(children.get(todo.pop(0), [])))
        todo += more
    return found


def _parent(folder: Path) -> Iterator[int]:
    try:
        yield int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has just ended
        return


def command(pid: int) -> str:
    """Command line of a process, "" if it is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def none_alive(pids: list[int], seconds: float = 60) -> bool:
    """Whether all processes have ended within so long."""
    end = time.monotonic() + seconds
    while any(command(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
