"""CONTRIBUTING.md's "Add a mask head", followed to the letter in a copy of the tree."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_repository import project_files

ROOT = Path(__file__).resolve().parents[1]


def steps() -> list[tuple[str, str, str]]:
    """(file, language, text) of each numbered step: its first path and the code below it."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("### Add a mask head\n")[1].split("\n### ")[0]
    found = []
    for part in re.split(r"^\d\. ", section, flags=re.MULTILINE)[1:]:
        path = re.search(r"`([\w/]+\.\w+)`", part).group(1)
        language, code = re.search(
            r"^```(\w+)\n(.*?)^```$", part, re.DOTALL | re.MULTILINE
        ).groups()
        found.append((path, language, code))
    return found


def apply_diff(text: str, diff: str) -> str:
    """The text with the added lines of a diff after the line that stands before them."""
    before = ""
    for line in diff.splitlines(keepends=True):
        if line.startswith("+"):
            text = text.replace(before, before + line[1:], 1)
        else:
            before = line[1:]
            assert before in text, line
    return text


def test_added_lines_come_after_their_context():
    assert apply_diff("a\nb\nd\n", " b\n+c\n d\n+e\n") == "a\nb\nc\nd\ne\n"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the project, with the files that the section tells to write."""
    copy = tmp_path_factory.mktemp("tree")
    for path in [*project_files(), *(ROOT / "psis_d2").glob("_C*.so")]:
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    for name, language, code in steps():
        path = copy / name
        if language == "diff":
            code = apply_diff(path.read_text(encoding="utf-8"), code)
        else:
            assert not path.exists(), name
        path.write_text(code, encoding="utf-8")
    return copy


def run(tree, *command):
    """The output of a command in the copy, which has to succeed."""
    path = os.pathsep.join([str(tree), str(tree / "tests")])
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def test_the_steps_are_one_file_one_import_one_config_one_test():
    assert [(Path(name).parent.as_posix(), language) for name, language, _ in steps()] == [
        ("psis_d2/modeling/mask_heads", "python"),
        ("psis_d2/modeling/mask_heads", "diff"),
        ("configs/quick", "yaml"),
        ("tests/modeling", "python"),
    ]


def test_nothing_else_is_needed(tree):
    """The tests that the section names, and the rules of the tree."""
    contract = "tests/modeling/test_head_contract.py"
    files = ("tests/modeling/test_coordconv.py", "tests/test_repository.py", contract)
    words = "coordconv or CoordConvMaskHead or lacks or test_repository"
    out = run(tree, "pytest", "-v", "-p", "no:cacheprovider", *files, "-k", words)
    passed = [line for line in out.splitlines() if "PASSED" in line]
    for name in (
        "test_garbage_in_unseen_masks_changes_no_bit[coordconv-proposals]",
        "test_a_batch_without_masks_trains_every_parameter[coordconv-gt-empty]",
        "test_no_region_at_all[CoordConvMaskHead]",
        "test_a_process_without_masks_trains_along[coordconv]",
        "test_masks_of_given_boxes[coordconv]",
        "test_every_head_is_a_teacher_and_a_student[CoordConvMaskHead]",
        "test_no_head_lacks_a_config_or_a_test",
        "test_config_loads[configs/quick/coordconv_shapes.yaml]",
        "test_positions_by_hand",
    ):
        assert any(f"::{name} " in line for line in passed), name


def test_the_example_keeps_to_the_style(tree):
    pytest.importorskip("ruff")
    files = [name for name, language, _ in steps() if language != "yaml"]
    run(tree, "ruff", "check", *files)
    run(tree, "ruff", "format", "--check", *files)
