"""Detectron2 v0.6 on current libraries and without its extension; nothing changed otherwise."""

import importlib.util
import subprocess
import sys

from psis_d2 import compat

import numpy as np
import pytest
from PIL import Image


def run_python(code: str, *path) -> str:
    """Run code in a new interpreter, with folders put in front of its path; what it prints."""
    lines = [f"import sys; sys.path[:0] = {[str(p) for p in path]}", code]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def fake_detectron2(tmp_path):
    """Makes a folder with a package `detectron2` that notes when it is imported."""

    def make(extension: bool):
        package = tmp_path / "detectron2"
        package.mkdir()
        (package / "__init__.py").write_text("print('imported')\n")
        if extension:
            (package / "_C.py").write_text("answer = 42\n")
        return tmp_path

    return make


def test_removed_numpy_names_come_back_and_others_stay(monkeypatch):
    monkeypatch.delitem(np.__dict__, "float")
    monkeypatch.setitem(np.__dict__, "int", "somebody's own")
    compat.restore_removed_names()
    assert np.float is float
    assert np.int == "somebody's own"


def test_numpy_keeps_a_bool_of_its_own():
    # NumPy 2 has np.bool again, NumPy 1.24 to 1.26 have none.
    expected = np.bool_ if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else bool
    assert np.bool is expected


def test_removed_pillow_names_come_back_and_others_stay(monkeypatch):
    monkeypatch.delattr(Image, "LINEAR")
    monkeypatch.setattr(Image, "CUBIC", "somebody's own")
    compat.restore_removed_names()
    assert Image.LINEAR == Image.Resampling.BILINEAR
    assert Image.CUBIC == "somebody's own"


def test_importing_psis_d2_imports_neither_torch_nor_detectron2(pytestconfig):
    code = "import psis_d2; print({'torch', 'detectron2'} & set(sys.modules))"
    assert run_python(code, pytestconfig.rootpath) == "set()"


def test_a_missing_extension_is_replaced_by_a_stub(fake_detectron2, pytestconfig):
    code = "\n".join(
        [
            "import psis_d2",
            "from detectron2 import _C",
            "print(_C.has_cuda(), _C.get_cuda_version(), hasattr(_C, '__path__'))",
            "try: _C.nms_rotated(1)",
            "except RuntimeError as error: print(error)",
        ]
    )
    folder = fake_detectron2(extension=False)
    first, report, error = run_python(code, folder, pytestconfig.rootpath).splitlines()
    assert first == "imported"
    assert report == "False none False"
    assert "detectron2._C.nms_rotated is not available" in error and "from source" in error


def test_an_existing_extension_is_left_alone(fake_detectron2, pytestconfig):
    code = "import psis_d2; from detectron2 import _C; print(_C.answer)"
    folder = fake_detectron2(extension=True)
    assert run_python(code, folder, pytestconfig.rootpath).splitlines() == ["imported", "42"]


def test_without_detectron2_there_is_nothing_to_replace(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "detectron2" else find(name)
    )
    monkeypatch.delitem(sys.modules, "detectron2._C", raising=False)
    compat.stub_missing_extension()
    assert "detectron2._C" not in sys.modules
    assert compat.find_own_extension() is None


def test_the_installed_detectron2_imports_and_reports_its_environment(pytestconfig):
    code = "\n".join(
        [
            "import psis_d2",
            "import detectron2.engine, detectron2.evaluation, detectron2.modeling",
            "from detectron2.utils.collect_env import collect_env_info",
            "print('Pillow' in collect_env_info())",
        ]
    )
    assert run_python(code, pytestconfig.rootpath).splitlines()[-1] == "True"
