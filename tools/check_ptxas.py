"""Compiles every CUDA source; fails if a kernel leaves its registers or the compiler warns.

    python tools/check_ptxas.py [csrc/cuda/<op>.cu ...]

Needs the nvcc that setup.py would build with, not a GPU. Prints what ptxas says of every kernel.
"""

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARCHS = ("80", "90")  # the last one also as PTX
# Kernel (as in the table) and the reason why it may spill, or keep an array on its stack, which is
# memory too: an array lands there whole when an index into it is not known to the compiler.
EXCUSED: dict[str, str] = {}


@dataclass(frozen=True)
class Kernel:
    """One kernel for one architecture; bytes per thread (spills, stack) or per block (shared)."""

    name: str
    arch: str
    registers: int
    spills: int
    stack: int
    shared: int  # static


def parse(log: str) -> list[Kernel]:
    """The kernels of a log that `-Xptxas -v` wrote, their names as they stand there."""
    kernels = []
    entry = re.compile(r"Compiling entry function '(.+?)' for '(sm_\w+)'")
    blocks = list(entry.finditer(log))
    if not blocks:
        return []  # a source without kernels
    ends = [b.start() for b in blocks[1:]] + [len(log)]
    for block, end in zip(blocks, ends, strict=True):
        # The kernel's own lines come first; device functions that were not inlined may follow.
        text = log[block.end() : end]
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", text)
        used = re.search(r"Used (\d+) registers(.*)", text)
        if frame is None or used is None:
            raise ValueError(f"ptxas says nothing of {block[1]} for {block[2]}")
        shared = re.search(r"(\d+) bytes smem", used[2])
        kernels.append(
            Kernel(
                name=block[1],
                arch=block[2],
                registers=int(used[1]),
                spills=int(frame[2]) + int(frame[3]),
                stack=int(frame[1]),
                shared=int(shared[1]) if shared else 0,
            )
        )
    return kernels


def short_name(demangled: str) -> str:
    """A kernel's name with its template arguments, without namespaces and parameters."""
    name = re.sub(r"\(anonymous namespace\)::|\b\w+::", "", demangled)
    name = re.sub(r"\((?:int|bool|unsigned int)\)", "", name)  # of template arguments
    return name.split("(")[0].removeprefix("void ").strip()


def demangle(log: str) -> str:
    """The log with C++ names, if there is a tool for it."""
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None:
        return log
    return subprocess.run([tool], input=log, capture_output=True, text=True, check=True).stdout


def load_setup():
    """setup.py as a module: it knows where nvcc and its headers are."""
    spec = importlib.util.spec_from_file_location("psis_d2_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(setup, nvcc: Path, source: Path, output: Path) -> list[str]:
    """What compiles the device code of a source as setup.py would, warnings being errors."""
    from torch.utils.cpp_extension import COMMON_NVCC_FLAGS, include_paths

    targets = [f"arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]
    targets.append(f"arch=compute_{ARCHS[-1]},code=compute_{ARCHS[-1]}")
    return [
        str(nvcc),
        "-fatbin",
        *(flag for target in targets for flag in ("-gencode", target)),
        *("-std=c++17", "-O3", "-Xptxas=-v", "-Werror=all-warnings"),
        *COMMON_NVCC_FLAGS,
        *(flag for path in include_paths() for flag in ("-isystem", path)),
        *(f"-Xcompiler=-idirafter{path}" for path in setup.pip_cuda_includes()),
        *(str(source), "-o", str(output)),
    ]


def check_source(setup, nvcc: Path, source: Path) -> list[Kernel]:
    """Compiles one source; stops with the compiler's words if that fails."""
    with tempfile.TemporaryDirectory() as folder:
        words = command(setup, nvcc, source, Path(folder) / "kernels.fatbin")
        result = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    log = result.stdout + result.stderr
    if result.returncode != 0:
        problems = [s for s in log.splitlines() if not s.startswith("ptxas info") and s.strip()]
        print("\n".join(problems), file=sys.stderr)
        raise SystemExit(f"error: {source.name} does not compile without warnings.")
    return parse(demangle(log))


def print_table(kernels: Iterable[Kernel]) -> None:
    """One line a kernel and architecture."""
    rows = [("kernel", "arch", "registers", "spills", "stack", "static shared")]
    for k in kernels:
        rows.append(
            (short_name(k.name), k.arch, *map(str, (k.registers, k.spills, k.stack, k.shared)))
        )
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, width, strict=True)).rstrip())


def main() -> None:
    """Compiles, prints the table, fails with one sentence if a kernel leaves its registers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", type=Path, help="default: all of csrc/cuda")
    sources = parser.parse_args().sources or sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    setup = load_setup()
    nvcc = setup.find_nvcc()
    reason = setup.why_no_cuda(nvcc)
    if reason is not None:
        raise SystemExit(f"error: the CUDA sources cannot be compiled: {reason}.")
    kernels = [kernel for s in sources for kernel in check_source(setup, nvcc, s.resolve())]
    print_table(kernels)
    leaving = {short_name(k.name) for k in kernels if k.spills or k.stack}
    for name in sorted(leaving & set(EXCUSED)):
        print(f"{name} may leave its registers: {EXCUSED[name]}")
    if bad := sorted(leaving - set(EXCUSED)):
        raise SystemExit(f"error: these kernels spill or use a stack frame: {', '.join(bad)}.")
    clean = "" if leaving else ", no spills, no stack frames"
    print(f"{len(kernels)} kernels: no warnings{clean}")


if __name__ == "__main__":
    main()
