"""What a long job has finished, item by item, so that a killed job goes on where it stopped.

A journal is a folder of text files, one a process, in which every line is one finished item. A line
counts once it ends: what a kill cut off is done again. The folder also says which job it belongs
to, so that results of other inputs or another model are never mixed in.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator

from psis_d2.errors import UserError
from psis_d2.files import written_at_once


class Journal:
    """The finished items of one job, keyed by their number.

    Args:
        folder: where the journal is kept; made if it is missing.
        job: what the job is: plain values that must be the same when it goes on.
        rank: number of this process among those that share the job.

    Raises:
        UserError: the folder belongs to another job.
    """

    def __init__(self, folder: str, job: dict, rank: int = 0):
        self.folder = folder
        self._check_job(job)
        self.done = {number for number, _ in self.items()}
        path = os.path.join(folder, f"part-{rank}.jsonl")
        _cut_unfinished_line(path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  (closed by close)

    def _check_job(self, job: dict) -> None:
        path = os.path.join(self.folder, "job.json")
        job = json.loads(json.dumps(job))
        try:
            with open(path, encoding="utf-8") as file:
                there = json.load(file)
        except FileNotFoundError:
            with written_at_once(path) as file:
                json.dump(job, file, indent=1)
            return
        except ValueError:
            there = {}
        differing = sorted(k for k in job.keys() | there.keys() if job.get(k) != there.get(k))
        if differing:
            raise UserError(
                f"{self.folder} holds unfinished work with another {', '.join(differing)}; remove "
                "the folder to start anew, or choose another output."
            )

    def add(self, number: int, item) -> None:
        """Note a finished item: any plain value."""
        self._file.write(json.dumps([number, item]) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def items(self) -> Iterator[tuple[int, object]]:
        """Number and value of every finished item of all processes, in no order."""
        for name in sorted(os.listdir(self.folder)):
            if not name.endswith(".jsonl"):
                continue
            with open(os.path.join(self.folder, name), encoding="utf-8") as file:
                for line in file:
                    if line.endswith("\n"):
                        yield tuple(json.loads(line))

    def close(self) -> None:
        """Stop writing; the folder stays."""
        self._file.close()

    def remove(self) -> None:
        """Remove the folder: the job is done and its result is written."""
        self.close()
        shutil.rmtree(self.folder)


def _cut_unfinished_line(path: str) -> None:
    if not os.path.isfile(path):
        return
    with open(path, "rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
