"""tools/check_ptxas.py: what it reads from a log, and, where nvcc is, the kernels themselves."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOG = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'void ns::fast<14, ns::Half>(ns::Half const*)' for 'sm_80'
ptxas info    : Function properties for void ns::fast<14, ns::Half>(ns::Half const*)
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 115 registers, used 1 barriers, 256 bytes smem, 440 bytes cmem[0]
ptxas info    : Compiling entry function 'void ns::slow<float>(float*)' for 'sm_90'
ptxas info    : Function properties for void ns::slow<float>(float*)
    16 bytes stack frame, 12 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 168 registers, 16 bytes cumulative stack size
"""


@pytest.fixture
def tool(monkeypatch):
    spec = importlib.util.spec_from_file_location("check_ptxas", ROOT / "tools" / "check_ptxas.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "check_ptxas", module)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_reads_registers_spills_and_shared_memory(tool):
    fast, slow = tool.parse(LOG)
    assert (fast.arch, fast.registers, fast.spills, fast.shared) == ("sm_80", 115, 0, 256)
    assert (slow.arch, slow.registers, slow.spills, slow.stack) == ("sm_90", 168, 36, 16)
    assert tool.short_name(fast.name) == "fast<14, Half>"


def test_a_kernel_without_figures_is_an_error(tool):
    with pytest.raises(ValueError, match="says nothing of"):
        tool.parse(LOG.replace("Used 115 registers", "Used"))


def test_a_source_without_kernels_has_none(tool):
    assert tool.parse("ptxas info    : 0 bytes gmem\n") == []


NO_SPILL = LOG.replace("12 bytes spill stores, 24", "0 bytes spill stores, 0")


@pytest.mark.parametrize(("allowed", "fails"), [({}, True), ({"slow<float>": "a reason"}, False)])
@pytest.mark.parametrize("log", [LOG, NO_SPILL], ids=["spill", "stack frame alone"])
def test_what_leaves_its_registers_fails_unless_there_is_a_reason(
    tool, monkeypatch, capsys, log, allowed, fails
):
    monkeypatch.setattr(tool, "load_setup", lambda: FakeSetup)
    monkeypatch.setattr(tool, "check_source", lambda *_: tool.parse(log))
    monkeypatch.setattr(tool, "EXCUSED", allowed)
    monkeypatch.setattr(sys, "argv", ["check_ptxas.py", "one.cu"])
    if fails:
        with pytest.raises(SystemExit, match=r"stack frame: slow<float>\."):
            tool.main()
    else:
        tool.main()
        assert "slow<float> may leave its registers: a reason" in capsys.readouterr().out


class FakeSetup:
    find_nvcc = staticmethod(lambda: Path("nvcc"))
    why_no_cuda = staticmethod(lambda nvcc: None)


@pytest.mark.slow
def test_no_kernel_leaves_its_registers(tool):
    setup = tool.load_setup()
    if setup.why_no_cuda(setup.find_nvcc()) is not None:
        pytest.skip("no nvcc that fits PyTorch")
    command = [sys.executable, str(ROOT / "tools" / "check_ptxas.py")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
