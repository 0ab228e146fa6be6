"""tools/gpu_session.py: what a GPU is lent for must not be lost to a step that fails or hangs."""

import os
import subprocess
import sys
import tarfile
import time

import pytest
from tool_scripts import TOOLS, load_tool


@pytest.fixture
def session():
    return load_tool("gpu_session")


@pytest.fixture
def stage(session, monkeypatch, tmp_path):
    """Runs a stage of given steps; returns (outcomes, folder for OUT)."""
    monkeypatch.setattr(session, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(session, "PACK", tmp_path / "pack")
    out = tmp_path / "out"

    def run(*steps, seconds=60.0):
        monkeypatch.setattr(session, "STAGES", {"1": lambda place: steps})
        return session.run_stage("1", "cpu", out, seconds), out

    return run


def python(session, name, code, seconds=30, **kwargs):
    return session.Step(name, [sys.executable, "-c", code], seconds, **kwargs)


def test_a_step_that_fails_or_hangs_does_not_stop_the_next(session, stage, capsys):
    # The step that hangs has a child that would hold the log open.
    hang = "import subprocess as s, time; s.Popen(['sleep', '60']); time.sleep(60)"
    start = time.monotonic()
    outcomes, out = stage(
        python(session, "good", "print('all is well')"),
        python(session, "bad", "print('went wrong'); raise SystemExit(3)"),
        python(session, "slow", hang, seconds=6),
        session.Step("absent", ["no-such-tool"], 30, "no no-such-tool"),
        python(session, "last", "print('still here')"),
    )
    assert time.monotonic() - start < 40
    states = [outcome.state for outcome in outcomes]
    assert states == ["ok", "failed (3)", "over 6 s", "cannot run: no no-such-tool", "ok"]
    printed = capsys.readouterr().out
    assert "all is well" in printed and "went wrong" in printed and "still here" in printed
    assert [path.name for path in out.iterdir()] == ["gpu_session_1.tar.gz"]
    with tarfile.open(out / "gpu_session_1.tar.gz") as archive:
        names = archive.getnames()
        table = archive.extractfile("stage_1/table.txt").read().decode()
    assert "stage_1/01_bad.log" in names and "stage_1/04_last.log" in names
    assert [line.split()[0] for line in table.splitlines()] == [o.step for o in outcomes]


def test_a_stage_ends_in_time(session, stage):
    steps = [python(session, name, "import time; time.sleep(60)") for name in ("first", "second")]
    outcomes, _ = stage(*steps, seconds=8)
    assert outcomes[0].state in ("over 8 s", "over 7 s") and outcomes[1].state == "no time left"


def test_an_archive_stays_below_its_size(session, tmp_path):
    folder = tmp_path / "stage_1"
    folder.mkdir()
    (folder / "small.log").write_text("kept")
    (folder / "large.bin").write_bytes(os.urandom(300_000))
    target = tmp_path / "out" / "x.tar.gz"
    assert session.archive(folder, target, limit=100_000) == ["large.bin"]
    with tarfile.open(target) as archive:
        assert archive.getnames() == ["stage_1/small.log"]
    assert session.archive(folder, target, limit=1_000_000) == []


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", "123")
def test_what_stages_run_exists_and_fits_into_their_time(session, tmp_path, name, device):
    steps = list(session.STAGES[name](session.Place(device, tmp_path)))
    assert len({step.name for step in steps}) == len(steps) > 3
    for step in steps:
        for word in step.words:
            if word.endswith((".py", ".yaml")) and " " not in word:
                assert (session.ROOT / word).is_file(), word
    # Limits are for what hangs: a stage may hold more of them than its time.
    assert all(step.seconds < session.STAGE_SECONDS for step in steps)


def test_a_pure_package_is_copied_without_what_is_compiled(session, tmp_path):
    session.copy_package("yacs", tmp_path)
    assert not list(tmp_path.rglob("*.so")) and not list(tmp_path.rglob("*.pyc"))
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import yacs.config as c"
    words = [sys.executable, "-I", "-c", f"{code}; print(c.__file__)"]
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(tmp_path))


def test_the_decision_about_attention_follows_the_times():
    tool = load_tool("gpu/decide_attention")
    rows = [
        {"case": "a", "dtype": "float32", "variant": "sdpa", "both us": "200"},
        {"case": "a", "dtype": "float32", "variant": "sdpa efficient", "both us": "100"},
        {"case": "a", "dtype": "float32", "variant": "ours", "both us": "50"},
        {"case": "a", "dtype": "float32", "variant": "ours (hot L2)", "both us": "10"},
        {"case": "a", "dtype": "float32", "variant": "compile sdpa", "both us": "1"},
        {"case": "b", "dtype": "float32", "variant": "sdpa", "both us": ""},
        {"case": "b", "dtype": "float32", "variant": "ours", "both us": "50"},
    ]
    assert tool.decisions(rows) == [("a", "float32", 2.0, "sdpa efficient")]


def test_every_kernel_runs_on_the_cpu():
    script = [sys.executable, str(TOOLS / "gpu" / "every_kernel.py")]
    result = subprocess.run(script, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("message_passing") == 24 and "WRONG" not in result.stdout


@pytest.mark.slow
def test_the_rehearsal_runs_all_that_a_cpu_can(tmp_path):
    words = [sys.executable, str(TOOLS / "gpu_session.py"), "rehearse"]
    environment = os.environ | {"OUT": str(tmp_path)}
    result = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"gpu_session_{stage}.tar.gz" for stage in "123"]
    assert "cannot run: needs a GPU" in result.stdout
