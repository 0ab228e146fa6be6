"""What is installed, what was built, which path every op takes; and how to fix what is wrong.

    psis-d2 doctor

Exits with 0 when nothing keeps psis_d2 from working, with 1 otherwise. Beside NumPy and Pillow it
needs none of what it reports on: what cannot be imported is a line of the report.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import psis_d2
from psis_d2 import compat

SUPPORTED_PYTHON = ((3, 10), (3, 12))
# Module -> what pip calls it. Without any of these psis_d2 or Detectron2 does not work.
NEEDED = {
    "numpy": "numpy",
    "PIL": "pillow",
    "pycocotools": "pycocotools",
    "fvcore": "fvcore",
    "iopath": "iopath",
}
# Module -> what pip calls it, and what it is for.
OPTIONAL = {
    "cv2": ("opencv-python-headless", "GrabCut"),
    "sklearn": ("scikit-learn", "making shape priors"),
    "huggingface_hub": ("huggingface_hub", "models at hf://"),
    "safetensors": ("safetensors", "weights as .safetensors"),
}
IN_CHECKOUT = (Path(psis_d2.__file__).parents[1] / "Makefile").is_file()


@dataclass(frozen=True)
class Module:
    """What became of importing a module. Neither version nor error: it is not installed."""

    version: str = ""
    path: str = ""
    error: str = ""

    @property
    def works(self) -> bool:
        """Whether it could be imported."""
        return bool(self.version)

    def __str__(self) -> str:
        if self.works:
            return self.version + (f"  {self.path}" if self.path else "")
        return f"does not import ({self.error})" if self.error else "not installed"


@dataclass(frozen=True)
class Gpu:
    """One CUDA device; `capability` is (major, minor)."""

    name: str
    capability: tuple[int, int]
    memory_gib: float

    def __str__(self) -> str:
        major, minor = self.capability
        return f"{self.name}, compute capability {major}.{minor}, {self.memory_gib:.0f} GiB"


@dataclass(frozen=True)
class Facts:
    """All that the report says and the verdicts are made of."""

    python: tuple[int, ...] = (3, 11, 0)
    system: str = ""
    torch: Module = Module()
    torch_cuda: str = ""  # the CUDA version that torch was built with; "" = none
    torchvision: Module = Module()  # works only if its compiled operators do
    detectron2: Module = Module()
    detectron2_extension: bool = False
    pkg_resources: bool = True
    packages: dict[str, Module] = field(default_factory=dict)
    optional: dict[str, Module] = field(default_factory=dict)
    checkout: bool = True  # whether `make` is how things are installed here
    gpus: tuple[Gpu, ...] = ()  # that torch can use
    nvidia_driver: bool = False
    nvcc: str = ""  # version
    extension_error: str = ""  # why the built extension is not loaded; "" if it is
    build: dict = field(default_factory=dict)  # see psis_d2.ops.build_info; {} without extension
    op_paths: dict[str, dict[str, str]] = field(default_factory=dict)
    cuda_kernels: dict[str, str] = field(default_factory=dict)  # by op, if it has several
    datasets: str = "datasets"  # the folder
    datasets_set: bool = False  # whether DETECTRON2_DATASETS names it
    datasets_exists: bool = False
    coco: bool = False


@dataclass(frozen=True)
class Verdict:
    """One thing that is wrong; `blocks` if psis_d2 does not work until it is fixed."""

    blocks: bool
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{'problem' if self.blocks else 'note'}: {self.what}; {self.fix}."


# ---------------------------------------------------------------------------------- facts


def inspect_module(name: str, distribution: str | None = None) -> Module:
    """Import a module and say what came of it.

    Args:
        name: the module.
        distribution: what pip calls it, if the module does not know its version.
    """
    try:
        if importlib.util.find_spec(name) is None:
            return Module()
        module = importlib.import_module(name)
    # A broken compiled module raises anything, also at import.
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        return Module(error=lines[0])
    version = getattr(module, "__version__", "")
    if not version:
        try:
            version = importlib.metadata.version(distribution or name)
        except importlib.metadata.PackageNotFoundError:
            version = "of unknown version"
    path = getattr(module, "__file__", None) or ""
    return Module(version=str(version), path=os.path.dirname(path))


def collect_facts() -> Facts:
    """Look at this machine."""
    facts = {
        "python": tuple(sys.version_info[:3]),
        "system": platform.platform(),
        "torch": inspect_module("torch"),
        "pkg_resources": importlib.util.find_spec("pkg_resources") is not None,
        "packages": {pip: _short(inspect_module(name, pip)) for name, pip in NEEDED.items()},
        "optional": {pip: _short(inspect_module(name, pip)) for name, (pip, _) in OPTIONAL.items()},
        "checkout": IN_CHECKOUT,
        "nvidia_driver": shutil.which("nvidia-smi") is not None,
        "nvcc": _nvcc_version(),
    }
    if facts["torch"].works:
        facts.update(_torch_facts())
    facts.update(_dataset_facts())
    return Facts(**facts)


def _short(module: Module) -> Module:
    return Module(module.version, "", module.error)


def _torch_facts() -> dict:
    """Facts that need torch: the GPUs, and everything that is built on it."""
    import torch

    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.cuda.get_device_properties(index)
        gpus.append(Gpu(device.name, (device.major, device.minor), device.total_memory / 2**30))
    vision = inspect_module("torchvision")
    if vision.works:
        # It imports, with a warning, also when its operators do not fit torch.
        try:
            boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
            torch.ops.torchvision.nms(boxes, torch.ones(1), 0.5)
        except (AttributeError, RuntimeError, NotImplementedError) as error:
            vision = Module(error=f"its operators do not load: {str(error).splitlines()[0]}")
    detectron2 = inspect_module("detectron2")
    if detectron2.works:
        # The package itself imports almost nothing.
        layers = inspect_module("detectron2.modeling", "detectron2")
        if not layers.works:
            detectron2 = Module(error=layers.error)
    ops = importlib.import_module("psis_d2.ops")
    return {
        "torch_cuda": torch.version.cuda or "",
        "gpus": tuple(gpus),
        "torchvision": vision,
        "detectron2": detectron2,
        "detectron2_extension": compat.find_own_extension() is not None,
        "extension_error": ops.load_error() or "",
        "build": ops.build_info() or {},
        "op_paths": ops.op_paths(),
        "cuda_kernels": _cuda_kernels(ops) if gpus else {},
    }


def _cuda_kernels(ops) -> dict[str, str]:
    """What the ops that have several CUDA kernels say of this machine's GPU."""
    if ops.op_paths()["message_passing"]["cuda"] != "extension":
        return {}
    module = importlib.import_module("psis_d2.ops.message_passing")
    return {"message_passing": module.cuda_kernels()}


