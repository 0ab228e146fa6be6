#!/usr/bin/env python3
"""All that a GPU is needed for, in three stages of less than ten minutes each.

    python tools/gpu_session.py pack          # where the project is set up: what the GPU's lacks
    python tools/gpu_session.py 1             # on the GPU's machine: environment, tests, sanitizer
    python tools/gpu_session.py 2             # benchmarks of the ops, profiles, the dispatch
    python tools/gpu_session.py 3             # whole models: steps, traces, one training
    python tools/gpu_session.py rehearse      # all stages' commands on the CPU

The machine with the GPU needs Python, PyTorch, NumPy, OpenCV and a compiler, and no network: `pack`
leaves the rest in output/gpu_pack, which has to travel with the tree. It holds Detectron2 and other
pure Python packages of this environment, wheels of what is compiled, the extension, built here, and
the losses that stage 1 compares with.

Every step has its own time limit, and one that fails does not stop the next. What a stage leaves is
$OUT/gpu_session_<stage>.tar.gz (output/gpu_session without OUT), packed anew after each step, and a
table, which is printed last.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACK = ROOT / "output" / "gpu_pack"
LOGS = ROOT / "output" / "gpu_session"
STAGE_SECONDS = 570  # of the ten minutes that one call may take
ARCHIVE_BYTES = 15 << 20
PACK_BYTES = 55 << 20  # with the tree it has to stay below 64 MiB
# Not on a machine made for PyTorch: copied from here if they are pure Python, else fetched.
PURE = ("detectron2", "fvcore", "iopath", "yacs", "omegaconf", "antlr4-python3-runtime")
PURE += ("hydra-core", "termcolor", "setuptools")  # the last for pkg_resources
COMPILED = ("pycocotools",)
MEASURED = ("maskrcnn_agnostic_R50", "shapeprop_R50", "teacher_student_R50", "maskx_R50")
MEASURED += ("opmask_R50", "cpmask_R50", "shapemask_R50", "boxinst_R50")  # beside Mask R-CNN
TRACED = ("shapeprop_R50", "boxinst_R50")
TRAINED = "shapeprop_shapes"


@dataclass(frozen=True)
class Step:
    """A command of a stage.

    Attributes:
        name: of its line in the table, and of its log.
        words: program and arguments.
        seconds: that it may take.
        missing: why it cannot run here, "" if it can.
        last: lines of its log that are printed.
    """

    name: str
    words: list[str]
    seconds: int
    missing: str = ""
    last: int = 3


@dataclass(frozen=True)
class Place:
    """Where steps run: "cuda", or "cpu" in a rehearsal, with small sizes."""

    device: str
    folder: Path  # of a stage's logs and results

    @property
    def real(self) -> bool:
        """Whether a GPU runs the steps."""
        return self.device == "cuda"

    def script(self, path: str, *arguments: str | Path) -> list[str]:
        """The command that runs one of the project's scripts on the device."""
        return self.python(path, *arguments, "--device", self.device)

    def python(self, *arguments: str | Path) -> list[str]:
        """The command of this interpreter."""
        return [sys.executable, *map(str, arguments)]


def need(*programs: str) -> str:
    """Why a step that needs these programs cannot run, "" if they are there."""
    absent = [name for name in programs if shutil.which(name) is None]
    return f"no {', '.join(absent)}" if absent else ""


# ---------------------------------------------------------------------------------- the stages


