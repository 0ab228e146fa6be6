"""Rules of the tree that no single module can keep."""

import argparse
import ast
import importlib
import re
import shlex
import subprocess
from pathlib import Path

from psis_d2.cli import subcommands
from psis_d2.model_zoo import config_names

import pytest

from doc_blocks import PAGES, blocks_of, read_page

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("configs/**/*.yaml"))
SOURCE_SUFFIXES = (".py", ".cpp", ".h", ".cu", ".cuh")
MAX_LINES = 600
PROGRAMS = ("make", "psis-d2", "python")

# Configs of box detectors; all others have masks.
DETECTORS_ALONE = {
    "Base-detector.yaml",
    "fasterrcnn_R101.yaml",
    "fasterrcnn_R50.yaml",
    "fasterrcnn_vg3k_R101.yaml",
    "fcos_R50.yaml",
    "retinanet_R50.yaml",
}
# Files of modeling/mask_heads that are no method's own.
SHARED_BY_HEADS = {"__init__", "base", "blocks"}
# Dependencies point one way: what a room must not import.
CLOSED_DOORS = {
    "ops": ("data", "modeling", "evaluation", "engine"),
    "data": ("ops", "modeling", "evaluation", "engine"),
    "modeling": ("evaluation", "engine"),
    "evaluation": ("modeling", "engine", "analysis"),
    "engine": ("cli",),
    "analysis": ("modeling", "engine", "cli"),
    "export": ("cli",),
    "model_zoo": ("evaluation", "cli"),
    "experiments": ("modeling", "evaluation", "engine", "cli"),
}


def project_files() -> list[Path]:
    """The files that are, or would be, in the repository."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode == 0:
        names = listing.stdout.splitlines()
    else:  # an unpacked archive
        rooms = ("psis_d2", "csrc", "configs", "tools", "tests", "benchmarks")
        names = [path for room in rooms for path in (ROOT / room).rglob("*")]
        names += [*ROOT.glob("*.*"), ROOT / "Makefile"]
    found = [ROOT / name for name in names]
    return [p for p in found if p.is_file() and "__pycache__" not in p.parts]


def imported_modules(source: str) -> set[str]:
    """The dotted names that Python source imports, also inside functions.

    ``from a import b`` gives both ``a`` and ``a.b``, since b may be a module.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def machine_paths(text: str) -> list[str]:
    """Absolute paths below folders that only some machine has."""
    return re.findall(r"(?<![\w.:~])/(?:home|root|Users|work|tmp|mnt)/[\w.-]+", text)


def forbidden_imports(room: str, source: str) -> set[str]:
    """Imports of a file in psis_d2/<room> that lead the wrong way."""
    closed = tuple(f"psis_d2.{door}" for door in CLOSED_DOORS[room])
    return {
        name
        for name in imported_modules(source)
        if any(name == door or name.startswith(f"{door}.") for door in closed)
    }


def other_methods(name: str, source: str) -> set[str]:
    """Files of other methods that the mask head file `name` imports."""
    prefix = "psis_d2.modeling.mask_heads."
    heads = {x.removeprefix(prefix).split(".")[0] for x in imported_modules(source) if prefix in x}
    methods = {p.stem for p in (ROOT / "psis_d2" / "modeling" / "mask_heads").glob("*.py")}
    return heads & methods - SHARED_BY_HEADS - {name}


def test_the_checks_themselves_find_what_they_look_for():
    slash = "/"
    assert machine_paths(f"see {slash}home/someone and {slash}tmp/x.txt") == [
        f"{slash}home/someone",
        f"{slash}tmp/x.txt",
    ]
    assert machine_paths("output/home/x, a/mnt/b and http://host/mnt/x") == []
    assert forbidden_imports("data", "def f():\n    from psis_d2 import modeling\n") == {
        "psis_d2.modeling"
    }
    assert forbidden_imports("modeling", "import psis_d2.ops\n") == set()
    source = "from psis_d2.modeling.mask_heads import shapeprop, base"
    assert other_methods("fcn", source) == {"shapeprop"}
    assert other_methods("shapeprop", source) == set()
    names = {p.relative_to(ROOT).as_posix() for p in project_files()}
    assert {"Makefile", "psis_d2/compat.py", "csrc/extension.cpp"} <= names


