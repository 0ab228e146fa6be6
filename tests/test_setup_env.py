"""The environment's set-up where it can go wrong, without installing anything."""

import importlib.util
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "setup_env.py"
SETUP_PY = """setup(
    name="pb1-detectron2",
    package_data={"detectron2.model_zoo": get_model_zoo_configs()},
    install_requires=["future", "pydot", "black==21.4b2",],
    ext_modules=get_extensions(),
)
"""


@pytest.fixture
def setup_env(tmp_path, monkeypatch):
    """The script as a module that works in an empty folder; ``calls`` are what it would run."""
    spec = importlib.util.spec_from_file_location("setup_env", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / ".venv"
    venv.mkdir()
    (tmp_path / "psis_d2").mkdir()
    (tmp_path / "csrc" / "cpu").mkdir(parents=True)
    (tmp_path / "setup.py").write_text("setup()")
    paths = {"ROOT": tmp_path, "VENV": venv, "STATE": venv / "psis_d2.json"}
    paths |= {"LOG": venv / "setup.log", "PYTHON": venv / "bin" / "python"}
    for name, path in paths.items():
        monkeypatch.setattr(module, name, path)
    module.calls = []

    def run(command, **options):
        module.calls.append([str(word) for word in command])
        return ""

    monkeypatch.setattr(module, "run", run)
    for name in ("PSIS_D2_DETECTRON2", "PSIS_D2_BUILD_CUDA", "TORCH_CUDA_ARCH_LIST", "DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return module


def test_the_command_is_on_the_path_of_the_environment(setup_env):
    folder = setup_env.PYTHON.parent
    folder.mkdir()
    setup_env.ensure_command()
    script = folder / "psis-d2"
    assert script.stat().st_mode & 0o111
    assert script.read_text().startswith(f"#!{setup_env.PYTHON}\n")
    done = subprocess.run(
        [sys.executable, str(script), "--help"],
        cwd=SCRIPT.parents[1],
        capture_output=True,
        text=True,
    )
    assert "usage: psis-d2 COMMAND" in done.stdout
    before = script.stat().st_mtime_ns
    setup_env.ensure_command()  # only where it is not there yet
    assert script.stat().st_mtime_ns == before


def write_sdist(folder: Path, setup_py: str = SETUP_PY) -> Path:
    path = folder / "pb1-detectron2-0.6.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        data = setup_py.encode()
        member = tarfile.TarInfo("pb1-detectron2-0.6/setup.py")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return path


def test_another_sdist_is_refused_and_nothing_is_installed(setup_env, tmp_path, monkeypatch):
    path = write_sdist(tmp_path)
    monkeypatch.setenv("PSIS_D2_DETECTRON2", str(path))
    state = {}
    with pytest.raises(
        setup_env.SetupError, match="is not the Detectron2 that was tested"
    ) as error:
        setup_env.ensure_detectron2(state)
    assert setup_env.sha256(path) in str(error.value) and "\n" not in str(error.value)
    assert setup_env.calls == [] and state == {}


def test_the_sdist_becomes_a_pure_package_named_detectron2(setup_env, tmp_path, monkeypatch):
    path = write_sdist(tmp_path)
    monkeypatch.setattr(setup_env, "SDIST_SHA256", setup_env.sha256(path))
    seen = []

    def pip(*arguments, what):
        seen.append((Path(arguments[-1]) / "setup.py").read_text())

    monkeypatch.setattr(setup_env, "pip", pip)
    setup_env.install_sdist(path)
    (text,) = seen
    assert 'name="detectron2"' in text and "ext_modules=[]" in text
    assert '"configs/**/*.yaml"' in text
    for gone in ("get_extensions", "get_model_zoo_configs", "black", "future", "pydot"):
        assert gone not in text


def test_an_edit_that_does_not_apply_is_an_error(setup_env, tmp_path, monkeypatch):
    path = write_sdist(tmp_path, SETUP_PY.replace("ext_modules", "extensions"))
    monkeypatch.setattr(setup_env, "SDIST_SHA256", setup_env.sha256(path))
    with pytest.raises(setup_env.SetupError, match="ext_modules"):
        setup_env.install_sdist(path)
    assert setup_env.calls == []


def test_a_detectron2_of_the_users_choice(setup_env, tmp_path, monkeypatch):
    monkeypatch.setenv("PSIS_D2_DETECTRON2", str(tmp_path / "missing"))
    with pytest.raises(setup_env.SetupError, match="does not exist"):
        setup_env.ensure_detectron2({})
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    monkeypatch.setenv("PSIS_D2_DETECTRON2", str(checkout))
    state = {}
    setup_env.ensure_detectron2(state)
    setup_env.ensure_detectron2(state)  # done already
    (command,) = setup_env.calls
    assert command[-1] == str(checkout) and "--no-deps" in command


def test_a_detectron2_that_is_there_is_kept(setup_env, monkeypatch):
    monkeypatch.setattr(setup_env, "importable", lambda name: name == "detectron2")
    setup_env.ensure_detectron2({})
    assert setup_env.calls == []


def test_the_extension_is_built_when_something_it_depends_on_changed(
    setup_env, tmp_path, monkeypatch
):
    state = {"packages": "torch of today"}
    source = tmp_path / "csrc" / "cpu" / "op.cpp"

    def builds() -> list[list[str]]:
        setup_env.calls.clear()
        setup_env.ensure_extension(state)
        (tmp_path / "psis_d2" / "_C.cpython-311.so").touch()
        return list(setup_env.calls)

    source.write_text("int a;")
    (first,) = builds()
    assert "build_ext" in first and "--inplace" in first
    assert builds() == []
    source.write_text("int b;")
    (again,) = builds()
    assert "--force" not in again  # the other objects are kept
    assert builds() == []
    source.rename(source.with_name("renamed.cpp"))
    assert len(builds()) == 1
    monkeypatch.setenv("PSIS_D2_BUILD_CUDA", "0")
    (anew,) = builds()
    assert "--force" in anew
    (tmp_path / "psis_d2" / "_C.cpython-311.so").unlink()
    assert len(builds()) == 1


def test_beside_a_host_only_what_it_lacks_is_installed(setup_env, monkeypatch, tmp_path):
    for name in setup_env.REQUIREMENTS:
        (tmp_path / name).write_text((SCRIPT.parents[1] / name).read_text())
    (tmp_path / "constraints.txt").touch()
    lacking = {"pytest", "iopath"}
    monkeypatch.setattr(setup_env, "importable", lambda name: name not in lacking)
    listed = '[{"name": "torch", "version": "2.4.0+cu121"}, {"name": "pip", "version": "23"}]'
    commands = []

    def run(command, **options):
        words = [str(word) for word in command]
        if "list" in words:
            return f"WARNING: a line\n{listed}\n"
        constraints = Path(words[words.index("-c") + 1]).read_text() if "-c" in words else ""
        commands.append((words, constraints))
        return ""

    monkeypatch.setattr(setup_env, "run", run)
    host = {"folders": [], "detectron2": ["0.6", "/host/detectron2"], "torch": "2.4.0+cu121"}
    setup_env.ensure_packages({"host": host})
    (tools, _), (words, constraints) = commands
    assert any(word.startswith("clang-format==") for word in tools) and "--no-deps" in tools
    assert {"pytest", "iopath"} <= set(words) and "torch" not in words and "numpy" not in words
    assert constraints == "torch==2.4.0+cu121\n"


def test_an_unsupported_python_is_refused_in_one_sentence(setup_env, monkeypatch):
    monkeypatch.setattr(setup_env.sys, "version_info", (3, 9, 1))
    monkeypatch.setattr(setup_env, "probe_host", lambda: None)
    with pytest.raises(setup_env.SetupError, match="Python 3.9 is not supported; .* 3.10 to 3.12"):
        setup_env.ensure_venv({})