def first_stage(place: Place) -> Iterable[Step]:
    """Does it work: environment, tests, sanitizer, first shapes, losses of all methods."""
    yield Step("driver", ["nvidia-smi"], 20, need("nvidia-smi"), last=0)
    yield Step("extension", place.python(__file__, "extension", "--device", place.device), 240)
    yield Step("doctor", place.python("-m", "psis_d2.doctor"), 60, last=20)
    tests = place.python("-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider")
    chosen = ["-m", "gpu"] if place.real else ["-m", "not gpu and not slow", "-k", "hand_computed"]
    yield Step("op tests", [*tests, "tests/ops", *chosen], 150)
    every = place.script("tools/gpu/every_kernel.py")
    yield Step("every kernel", [*every, "--list"], 60)
    script, losses_file = "tools/gpu/method_losses.py", PACK / "losses.json"
    if not losses_file.is_file():  # without a pack: from this machine's CPU
        yield Step("losses of the CPU", place.python(script, "save", losses_file), 120)
    losses = place.script(script, "compare", losses_file)
    yield Step("losses float32", losses, 90, last=10)
    yield Step("losses bfloat16", [*losses, "--amp"], 60, last=10)
    for tool in ("memcheck", "racecheck"):
        sanitizer = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        missing = need("compute-sanitizer") if place.real else "needs a GPU"
        yield Step(tool, [*sanitizer, *every], 90, missing)
    for name in ("message_passing", "affinity_attention", "shape_prior_blend"):
        small = ("--shapes", "1", "--seconds", "0.02", "--compile", "none")
        yield Step(
            f"first {name}", place.script(f"benchmarks/bench_{name}.py", *small), 60, last=12
        )


def second_stage(place: Place) -> Iterable[Step]:
    """How fast are the ops: benchmarks with ceilings and rivals, profiles, the dispatch."""
    size = ("--seconds", "0.1") if place.real else ("--seconds", "0.001", "--shapes", "1")
    compiled = ("--compile", "first" if place.real else "none")
    save = ("--save", place.folder / "results")
    for name in ("affinity_attention", "message_passing", "shape_prior_blend"):
        script = place.script(f"benchmarks/bench_{name}.py", *size, *compiled, *save)
        yield Step(name, script, 150, last=0)
    decide = f"{sys.executable} tools/gpu/decide_attention.py {place.folder}/results/affinity_*.csv"
    missing = "" if place.real else "the CPU's times decide nothing"
    yield Step("decide attention", ["bash", "-c", decide], 20, missing, last=40)
    profiled = place.script("tools/gpu/profile_kernels.py")
    if not place.real:
        yield Step("what ncu profiles", profiled, 60)
    sections = ("SpeedOfLight", "Occupancy", "LaunchStats", "MemoryWorkloadAnalysis")
    ncu = ["ncu", "--clock-control", "none", "-k", "regex:psis_d2|tile_|attention_|blend_"]
    ncu += [word for name in (*sections, "WarpStateStats") for word in ("--section", name)]
    missing = need("ncu") if place.real else "needs a GPU"
    yield Step("ncu", [*ncu, *profiled], 110, missing, last=0)


def third_stage(place: Place) -> Iterable[Step]:
    """How fast and how good are models: steps, traces, one training to its end."""
    size = "800" if place.real else "64"
    save = ("--save", place.folder / "results")
    seconds = ("--seconds", "0.2" if place.real else "0.001")
    few = () if place.real else ("--shapes", "1", "--size", size)
    # Where the host waits is counted without a GPU.
    chosen = ("--no-waits", "--configs", *MEASURED)
    script = place.script("benchmarks/bench_step.py", *chosen, *few, *seconds, *save)
    yield Step("models", script, 300, last=40)
    for name in TRACED:
        trace = ("tools/gpu/trace_step.py", name, "--size", size, "--folder", place.folder)
        yield Step(f"trace {name}", place.script(*trace), 60, last=0)
    train = ["train_net.py", "--config-file", f"configs/quick/{TRAINED}.yaml"]
    train += ["OUTPUT_DIR", str(place.folder.parent / "training")]
    if place.real:  # TEST.EXPECTED_RESULTS of the config are RESULTS.md's means and spreads
        yield Step(f"train {TRAINED}", place.python(*train), 200, last=25)
    else:
        few = ["SOLVER.MAX_ITER", "2", "TEST.EXPECTED_RESULTS", "[]"]
        yield Step(f"train {TRAINED}", place.python(*train, "MODEL.DEVICE", "cpu", *few), 150)


STAGES = {"1": first_stage, "2": second_stage, "3": third_stage}


