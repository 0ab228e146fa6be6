"""Every verdict of the doctor from made-up facts, and the report of this machine."""

import subprocess
import sys
from dataclasses import replace

from psis_d2 import doctor
from psis_d2.doctor import Facts, Gpu, Module, covers, inspect_module, report, verdicts

import pytest

HOPPER = Gpu("Hopper", (9, 0), 140.0)
HEALTHY = Facts(
    python=(3, 11, 7),
    torch=Module("2.11.0"),
    torch_cuda="13.0",
    torchvision=Module("0.26.0"),
    detectron2=Module("0.6", "/site/detectron2"),
    packages={"numpy": Module("2.4.6")},
    gpus=(HOPPER,),
    nvidia_driver=True,
    nvcc="13.0",
    build={
        "compiler": "gcc 12",
        "torch": "2.11.0",
        "cuda": "13.0",
        "archs": "8.0;9.0+PTX",
        "backends": ["cpu", "cuda"],
    },
    op_paths={"message_passing": {"cpu": "extension", "cuda": "extension"}},
    datasets_exists=True,
    coco=True,
)
CPU_BUILD = {**HEALTHY.build, "cuda": "", "archs": "", "backends": ["cpu"]}
NOT_BUILT = "psis_d2's extension is not used: it is not built; run `make build`."


def change(**facts) -> Facts:
    return replace(HEALTHY, **facts)


# facts, whether it blocks, words of what is wrong, words of how to fix it
CASES = {
    "old python": (change(python=(3, 8, 1)), False, "Python 3.8.1", "3.10 to 3.12"),
    "new python": (change(python=(3, 13, 0)), False, "Python 3.13.0", "3.10 to 3.12"),
    "no numpy": (
        change(packages={"numpy": Module()}),
        *(True, "numpy: not installed", 'pip install "numpy"'),
    ),
    "broken package": (
        change(packages={"pycocotools": Module(error="bad ABI")}),
        *(True, "pycocotools: does not import (bad ABI)", 'pip install "pycocotools"'),
    ),
    "no torch": (change(torch=Module()), True, "PyTorch: not installed", "make env"),
    "torchvision of another torch": (
        change(torchvision=Module(error="no nms")),
        *(True, "no nms", "belongs to torch 2.11.0"),
    ),
    "no detectron2": (change(detectron2=Module()), True, "Detectron2: not installed", "make env"),
    "detectron2 of another torch": (
        change(detectron2=Module(error="undefined symbol"), detectron2_extension=True),
        *(True, "undefined symbol", "rebuild it"),
    ),
    "broken detectron2": (
        change(detectron2=Module(error="no module x")),
        *(True, "no module x", "reinstall it"),
    ),
    "broken optional package": (
        change(optional={"scikit-learn": Module(error="bad ABI")}),
        *(False, "scikit-learn: does not import (bad ABI)", "reinstall it"),
    ),
    "no torch, not a checkout": (
        change(torch=Module(), checkout=False),
        *(True, "PyTorch: not installed", "pip install torch"),
    ),
    "no detectron2, not a checkout": (
        change(detectron2=Module(), checkout=False),
        *(True, "Detectron2: not installed", "pip install --no-build-isolation git+https"),
    ),
    "no cuda kernels, not a checkout": (
        change(build=CPU_BUILD, checkout=False),
        *(False, "no CUDA kernels", "PSIS_D2_BUILD_CUDA=1 pip install --no-build-isolation"),
    ),
    "no pkg_resources": (change(pkg_resources=False), True, "pkg_resources", "setuptools<81"),
    "torch without cuda": (
        change(torch_cuda="", gpus=(), build=CPU_BUILD),
        *(False, "built without CUDA", "CUDA build of torch"),
    ),
    "old driver": (change(gpus=()), False, "sees no GPU", "nvidia-smi"),
    "not built": (
        change(extension_error=NOT_BUILT, build={}),
        False,
        "plain PyTorch",
        "make build",
    ),
    "built for another torch": (
        change(build={**HEALTHY.build, "torch": "2.9.0"}),
        *(False, "built for torch 2.9.0, this is 2.11.0", "make clean, then make build"),
    ),
    "no cuda kernels": (
        change(build=CPU_BUILD),
        *(False, "no CUDA kernels", "PSIS_D2_BUILD_CUDA=1"),
    ),
    "no nvcc": (
        change(build=CPU_BUILD, nvcc=""),
        *(False, "no CUDA kernels", "install the CUDA 13.0 toolkit (no nvcc"),
    ),
    "other nvcc": (
        change(build=CPU_BUILD, nvcc="12.4"),
        *(False, "no CUDA kernels", "(nvcc 12.4 is there)"),
    ),
    "older gpu than built for": (
        change(gpus=(Gpu("Turing", (7, 5), 16.0),)),
        *(True, "which Turing cannot run", 'TORCH_CUDA_ARCH_LIST="7.5"'),
    ),
    "datasets folder missing": (
        change(datasets="/data", datasets_set=True, datasets_exists=False, coco=False),
        *(False, "/data, which does not exist", "correct it"),
    ),
    "no coco": (change(coco=False), False, "COCO is not in", "DETECTRON2_DATASETS"),
}