def _dataset_facts() -> dict:
    root = os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    coco = os.path.join(root, "coco", "annotations", "instances_train2017.json")
    return {
        "datasets": os.path.abspath(root),
        "datasets_set": "DETECTRON2_DATASETS" in os.environ,
        "datasets_exists": os.path.isdir(root),
        "coco": os.path.isfile(coco),
    }


def _nvcc_version() -> str:
    """The version of nvcc where setup.py looks for it, "" if there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    default = "/usr/local/cuda/bin/nvcc"
    nvcc = os.path.join(home, "bin", "nvcc") if home else shutil.which("nvcc") or default
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    except OSError:
        return ""
    found = re.search(r"release ([\d.]+)", text)
    return found.group(1) if found else ""


# ---------------------------------------------------------------------------------- verdicts


def verdicts(facts: Facts) -> list[Verdict]:
    """What is wrong, blocking things first. Depends on nothing but the facts."""
    found = [*_installation(facts), *_gpu(facts), *_extension(facts), *_datasets(facts)]
    return sorted(found, key=lambda verdict: not verdict.blocks)


def _installation(facts: Facts):
    if not SUPPORTED_PYTHON[0] <= facts.python[:2] <= SUPPORTED_PYTHON[1]:
        version = ".".join(map(str, facts.python))
        low, high = (".".join(map(str, limit)) for limit in SUPPORTED_PYTHON)
        yield Verdict(False, f"Python {version} is not tested", f"use one of {low} to {high}")
    for name, module in facts.packages.items():
        if not module.works:
            fix = f'run pip install "{name}"' + ", or make env" * facts.checkout
            yield Verdict(True, f"{name}: {module}", fix)
    for name, module in facts.optional.items():
        if module.error:
            yield Verdict(False, f"{name}: {module}", f'reinstall it: pip install "{name}"')
    if not facts.torch.works:
        fix = "run make env, or pip install torch" if facts.checkout else "run pip install torch"
        yield Verdict(True, f"PyTorch: {facts.torch}", fix)
        return  # everything below needs it
    if not facts.torchvision.works:
        fix = f"install the torchvision that belongs to torch {facts.torch.version}"
        yield Verdict(True, f"torchvision: {facts.torchvision}", fix)
    if facts.detectron2.error:
        fix = "rebuild it against this PyTorch" if facts.detectron2_extension else "reinstall it"
        yield Verdict(True, f"Detectron2: {facts.detectron2}", fix)
    elif not facts.detectron2.works:
        fix = (
            "run make env, which installs v0.6, or install it from its repository"
            if facts.checkout
            else "install it: pip install --no-build-isolation "
            "git+https://github.com/facebookresearch/detectron2"
        )
        yield Verdict(True, "Detectron2: not installed", fix)
    if not facts.pkg_resources:
        what = "pkg_resources, which Detectron2's model zoo imports, is missing"
        yield Verdict(True, what, 'run pip install "setuptools<81"')


def _gpu(facts: Facts):
    if not facts.torch.works or facts.gpus or not facts.nvidia_driver:
        return
    if not facts.torch_cuda:
        what = f"an NVIDIA driver is there, but torch {facts.torch.version} is built without CUDA"
        yield Verdict(False, what, "install a CUDA build of torch to train on the GPU")
    else:
        what = f"torch, built for CUDA {facts.torch_cuda}, sees no GPU although a driver is there"
        fix = "run nvidia-smi: update an older driver, and check CUDA_VISIBLE_DEVICES"
        yield Verdict(False, what, fix)


def _extension(facts: Facts):
    if not facts.torch.works:
        return
    if facts.extension_error:
        # A whole sentence, which says how to fix it.
        sentence, _, fix = facts.extension_error.rstrip(".").rpartition("; ")
        what = f"every op runs in plain PyTorch, which is slower: {sentence}"
        yield Verdict(False, what, fix)
        return
    built_for = facts.build.get("torch", "")
    if built_for and built_for != facts.torch.version:
        what = f"the extension was built for torch {built_for}, this is {facts.torch.version}"
        yield Verdict(False, what, _build_anew(facts))
    if not facts.gpus:
        return
    if "cuda" not in facts.build.get("backends", ()):
        what = "the extension has no CUDA kernels, on the GPU every op runs in plain PyTorch"
        same_major = facts.nvcc.split(".")[0] == facts.torch_cuda.split(".")[0]
        if facts.nvcc and same_major:
            fix = _build_anew(facts, "PSIS_D2_BUILD_CUDA=1 ")
        else:
            there = f"nvcc {facts.nvcc} is there" if facts.nvcc else "no nvcc was found"
            fix = f"install the CUDA {facts.torch_cuda} toolkit ({there}), then "
            fix += _build_anew(facts)
        yield Verdict(False, what, fix)
        return
    archs = facts.build.get("archs", "")
    for gpu in dict.fromkeys(facts.gpus):
        if archs and not covers(archs, gpu.capability):
            major, minor = gpu.capability
            what = f"the extension is built for {archs}, which {gpu.name} cannot run"
            fix = _build_anew(facts, f'TORCH_CUDA_ARCH_LIST="{major}.{minor}" ')
            yield Verdict(True, what, fix)


def _build_anew(facts: Facts, setting: str = "") -> str:
    """How to compile the extension once more, with a variable of the environment."""
    if facts.checkout:
        return f"build it anew with make clean, then {setting}make build"
    return f"install psis_d2 anew from its source: {setting}pip install --no-build-isolation ."


def covers(archs: str, capability: tuple[int, int]) -> bool:
    """Whether kernels built for `archs` run on a GPU.

    A binary runs on GPUs of its major version and at least its minor version; PTX is compiled on
    first use for any GPU that is not older.

    Args:
        archs: as in TORCH_CUDA_ARCH_LIST, such as "8.0;9.0+PTX".
        capability: of the GPU.
    """
    for major, minor, ptx in re.findall(r"(\d+)\.(\d)a?(\+PTX)?", archs):
        arch = (int(major), int(minor))
        if arch <= capability and (ptx or arch[0] == capability[0]):
            return True
    return False


def _datasets(facts: Facts):
    if facts.datasets_set and not facts.datasets_exists:
        what = f"DETECTRON2_DATASETS is {facts.datasets}, which does not exist"
        yield Verdict(False, what, "correct it, or create the folder")
    elif not facts.coco:
        what = f"COCO is not in {facts.datasets}"
        fix = "for COCO, set DETECTRON2_DATASETS to the folder that holds coco/annotations"
        yield Verdict(False, what, fix)


# ---------------------------------------------------------------------------------- the report


def report(facts: Facts) -> str:
    """The facts as aligned lines."""
    cuda = f"built for CUDA {facts.torch_cuda}" if facts.torch_cuda else "built without CUDA"
    own = "" if facts.detectron2_extension else "out"
    detectron2 = f"{facts.detectron2}, with{own} its extension" + " (not needed)" * bool(own)
    rows = [
        ("psis_d2", f"{psis_d2.__version__}  {os.path.dirname(psis_d2.__file__)}"),
        ("Python", f"{'.'.join(map(str, facts.python))}  {sys.executable}"),
        ("system", facts.system),
        ("torch", f"{facts.torch.version}, {cuda}" if facts.torch.works else facts.torch),
        ("torchvision", _short(facts.torchvision)),
        ("Detectron2", detectron2 if facts.detectron2.works else facts.detectron2),
        *facts.packages.items(),
        *((name, _optional_line(name, module)) for name, module in facts.optional.items()),
        *((f"GPU {index}", gpu) for index, gpu in enumerate(facts.gpus)),
        *([] if facts.gpus else [("GPU", "none that torch can use")]),
        ("nvcc", facts.nvcc or "none"),
        ("extension", _extension_line(facts)),
    ]
    for op, paths in facts.op_paths.items():
        here = {device: path for device, path in paths.items() if device == "cpu" or facts.gpus}
        line = ", ".join(f"{path} on {device}" for device, path in here.items())
        kernels = facts.cuda_kernels.get(op)
        rows.append((f"op {op}", line + (f" ({kernels})" if kernels else "")))
    state = "COCO is there" if facts.coco else "no COCO" if facts.datasets_exists else "no folder"
    rows.append(("data sets", f"{facts.datasets}  ({state})"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _optional_line(name: str, module: Module) -> str:
    uses = dict(OPTIONAL.values())
    return str(module) + (f"  (only for {uses[name]})" if module == Module() else "")


def _extension_line(facts: Facts) -> str:
    if not facts.build:
        return "not loaded"
    kernels = "CPU kernels"
    if "cuda" in facts.build["backends"]:
        kernels += f" and CUDA {facts.build['cuda']} kernels for {facts.build['archs']}"
    return f"{kernels}, built with {facts.build['compiler']} for torch {facts.build['torch']}"


def main() -> int:
    """Print the report and the verdicts. Returns the exit status."""
    facts = collect_facts()
    print(report(facts))
    found = verdicts(facts)
    print()
    for verdict in found:
        print(verdict)
    blocked = sum(verdict.blocks for verdict in found)
    print(f"{blocked} to fix first." if blocked else "psis_d2 works here.")
    return 1 if blocked else 0


if __name__ == "__main__":
    sys.exit(main())
