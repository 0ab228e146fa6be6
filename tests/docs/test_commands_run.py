"""Every command of README and docs runs, in order, page by page, or says what it needs.

Trainings are shortened to a few iterations; everything else is run as it is written.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from doc_blocks import PAGES, ROOT, Block, blocks_of, can_run, goes_on_after, read_page

FIRST = "docs/getting-started.md"
# How to work on psis_d2 is not for its users; test_contributing.py follows its code.
RUN = [
    page
    for page in PAGES
    if page not in ("CONTRIBUTING.md", FIRST) and any(map(can_run, blocks_of(read_page(page))))
]
ITERATIONS = 3


def shortened(code: str) -> str:
    """Commands with few iterations."""
    return re.sub(r"SOLVER\.MAX_ITER \d+", f"SOLVER.MAX_ITER {ITERATIONS}", code)


def run_block(block: Block, folder: Path, programs: Path) -> None:
    """Run one block in a folder; what goes wrong fails the test."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{programs}:{os.environ['PATH']}"}
    for name in ("DETECTRON2_DATASETS", "PSIS_D2_ZOO", "PSIS_D2_CACHE", "PSIS_D2_OFFLINE"):
        env.pop(name, None)
    env["DETECTRON2_DATASETS"] = str(folder / "datasets")
    shell = ["bash", "-euo", "pipefail", "-c", shortened(block.code)]
    line = shell if block.language == "bash" else [sys.executable, "-c", block.code]
    done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=1800)
    output = done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0, f"line {block.line}:\n{block.code}\n{output}"


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Path:
    """A folder with psis-d2 and python, those of this checkout."""
    folder = tmp_path_factory.mktemp("bin")
    for name, words in (("psis-d2", " -m psis_d2"), ("python", "")):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def started(tmp_path_factory, programs) -> Path:
    """The folder in which Getting started was followed."""
    folder = tmp_path_factory.mktemp("started")
    for block in filter(can_run, blocks_of(read_page(FIRST))):
        run_block(block, folder, programs)
    return folder


def test_blocks_and_their_marks_are_found():
    text = "<!-- needs: COCO -->\n```bash\na\n```\n\n  ```python\n  b\n    c\n  ```\n```\nd\n```\n"
    assert blocks_of(text) == [
        Block("bash", "a\n", 2, "COCO"),
        Block("python", "b\n  c\n", 6),
        Block("", "d\n", 10),
    ]
    assert list(map(can_run, blocks_of(text))) == [False, True, False]
    assert goes_on_after("# A\n\n<!-- after: b.md -->\n") == "docs/b.md"
    assert shortened("x SOLVER.MAX_ITER 400 Y 400") == f"x SOLVER.MAX_ITER {ITERATIONS} Y 400"


def test_pages_go_on_after_the_first_alone():
    assert {goes_on_after(read_page(page)) for page in PAGES} == {"", FIRST}


def test_what_a_block_needs_is_not_here():
    """A mark is no way around the test: known are things that a test machine lacks."""
    for page in PAGES:
        for block in blocks_of(read_page(page)):
            known = ("network", "COCO", "Visual Genome", "photographs", "segment-anything")
            known += ("day", "hour", "checkout")
            assert not block.needs or any(word in block.needs for word in known), block


@pytest.mark.slow
def test_getting_started_makes_what_it_says(started):
    labeled = (started / "labeled.json").read_text()
    assert '"source": "psis_d2"' in labeled
    assert (started / "check.html").stat().st_size > 10_000
    assert len(list((started / "predicted").glob("*.png"))) == 40
    assert (started / "predicted" / "results.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_page_runs(page, started, programs, tmp_path):
    text = read_page(page)
    folder = tmp_path / "work"
    if goes_on_after(text):
        shutil.copytree(started, folder)
    else:
        folder.mkdir()
    exports = ""
    for block in filter(can_run, blocks_of(text)):
        # A shell that is left open keeps what was exported.
        if block.language == "bash":
            block = Block("bash", exports + block.code, block.line)
            exports = "\n".join(re.findall(r"^export .*$", block.code, re.MULTILINE)) + "\n"
        run_block(block, folder, programs)