def test_a_healthy_machine_has_no_verdict():
    assert verdicts(HEALTHY) == []


def test_a_healthy_machine_without_gpu_has_no_verdict():
    facts = change(gpus=(), nvidia_driver=False, nvcc="", torch_cuda="", build=CPU_BUILD)
    assert verdicts(facts) == []


@pytest.mark.parametrize("facts, blocks, what, fix", CASES.values(), ids=CASES)
def test_each_fault_has_one_verdict(facts, blocks, what, fix):
    (verdict,) = verdicts(facts)
    assert verdict.blocks is blocks
    assert what in verdict.what
    assert fix in verdict.fix
    line = str(verdict)
    assert line.startswith("problem: " if blocks else "note: ")
    assert line.endswith(".") and "\n" not in line


def test_blocking_verdicts_come_first():
    found = verdicts(change(coco=False, python=(3, 9, 0), pkg_resources=False))
    assert [verdict.blocks for verdict in found] == [True, False, False]


def test_the_report_of_a_fault_still_prints():
    for facts, *_ in CASES.values():
        assert "torch" in report(facts)


def test_what_only_some_things_need_is_no_verdict():
    facts = change(optional={"opencv-python-headless": Module(), "safetensors": Module("0.8.0")})
    assert verdicts(facts) == []
    lines = dict(line.split("  ", 1) for line in report(facts).splitlines())
    assert lines["opencv-python-headless"].strip() == "not installed  (only for GrabCut)"
    assert lines["safetensors"].strip() == "0.8.0"


def test_the_fixes_outside_of_a_checkout_do_not_ask_for_make():
    for facts, *_ in CASES.values():
        elsewhere = replace(facts, checkout=False, extension_error="")
        assert not any("make " in verdict.fix for verdict in verdicts(elsewhere))


def test_the_report_names_the_path_of_every_op():
    line = next(line for line in report(HEALTHY).splitlines() if "message_passing" in line)
    assert "extension on cpu, extension on cuda" in line
    line = next(x for x in report(change(gpus=())).splitlines() if "message_passing" in x)
    assert "cuda" not in line


@pytest.mark.parametrize(
    "archs, capability, expected",
    [
        ("8.0", (8, 0), True),
        ("8.0", (8, 6), True),  # a binary runs on a later minor version
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("8.0+PTX", (9, 0), True),  # PTX is compiled for what comes later
        ("9.0+PTX", (8, 9), False),
        ("7.5;8.0", (8, 9), True),
        ("9.0a", (9, 0), True),
        ("12.0", (12, 0), True),
    ],
)
def test_which_gpus_an_architecture_list_covers(archs, capability, expected):
    assert covers(archs, capability) is expected


def test_inspecting_modules(tmp_path, monkeypatch):
    (tmp_path / "good_one.py").write_text("__version__ = '1.2'\n")
    (tmp_path / "bad_one.py").write_text("raise OSError('libfoo.so is missing')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert inspect_module("good_one") == Module("1.2", str(tmp_path))
    assert inspect_module("bad_one") == Module(error="libfoo.so is missing")
    assert inspect_module("no_such_module_anywhere") == Module()


@pytest.mark.parametrize("facts, status", [(HEALTHY, 0), (change(torch=Module()), 1)])
def test_the_exit_status_says_whether_something_blocks(facts, status, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "collect_facts", lambda: facts)
    assert doctor.main() == status
    assert ("psis_d2 works here" in capsys.readouterr().out) is (status == 0)


def test_this_machine_is_examined(pytestconfig, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "psis_d2", "doctor"],
        cwd=pytestconfig.rootpath,
        env={"PATH": "/usr/bin:/bin", "DETECTRON2_DATASETS": str(tmp_path / "nowhere")},
        capture_output=True,
        text=True,
    )
    # The tests themselves run here, so that nothing can block.
    assert done.returncode == 0, done.stdout + done.stderr
    assert "op message_passing" in done.stdout
    assert "nowhere, which does not exist" in done.stdout
