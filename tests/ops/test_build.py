"""setup.py decides what to build and says so; the extension knows what it was built with."""

import os
import subprocess
import sys
from pathlib import Path

from psis_d2.ops import build_info, has_extension, has_kernel, op_paths

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def run_setup(**variables):
    """`python setup.py --version`, which decides about CUDA but builds nothing."""
    env = os.environ | {"CUDA_HOME": "", "CUDA_PATH": ""} | variables
    return subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def fake_toolkit(folder: Path, release: str) -> Path:
    """A CUDA_HOME whose nvcc only tells its version."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}'\n")
    nvcc.chmod(0o755)
    return folder


def test_forced_cuda_without_nvcc_fails_with_one_sentence(tmp_path):
    result = run_setup(PSIS_D2_BUILD_CUDA="1", CUDA_HOME=str(tmp_path / "absent"))
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: PSIS_D2_BUILD_CUDA=1, but ")
    wanted = "nvcc" if torch.version.cuda else "without CUDA"
    assert wanted in last and "Traceback" not in result.stderr


@pytest.mark.skipif(torch.version.cuda is None, reason="PyTorch is built without CUDA")
def test_another_major_version_of_nvcc_is_refused(tmp_path):
    toolkit = fake_toolkit(tmp_path / "cuda", "9.2")
    forced = run_setup(PSIS_D2_BUILD_CUDA="1", CUDA_HOME=str(toolkit))
    assert forced.returncode != 0
    assert f"is nvcc 9, but PyTorch is built with CUDA {torch.version.cuda}" in forced.stderr
    left_out = run_setup(PSIS_D2_BUILD_CUDA="", CUDA_HOME=str(toolkit))
    assert left_out.returncode == 0 and "CPU kernels only" in left_out.stdout


def test_cuda_can_be_left_out():
    result = run_setup(PSIS_D2_BUILD_CUDA="0")
    assert result.returncode == 0
    assert "CPU kernels only (PSIS_D2_BUILD_CUDA=0)" in result.stdout


def test_another_value_is_refused():
    result = run_setup(PSIS_D2_BUILD_CUDA="yes")
    assert result.returncode != 0
    assert "PSIS_D2_BUILD_CUDA must be 0, 1 or unset, not 'yes'." in result.stderr


@pytest.mark.skipif(not has_extension(), reason="the extension is not built")
def test_build_info_matches_the_paths():
    info = build_info()
    assert info["torch"] == torch.__version__ and info["compiler"]
    assert ("cuda" in info["backends"]) == bool(info["cuda"]) == bool(info["archs"])
    for op, paths in op_paths().items():
        assert paths["cpu"] == "extension"
        assert has_kernel(op, "cuda") == ("cuda" in info["backends"])
        assert has_kernel(op, "cuda") or paths["cuda"] == "pytorch"