def test_there_are_configs():
    assert "configs/shapeprop_R50.yaml" in CONFIGS
    assert any(name.startswith("configs/quick/") for name in CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_loads(name):
    from psis_d2.config import add_psis_config

    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_psis_config(cfg)
    cfg.merge_from_file(str(ROOT / name))  # an unknown key raises
    detector_alone = Path(name).name in DETECTORS_ALONE or cfg.TEST.MASKS != "model"
    assert cfg.MODEL.MASK_ON is not detector_alone


def test_no_absolute_paths_of_one_machine():
    found = {}
    for path in project_files():
        try:
            paths = machine_paths(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
        if paths:
            found[path.relative_to(ROOT).as_posix()] = paths
    assert found == {}


def test_no_source_file_is_too_long():
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in project_files()
        if path.suffix in SOURCE_SUFFIXES
    }
    assert len(lengths) > 20
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_dependencies_point_one_way():
    found = {}
    for room in CLOSED_DOORS:
        for path in (ROOT / "psis_d2" / room).rglob("*.py"):
            if wrong := forbidden_imports(room, path.read_text(encoding="utf-8")):
                found[path.relative_to(ROOT).as_posix()] = wrong
    assert found == {}


def test_no_method_imports_another_method():
    found = {}
    for path in (ROOT / "psis_d2" / "modeling" / "mask_heads").glob("*.py"):
        if path.stem == "__init__":
            continue  # it imports all, to register them
        if wrong := other_methods(path.stem, path.read_text(encoding="utf-8")):
            found[path.name] = wrong
    assert found == {}


def documented_commands(name: str) -> list[list[str]]:
    """The words of every command line in the code blocks and the inline code of a Markdown file."""
    text = read_page(name)
    blocks = [block.code for block in blocks_of(text) if block.language in ("", "bash")]
    inline = re.findall(r"`((?:make|python|psis-d2) [^`]+)`", text)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines + inline]


def flags_of(command: str) -> set[str]:
    """The flags that a subcommand of psis-d2 takes."""
    parser = argparse.ArgumentParser(add_help=False)
    importlib.import_module(f"psis_d2.cli.{command.replace('-', '_')}").add_arguments(parser)
    actions = list(parser._actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            actions += [own for sub in action.choices.values() for own in sub._actions]
    return {flag for action in actions for flag in action.option_strings} | {"--help"}


def faults(words: list[str], targets: set[str]) -> list[str]:
    """What a documented command names that is not there."""
    if words[0] == "make":
        wanted = [w for w in words[1:] if "=" not in w and not w.startswith("-")]
        return [f"make {w}" for w in wanted if w not in targets]
    missing = []
    if words[0] == "python":
        if words[1].endswith(".py"):
            files = [words[1], *(w for w in words if w.startswith("configs/"))]
            missing += [f for f in files if not (ROOT / f).is_file()]
        return missing
    if not words[1].startswith(("-", "<")) and words[1] not in ("COMMAND",):
        if words[1] not in subcommands():
            return [words[1]]
        if words[1] != "zoo":
            known = flags_of(words[1])
            missing += [w for w in words[2:] if w.startswith("--") and w not in known]
    named = [b for a, b in zip(words, words[1:], strict=False) if a == "--config-file"]
    known = {"...", "psis_d2://NAME", *config_names()}
    return missing + [c for c in named if c not in known and not c.startswith("output/")]


@pytest.mark.parametrize("name", PAGES)
def test_documented_commands_exist(name):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    commands = [x for x in documented_commands(name) if len(x) > 1 and x[0] in PROGRAMS]
    assert [fault for words in commands for fault in faults(words, targets)] == []
    if name in ("README.md", "CONTRIBUTING.md", "docs/getting-started.md"):
        assert len(commands) >= 2


def test_faults_of_commands_are_found():
    targets = {"test"}
    assert faults(["make", "tset"], targets) == ["make tset"]
    assert faults(["python", "tools/none.py"], targets) == ["tools/none.py"]
    assert faults(["psis-d2", "tarin"], targets) == ["tarin"]
    assert faults(["psis-d2", "check", "--pictures", "x"], targets) == ["--pictures"]
    assert faults(["psis-d2", "train", "--config-file", "shapeprop_R5"], targets) == [
        "shapeprop_R5"
    ]


def test_every_make_target_is_listed_by_help():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    listing = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True).stdout
    assert targets == set(re.findall(r"^  make ([a-z-]+) ", listing, re.MULTILINE))


def test_ci_runs_the_documented_test_command_lint_and_docs():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = [line for line in script.splitlines() if line.startswith("make ")]
    assert commands == ["make test", "make lint", "make docs"]


@pytest.mark.parametrize(
    "name", ["requirements.txt", "requirements-dev.txt", "requirements-docs.txt", "constraints.txt"]
)
def test_requirements_are_pinned(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    assert lines
    assert [line for line in lines if not re.match(r"[\w.-]+==[\w.]+(; .+)?$", line)] == []
