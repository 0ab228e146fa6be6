"""Configs and models by name, lists of models, and the addresses that Detectron2 learns."""

import hashlib
import json
import sys
import types
from pathlib import Path

import psis_d2
import psis_d2.modeling  # noqa: F401  (registers the addresses)
from psis_d2 import model_zoo
from psis_d2.cli import main, run_command
from psis_d2.errors import UserError
from psis_d2.model_zoo import catalog
from psis_d2.model_zoo.catalog import BUILTIN, Model, read_zoo, write_row
from psis_d2.model_zoo.download import state_of
from psis_d2.model_zoo.page import render_page
from psis_d2.model_zoo.weights import read_weights

import pytest
from detectron2.utils.file_io import PathManager

from file_server import FileServer

ROOT = Path(__file__).resolve().parents[2]
CONTENT = b"weights" * 100
SHA = hashlib.sha256(CONTENT).hexdigest()
ROW = {"name": "tiny", "config": "shapeprop_R50", "urls": ["file:files/tiny.pth"]}
ROW |= {"sha256": SHA, "size": len(CONTENT), "license": "MIT", "data": "shapes", "split": "voc"}


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A private zoo of one model, whose file lies beside its list; psis_d2 itself has none."""
    (tmp_path / "none.json").write_text('{"format": 1, "models": []}')
    monkeypatch.setattr(catalog, "BUILTIN", tmp_path / "none.json")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "tiny.pth").write_bytes(CONTENT)
    path = tmp_path / "zoo.json"
    path.write_text(json.dumps({"format": 1, "models": [ROW]}))
    monkeypatch.setenv("PSIS_D2_ZOO", str(path))
    monkeypatch.setenv("PSIS_D2_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PSIS_D2_OFFLINE", raising=False)
    return path


def test_configs_by_name():
    assert Path(model_zoo.get_config_file("shapeprop_R50")) == ROOT / "configs/shapeprop_R50.yaml"
    quick = model_zoo.get_config_file("quick/shapeprop_shapes.yaml")
    assert Path(quick) == ROOT / "configs/quick/shapeprop_shapes.yaml"
    with pytest.raises(RuntimeError, match="shapeprop_R5 not available in Model Zoo!"):
        model_zoo.get_config_file("shapeprop_R5")
    names = model_zoo.config_names()
    assert {"shapeprop_R50", "quick/shapeprop_shapes"} <= set(names)
    assert not [name for name in names if "Base-" in name]


def test_a_config_is_a_file_or_a_name_or_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_zoo.find_config_file("") == ""
    assert model_zoo.find_config_file("maskx_R50").endswith("/configs/maskx_R50.yaml")
    (tmp_path / "maskx_R50").write_text("")  # a file goes before a name
    assert model_zoo.find_config_file("maskx_R50") == "maskx_R50"
    with pytest.raises(UserError, match=r"maskx_r50 does not exist; did you mean maskx_R50\?"):
        model_zoo.find_config_file("maskx_r50")
    with pytest.raises(UserError, match="does not exist; psis-d2 zoo configs lists all"):
        model_zoo.find_config_file("xyzzy.yaml")


def test_unknown_models_are_answered_as_detectron2_does(zoo):
    for name in ("shapeprop_R101", "nothing"):
        with pytest.raises(RuntimeError, match=f"Pretrained model for {name} is not available!"):
            model_zoo.get_checkpoint_url(name)
        with pytest.raises(RuntimeError, match=f"Pretrained model for {name} is not available!"):
            model_zoo.get_config(name, trained=True)
    with pytest.raises(RuntimeError, match="nothing not available in Model Zoo!"):
        model_zoo.get_config("nothing")


def test_a_model_has_an_address_by_its_name_and_by_its_config(zoo):
    assert model_zoo.get_checkpoint_url("tiny") == "psis_d2://tiny"
    assert model_zoo.get_checkpoint_url("shapeprop_R50.yaml") == "psis_d2://tiny"
    twice = {"format": 1, "models": [ROW, {**ROW, "name": "other"}]}
    zoo.write_text(json.dumps(twice))  # which of the two is meant?
    with pytest.raises(RuntimeError, match="shapeprop_R50 is not available"):
        model_zoo.get_checkpoint_url("shapeprop_R50")


def test_configs_of_our_own_have_our_keys():
    cfg = model_zoo.get_config("shapeprop_R50")
    assert cfg.MODEL.ROI_MASK_HEAD.NAME == "ShapePropMaskHead" and cfg.PSIS.SEEN_CLASSES == "voc"


def test_detectron2_reads_an_address(zoo, tmp_path):
    path = PathManager.get_local_path("psis_d2://tiny")
    assert path == str(tmp_path / "files" / "tiny.pth")
    with PathManager.open("psis_d2://tiny", "rb") as file:
        assert file.read() == CONTENT
    assert PathManager.isfile("psis_d2://tiny")
    with pytest.raises(UserError, match=r"no trained model 'tony' in the zoo; did you mean tiny\?"):
        PathManager.get_local_path("psis_d2://tony")
    with pytest.raises(UserError, match="can be read only"):
        PathManager.open("psis_d2://tiny", "wb")


def test_a_zoo_at_an_address_and_its_copy(zoo, monkeypatch):
    remote = {**ROW, "name": "remote", "urls": ["file:weights/r.pth"]}
    listing = json.dumps({"format": 1, "models": [remote]}).encode()
    with FileServer({"/a/zoo.json": listing, "/a/weights/r.pth": CONTENT}) as server:
        monkeypatch.setenv("PSIS_D2_ZOO", f"{server.url('/a/zoo.json')}, {zoo}")
        assert list(model_zoo.models()) == ["remote", "tiny"]
        path = model_zoo.local_path("psis_d2://remote")
        assert path.read_bytes() == CONTENT and path.name == f"remote_{SHA[:8]}.pth"
    # The server is gone.
    assert list(model_zoo.models()) == ["remote", "tiny"]
    monkeypatch.setenv("PSIS_D2_OFFLINE", "1")
    assert model_zoo.local_path("remote") == path
    monkeypatch.setenv("PSIS_D2_ZOO", server.url("/b/zoo.json"))
    with pytest.raises(UserError, match="cannot be read .PSIS_D2_OFFLINE is set., and there is no"):
        model_zoo.models()


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"name": "../../evil"}, "the name '../../evil' has other than"),
        ({"sha256": "abc"}, "not 64 hexadecimal digits"),
        ({"size": "12"}, "no size in bytes"),
        ({"urls": []}, "has no urls"),
        ({"colour": 1}, "unknown key colour"),
    ],
)
def test_a_wrong_row_is_one_sentence(zoo, change, reason):
    zoo.write_text(json.dumps({"format": 1, "models": [{**ROW, **change}]}))
    with pytest.raises(UserError, match=reason) as error:
        model_zoo.models()
    assert str(zoo) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', '{"format": 2, "models": []}'])
def test_a_list_that_is_none_is_one_sentence(zoo, text):
    zoo.write_text(text)
    with pytest.raises(UserError, match="zoo.json"):
        model_zoo.models()
    zoo.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        model_zoo.models()


def test_the_hub_is_asked_for_the_file(zoo, monkeypatch):
    asked = []

    def hf_hub_download(repository, path, revision, local_files_only):
        asked.append((repository, path, revision, local_files_only))
        if path == "none.pth":
            raise OSError("Entry Not Found\nfor url ...")
        return str(zoo.parent / "files" / "tiny.pth")

    hub = types.SimpleNamespace(hf_hub_download=hf_hub_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with PathManager.open("hf://org/repo@v2/sub/tiny.pth", "rb") as file:
        assert file.read() == CONTENT
    assert asked == [("org/repo", "sub/tiny.pth", "v2", False)]
    with pytest.raises(UserError, match="none.pth cannot be downloaded .Entry Not Found."):
        PathManager.get_local_path("hf://org/repo/none.pth")
    with pytest.raises(UserError, match="is incomplete; give hf://ORG/REPO/FILE"):
        PathManager.get_local_path("hf://org/repo")
    # As an address of the zoo, the file is checked as any other.
    zoo.write_text(json.dumps({"format": 1, "models": [{**ROW, "urls": ["hf://org/repo/a.pth"]}]}))
    assert model_zoo.local_path("tiny").read_bytes() == CONTENT
    (zoo.parent / "files" / "tiny.pth").write_bytes(b"w")
    with pytest.raises(UserError, match="is not the file that the zoo means"):
        model_zoo.local_path("tiny")


def test_without_the_hubs_package_there_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if not installed
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        PathManager.get_local_path("hf://org/repo/a.pth")


def test_the_commands(zoo, capsys):
    assert run_command("zoo", ["list"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split()[0] == "tiny" and "shapes, voc, MIT" in line
    assert run_command("zoo", ["configs"]) == 0
    assert "quick/shapeprop_shapes" in capsys.readouterr().out.splitlines()
    assert run_command("zoo", ["path", "tiny"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.read_bytes() == CONTENT
    assert run_command("zoo", ["get", "tiny", "psis_d2://tiny"]) == 0
    assert run_command("zoo", ["check"]) == 0
    assert "tiny: right" in capsys.readouterr().out
    path.write_bytes(b"x" * len(CONTENT))
    assert run_command("zoo", ["check"]) == 1
    assert "tiny: wrong" in capsys.readouterr().out
    path.unlink()
    assert run_command("zoo", ["check"]) == 0  # nothing is wrong with what is not here
    assert run_command("zoo", ["check", "tiny"]) == 1
    with pytest.raises(SystemExit) as stop:
        main(["zoo", "path", "tiny"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: tiny_")


def test_rows_are_added_and_replaced(zoo):
    other = Model("other", "", ("hf://o/r/f.pth",), SHA, 3)
    write_row(str(zoo), other)
    write_row(str(zoo), Model("other", "", ("hf://o/r/g.pth",), SHA, 4, license="MIT"))
    found = {model.name: model for model in read_zoo(str(zoo))}
    assert list(found) == ["other", "tiny"] and found["other"].size == 4
    assert json.loads(zoo.read_text())["models"][1]["urls"] == ROW["urls"]  # still relative


OWN = read_zoo(str(BUILTIN))


def test_the_zoo_is_not_empty():
    assert OWN


@pytest.mark.parametrize("model", OWN, ids=lambda model: model.name)
def test_a_model_that_comes_along_is_what_the_list_says(model, monkeypatch):
    monkeypatch.setenv("PSIS_D2_OFFLINE", "1")
    monkeypatch.delenv("PSIS_D2_ZOO", raising=False)
    state, path = state_of(model)
    assert (state, path.parent) == ("right", BUILTIN.parent / "weights")
    assert path.name == model.file_name and model.size < 25e6
    assert model.config in ("", *model_zoo.config_names())
    assert model.command and model.metrics and model.note
    entry = read_weights(path)["psis_d2"]
    facts = ("name", "license", "note", "data", "split", "commit", "command", "metrics")
    assert {key: entry[key] for key in facts} == {key: getattr(model, key) for key in facts}
    assert model.commit and not model.commit.endswith("-dirty")
    pytest.importorskip("timm")
    predictor = psis_d2.Predictor(f"psis_d2://{model.name}", device="cpu")  # all weights fit
    assert predictor.class_names == entry["class_names"] and predictor.draws_masks


def test_the_page_is_made_from_the_list():
    page = (ROOT / "MODEL_ZOO.md").read_text(encoding="utf-8")
    assert page == render_page(read_zoo(str(BUILTIN))), "run psis-d2 zoo page"


def test_the_page_shows_what_was_measured_and_a_dash_for_the_rest():
    model = Model(
        *("m", "shapeprop_R50", ("https://x/m.pth",), SHA, 2_500_000),
        metrics={"segm_seen": {"AP": 41.26}, "gtbox_all": {"IoU": 70.04}},
        command="psis-d2 train --eval-only",
        note="photographs under their own terms",
    )
    (row,) = [line for line in render_page([model]).splitlines() if line.startswith("| `m`")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:1] + cells[4:9] == ["`m`", "41.3", "-", "70.0", "2.5", f"`{SHA[:8]}`"]
    assert "`psis-d2 train --eval-only`" in render_page([model])
    assert "* `m`: photographs under their own terms\n" in render_page([model])
