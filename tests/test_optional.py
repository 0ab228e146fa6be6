"""Libraries that may be missing."""

import subprocess
import sys

from psis_d2.errors import UserError
from psis_d2.optional import require

import pytest


def test_a_library_that_is_there_is_imported():
    assert require("json.decoder") is sys.modules["json.decoder"]


def test_a_missing_library_is_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setattr("sys.meta_path", [])
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    with pytest.raises(UserError) as caught:
        require("cv2")
    assert str(caught.value) == (
        "This needs cv2, which is not installed; run: pip install opencv-python-headless"
    )


def test_a_broken_library_keeps_its_traceback(tmp_path, monkeypatch):
    (tmp_path / "half_there.py").write_text("import what_it_needs")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="what_it_needs"):
        require("half_there")


def test_everything_but_pictures_and_drawn_data_imports_without_the_optional_libraries():
    code = (
        "import sys\n"
        "for name in ('cv2', 'sklearn', 'threadpoolctl'): sys.modules[name] = None\n"
        "import psis_d2.modeling, psis_d2.engine.trainer, psis_d2.engine.setup\n"
        "from psis_d2.data.grabcut import GrabCut\n"
        "from psis_d2.errors import UserError\n"
        "import numpy as np\n"
        "try: GrabCut()(np.zeros((9, 9, 3), np.uint8), (3, 3, 6, 6))\n"
        "except UserError as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "pip install opencv-python-headless" in ran.stdout