# ---------------------------------------------------------------------------------- running


@dataclass(frozen=True)
class Outcome:
    """What came of a step: "ok", "failed (status)", "over N s", "cannot run: why"."""

    step: str
    state: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.step:24} {self.state:28} {self.seconds:5.0f} s"


def environment() -> dict[str, str]:
    """The process's, with the tree and the pack on Python's path."""
    path = [str(ROOT), *([str(PACK / "site")] if (PACK / "site").is_dir() else [])]
    path += [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}


def run_step(step: Step, log: Path, seconds: float) -> Outcome:
    """Runs a command and all that it starts for at most so long; its output goes to the log."""
    if step.missing:
        return Outcome(step.name, f"cannot run: {step.missing}", 0)
    if seconds < 5:
        return Outcome(step.name, "no time left", 0)
    start = time.monotonic()
    with open(log, "w", encoding="utf-8") as file:
        file.write(f"$ {' '.join(step.words)}\n")
        file.flush()
        process = subprocess.Popen(
            step.words,
            cwd=ROOT,
            env=environment(),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what it started ends with it
        )
        try:
            status = process.wait(timeout=seconds)
            state = "ok" if status == 0 else f"failed ({status})"
        except subprocess.TimeoutExpired:
            state = f"over {seconds:.0f} s"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Outcome(step.name, state, time.monotonic() - start)


def archive(folder: Path, target: Path, limit: int = ARCHIVE_BYTES) -> list[str]:
    """Packs a folder into one file below a size; returns what was left out, largest first."""
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    left_out: list[str] = []
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    while True:
        with tarfile.open(partial, "w:gz") as file:
            for path in files:
                file.add(path, arcname=path.relative_to(folder.parent))
        if partial.stat().st_size <= limit or not files:
            break
        left_out.append(str(files.pop().relative_to(folder)))
    partial.replace(target)
    return left_out


def run_stage(
    name: str, device: str, out: Path, seconds: float = STAGE_SECONDS, patience: float = 1
) -> list[Outcome]:
    """Runs the steps of a stage; see the head of this file. `patience`: times the steps' limits."""
    end = time.monotonic() + seconds
    folder = LOGS / f"stage_{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    outcomes = []
    for number, step in enumerate(STAGES[name](Place(device, folder))):
        print(f"== {step.name}", flush=True)
        log = folder / f"{number:02}_{step.name.replace(' ', '_')}.log"
        outcome = run_step(step, log, min(patience * step.seconds, end - time.monotonic()))
        outcomes.append(outcome)
        lines = (
            log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        )
        shown = step.last if outcome.state == "ok" else max(step.last, 8)
        print("\n".join(line[:200] for line in lines[1:][-shown:] if shown), flush=True)
        (folder / "table.txt").write_text("\n".join(map(str, outcomes)) + "\n", encoding="utf-8")
        for path in archive(folder, out / f"gpu_session_{name}.tar.gz"):
            print(f"left out of the archive: {path}", flush=True)
    return outcomes


# ------------------------------------------------------------------------------ the extension


def ensure_extension(device: str) -> None:
    """Puts the pack's extension into the tree if it loads here, else builds one here."""
    kernels = f"from psis_d2.ops import has_kernel as h; assert h('message_passing', {device!r})"
    check = [sys.executable, "-c", kernels]

    def loads() -> bool:
        return subprocess.run(check, cwd=ROOT, env=environment()).returncode == 0

    if loads():
        print("the tree has an extension that loads")
        return
    for path in PACK.glob("_C*.so"):
        shutil.copy(path, ROOT / "psis_d2" / "_C.abi3.so")
        if loads():
            print("the pack's extension loads")
            return
        (ROOT / "psis_d2" / "_C.abi3.so").unlink()
    subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT, check=True)
    if not loads():
        raise SystemExit("error: the extension was built here and does not load.")
    print("the extension was built here")


