"""What a built package holds, and that it works where there is no checkout."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import psis_d2
from psis_d2.model_zoo.catalog import BUILTIN, read_zoo
from psis_d2.model_zoo.download import state_of
from psis_d2.model_zoo.weights import read_weights

import pytest

from tiny_data import write_tiny_data

ROOT = Path(__file__).resolve().parents[1]
# What a wheel is made from.
SOURCES = ("configs", "csrc", "psis_d2", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml")
IGNORED = shutil.ignore_patterns("__pycache__", "*.so")


def build_wheel(folder: Path, *, hide_torch: bool = False, **variables) -> Path:
    """Build from a copy of the sources, with the packages of this environment."""
    tree = folder / "tree"
    tree.mkdir(parents=True)
    for name in (*SOURCES, "setup.py"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        options = {"ignore": IGNORED} if copy is shutil.copytree else {}
        copy(ROOT / name, tree / name, **options)
    env = {**os.environ, "PSIS_D2_BUILD_CUDA": "0", **variables}
    env["PYTHONPATH"] = str(folder / "hidden")
    if hide_torch:
        (folder / "hidden").mkdir()
        (folder / "hidden" / "torch.py").write_text("raise ImportError('hidden')\n")
    done = subprocess.run(
        [sys.executable, "setup.py", "bdist_wheel", "--dist-dir", str(folder / "wheels")],
        cwd=tree,
        env=env,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    if done.returncode:
        raise RuntimeError(done.stderr or done.stdout)
    (wheel,) = (folder / "wheels").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def pure_wheel(tmp_path_factory) -> Path:
    """A wheel that was built where there is no PyTorch, as pip does without a flag."""
    return build_wheel(tmp_path_factory.mktemp("pure"), hide_torch=True)


def test_a_build_without_torch_is_pure_python(pure_wheel):
    assert pure_wheel.name == f"psis_d2-{psis_d2.__version__}-py3-none-any.whl"


def test_the_wheel_holds_all_code_and_all_configs_and_nothing_else(pure_wheel):
    names = set(zipfile.ZipFile(pure_wheel).namelist())
    code = {p.relative_to(ROOT).as_posix() for p in (ROOT / "psis_d2").rglob("*.py")}
    configs = {
        f"psis_d2/model_zoo/{p.relative_to(ROOT).as_posix()}"
        for p in (ROOT / "configs").rglob("*.yaml")
    }
    assert len(configs) > 50
    zoo = ROOT / "psis_d2" / "model_zoo"
    lists = (ROOT / "psis_d2" / "data" / "split_lists").glob("*.txt")
    papers = ROOT / "psis_d2" / "experiments"
    papers = (papers / "head.md", *papers.rglob("*.yaml"))
    data = (zoo / "zoo.json", *zoo.glob("weights/*"), *lists, *papers)
    data = {p.relative_to(ROOT).as_posix() for p in data}
    found = {name for name in names if ".dist-info/" not in name}
    assert found == code | configs | data


def test_the_wheel_has_the_command_and_open_requirements(pure_wheel):
    archive = zipfile.ZipFile(pure_wheel)
    (info,) = {n.split("/")[0] for n in archive.namelist() if ".dist-info/" in n}
    assert "psis-d2 = psis_d2.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
    metadata = archive.read(f"{info}/METADATA").decode()
    needed = [x for x in metadata.splitlines() if x.startswith("Requires-Dist: ")]
    assert not [x for x in needed if "==" in x.split(";")[0]]
    always = {x.split()[1].split(">")[0].split("<")[0] for x in needed if "extra ==" not in x}
    assert {"torch", "numpy", "pycocotools", "fvcore", "iopath"} <= always
    assert "opencv-python-headless" not in always and "scikit-learn" not in always


@pytest.mark.parametrize(
    "variables, hidden, sentence",
    [
        ({"PSIS_D2_BUILD_EXT": "1"}, True, "PSIS_D2_BUILD_EXT=1, but PyTorch is not installed"),
        ({"PSIS_D2_BUILD_EXT": "yes"}, False, "PSIS_D2_BUILD_EXT must be 0, 1 or unset"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(variables, hidden, sentence, tmp_path):
    with pytest.raises(RuntimeError) as failure:
        build_wheel(tmp_path, hide_torch=hidden, **variables)
    last = str(failure.value).strip().splitlines()[-1]
    assert last.startswith("error: ") and sentence in last


def run(python: Path, *words: str, folder: Path) -> str:
    """Run an installed command away from the checkout; returns all that it prints."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"DETECTRON2_DATASETS": str(folder / "datasets"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(python.parent / words[0]), *words[1:]],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def install(wheel: Path, folder: Path) -> Path:
    """The interpreter of a new environment beside this one's packages, without the checkout."""
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python = venv / "bin" / "python"
    (site,) = venv.glob("lib/python3*/site-packages")
    lent = {sysconfig.get_path("purelib")}
    lent |= {str(Path(importlib.util.find_spec(m).origin).parents[1]) for m in ("torch", "pip")}
    # As lines of paths, their own .pth files (one leads to the checkout) are not read.
    (site / "lent.pth").write_text("\n".join(sorted(lent)) + "\n")
    run(python, "python", "-m", "pip", "install", "--no-deps", str(wheel), folder=folder)
    where = run(python, "python", "-c", "import psis_d2; print(psis_d2.__file__)", folder=folder)
    assert str(site) in where
    return python


