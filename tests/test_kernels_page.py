"""docs/kernels.md names tests and files that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")


def test_every_test_that_the_page_names_exists():
    named = set(re.findall(r"\btest_\w+(?!\w|\.py|\*)", PAGE))
    named = {name for name in named if f"{name}.py" not in PAGE}
    sources = "\n".join(p.read_text(encoding="utf-8") for p in ROOT.glob("tests/**/test_*.py"))
    defined = set(re.findall(r"def (test_\w+)\(", sources))
    assert len(named) > 15
    assert named - defined == set()


def test_every_file_that_the_page_names_exists():
    paths = re.findall(r"`((?:csrc|tests|tools|psis_d2)/[\w./]+\.\w+)`", PAGE)
    assert len(paths) > 4
    assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_every_kernel_is_on_the_page():
    sources = "\n".join(p.read_text(encoding="utf-8") for p in ROOT.glob("csrc/cuda/*.cuh"))
    kernels = re.findall(r"__global__[^(]*\([^)]*\)\s*(\w+)\(", sources)
    assert len(kernels) == 11
    assert [name for name in kernels if f"`{name}" not in PAGE] == []