def build_extension(arch: str) -> None:
    """Builds it for a GPU that need not be here. One symbol of Python's is all it asks for, which
    every Python 3 has."""
    build = ROOT / "output" / "gpu_build"
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(build / "lib")]
    command += ["--build-temp", str(build / "temp")]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # of ninja
    settings = {"TORCH_CUDA_ARCH_LIST": arch, "PSIS_D2_BUILD_CUDA": "1", "PATH": path}
    subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, check=True)
    (found,) = build.glob("lib/psis_d2/_C*.so")
    target = PACK / "_C.abi3.so"
    shutil.copy(found, target)
    if shutil.which("strip"):
        subprocess.run(["strip", "--strip-debug", str(target)], check=True)


# -------------------------------------------------------------------------------------- the pack


def copy_package(name: str, target: Path) -> None:
    """Copies an installed package, without what is compiled for this Python."""
    distribution = importlib.metadata.distribution(name)
    for file in distribution.files or []:
        compiled = file.suffix in (".so", ".pyc") or "__pycache__" in file.parts
        if compiled or ".." in file.parts or not distribution.locate_file(file).is_file():
            continue
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(distribution.locate_file(file), target / file)


def fetch_wheel(name: str, python: str, target: Path, folder: Path) -> None:
    """Unpacks the wheel of this environment's version of a package for another Python."""
    version = importlib.metadata.version(name)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp", "-d", str(folder)]
    for tag in ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014"):
        command += ["--platform", f"{tag}_x86_64"]
    subprocess.run([*command, f"{name}=={version}"], check=True)
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(target)


def pack(arch: str, python: str) -> None:
    """Makes the folder that the GPU's machine needs beside the tree."""
    shutil.rmtree(PACK, ignore_errors=True)
    site = PACK / "site"
    site.mkdir(parents=True)
    for name in PURE:
        copy_package(name, site)
    wheels = PACK / "wheels"
    for name in COMPILED:
        fetch_wheel(name, python, site, wheels)
    shutil.rmtree(wheels)
    losses = [sys.executable, "tools/gpu/method_losses.py", "save", str(PACK / "losses.json")]
    subprocess.run(losses, cwd=ROOT, check=True)
    build_extension(arch)
    size = sum(p.stat().st_size for p in PACK.rglob("*") if p.is_file())
    facts = {"arch": arch, "python": python, "bytes": size}
    (PACK / "pack.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    print(f"{PACK.relative_to(ROOT)}: {size / 2**20:.0f} MiB for Python {python} and sm {arch}")
    if size > PACK_BYTES:
        raise SystemExit(f"error: the pack is larger than {PACK_BYTES >> 20} MiB.")


# --------------------------------------------------------------------------------------- main


def main() -> None:
    """Runs what was asked for; fails if a step did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what",
        nargs="*",
        default=["1", "2", "3"],
        choices=["pack", "rehearse", "extension", *STAGES],
    )
    parser.add_argument("--arch", default="9.0", help="pack: of the GPU (default: 9.0)")
    parser.add_argument("--python", default="3.12", help="pack: of its machine (default: 3.12)")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    args = parser.parse_args()
    if args.what == ["pack"]:
        return pack(args.arch, args.python)
    if args.what == ["extension"]:
        return ensure_extension(args.device)
    rehearsal = args.what == ["rehearse"]
    device = "cpu" if rehearsal else args.device
    out = Path(os.environ.get("OUT") or LOGS)
    outcomes = []
    for name in STAGES if rehearsal else args.what:
        # A rehearsal asks whether the commands are right, not how long a busy CPU takes.
        limits = (10 * STAGE_SECONDS, 5) if rehearsal else (STAGE_SECONDS, 1)
        outcomes += run_stage(name, device, out, *limits)
    print("\n" + "\n".join(map(str, outcomes)))
    bad = [o.step for o in outcomes if o.state != "ok" and not o.state.startswith("cannot run")]
    if bad:
        raise SystemExit(f"error: {len(bad)} steps did not end well: {', '.join(bad)}.")


if __name__ == "__main__":
    main()