NO_NETWORK = """
import socket
def refuse(*args, **kwargs):
    raise SystemExit("somebody asked for the network")
socket.socket.connect = socket.getaddrinfo = refuse
"""


@pytest.mark.slow
def test_models_of_the_zoo_label_boxes_without_a_network(tmp_path, pure_wheel):
    """What psis_d2 brings along gives boxes masks on a machine that nothing reaches."""
    pytest.importorskip("timm")
    python = install(pure_wheel, tmp_path)
    (site,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    (site / "no_network.py").write_text(NO_NETWORK)
    (site / "no_network.pth").write_text("import no_network\n")
    data = write_tiny_data(tmp_path / "data", images=3, masked=())
    assert "right" in run(python, "psis-d2", "zoo", "check", folder=tmp_path)
    known = {m.name: read_weights(state_of(m)[1])["psis_d2"] for m in read_zoo(str(BUILTIN))}
    assert known
    for name, entry in known.items():
        content = json.loads(Path(data["json"]).read_text())
        for category, of_model in zip(content["categories"], entry["class_names"], strict=False):
            category["name"] = of_model
        Path(data["json"]).write_text(json.dumps(content))
        line = ["psis-d2", "autolabel", f"psis_d2://{name}", "--images", data["images"]]
        line += ["--boxes", data["json"], "--output", f"{name}.json", "--device", "cpu"]
        printed = run(python, *line, folder=tmp_path)
        assert "6 annotations got a mask" in printed
        labeled = json.loads((tmp_path / f"{name}.json").read_text())["annotations"]
        assert all(x["source"] == "psis_d2" and x["area"] > 0 for x in labeled)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True], ids=["pure", "compiled"])
def test_an_installed_package_trains_a_config_by_name(compiled, tmp_path, pure_wheel):
    wheel = build_wheel(tmp_path / "built", PSIS_D2_BUILD_EXT="1") if compiled else pure_wheel
    if compiled:
        assert "-cp310-abi3-" in wheel.name
    python = install(wheel, tmp_path)
    report = run(python, "psis-d2", "doctor", folder=tmp_path)
    assert "psis_d2 works here" in report
    assert ("extension on cpu" in report) == compiled
    line = ["psis-d2", "train", "--config-file", "quick/shapeprop_shapes", "--num-gpus", "0"]
    line += ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "[]", "TEST.EXPECTED_RESULTS", "[]"]
    printed = run(python, *line, "OUTPUT_DIR", "out", folder=tmp_path)
    assert (tmp_path / "out" / "model_final.pth").is_file()
    assert "segm_all" in (tmp_path / "out" / "results.json").read_text()
    assert printed.count("All ops run in plain PyTorch") == (not compiled)
