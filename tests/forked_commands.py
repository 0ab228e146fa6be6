"""Command lines of psis-d2, each in a process forked from one that has imported everything.

A run of seconds would spend most of them on imports. The parent has computed nothing, so that
PyTorch lives through the fork, and was started with the folder of data sets that is registered
while psis_d2 is imported.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What a run imports late, where it is there.
LATE = ("torch.utils.tensorboard", "omegaconf", "faster_coco_eval", "PIL.ImageDraw", "fsspec")
LATE += ("pygments.formatters.terminal", "pygments.lexers.python", "pygments.lexers.data")


class ForkedCommands:
    """Runs command lines one after the other.

    Args:
        datasets: folder for ``DETECTRON2_DATASETS``.
    """

    def __init__(self, datasets: Path):
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = {**os.environ, "PYTHONPATH": path, "DETECTRON2_DATASETS": str(datasets)}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "ForkedCommands":
        return self

    def __exit__(self, *exc_info) -> None:
        self._process.stdin.close()
        self._process.wait(60)

    def run(self, words: Sequence[str], folder: Path, seconds: int = 600) -> None:
        """Run ``psis-d2 words`` in a folder, whose ``log.txt`` gets what it prints.

        Raises:
            AssertionError: it has ended with another status than 0, or was not done in time.
        """
        order = {"words": list(map(str, words)), "folder": str(folder), "seconds": seconds}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        status = int(self._process.stdout.readline() or -1)
        if status:
            log = (folder / "log.txt").read_text(errors="replace")
            errors = "\n".join(x for x in log.splitlines() if x.startswith("error: "))
            line = " ".join(order["words"])
            raise AssertionError(f"status {status} of {line}\n{errors or log[-3000:]}")


def _run(words: list[str], folder: str, seconds: int) -> int:
    from psis_d2.cli import main

    os.chdir(folder)
    signal.alarm(seconds)
    with open("log.txt", "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        return main(words) or 0
    except SystemExit as stop:
        return stop.code or 0
    except BaseException:
        sys.stdout.flush()
        traceback.print_exc()
        return 1


def _serve() -> None:
    """Fork for each order that stands on a line of stdin; print its status."""
    import psis_d2.cli.train
    import psis_d2.engine.trainer
    import psis_d2.evaluation.run  # noqa: F401

    import detectron2.engine  # noqa: F401

    for name in LATE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            status = _run(**json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _serve()
