"""From a training's checkpoint to a name that evaluates, trains and predicts elsewhere."""

import json
import re
import shutil
import sys
import types
from pathlib import Path

import psis_d2.modeling  # noqa: F401  (registers detectors and heads)
from psis_d2 import model_zoo
from psis_d2.cli import run_command
from psis_d2.engine.publish import portable_config
from psis_d2.errors import UserError
from psis_d2.model_zoo.weights import read_weights, write_weights

import numpy as np
import pytest
import torch
import train_net
import yaml
from detectron2.engine import DefaultPredictor
from PIL import Image

from tiny_data import command_line, write_tiny_data

pytestmark = pytest.mark.usefixtures("catalogs")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A teacher-student model after two iterations: data, opts, folder of the training."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_tiny_data(folder / "data")
    boxes = ("TEST.BOXES", "both")
    line = command_line(data, folder / "train", *boxes, config="teacher_student_shapes")
    train_net.main(train_net.parse_arguments(line))
    start = line.index("--num-gpus")
    return data, line[:start] + line[start + 2 :], folder / "train"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PSIS_D2_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PSIS_D2_OFFLINE", raising=False)
    monkeypatch.delenv("PSIS_D2_ZOO", raising=False)


def publish(trained, output, *flags):
    _, line, folder = trained
    weights = ["MODEL.WEIGHTS", str(folder / "model_final.pth")]
    options = ["--name", "tiny", "--license", "MIT", "--output", str(output), *flags]
    return run_command("publish", [*options, *line, *weights])


def published_file(folder):
    (file,) = [p for p in folder.iterdir() if p.suffix in (".pth", ".safetensors")]
    return file


def test_a_published_file_says_all_of_itself_and_holds_no_more_than_the_student(trained, tmp_path):
    out = tmp_path / "published"
    facts = ("--command", "psis-d2 train", "--data", "rectangles", "--commit", "abc123")
    facts += ("--note", "drawn by us")
    assert publish(trained, out, *facts) == 0
    file = published_file(out)
    row = json.loads((out / "zoo.json").read_text())["models"][0]
    assert file.name == f"tiny_{row['sha256'][:8]}.pth"
    assert row["urls"] == [f"file:{file.name}"] and row["size"] == file.stat().st_size
    assert sorted(p.name for p in out.iterdir()) == sorted(["tiny.md", file.name, "zoo.json"])

    content = torch.load(file, weights_only=True)
    before = torch.load(trained[2] / "model_final.pth", weights_only=True)["model"]
    assert content.keys() == {"model", "psis_d2"}
    assert all(torch.equal(x, before[name]) for name, x in content["model"].items())
    left_out = before.keys() - content["model"].keys()
    assert left_out and all(name.startswith("roi_heads.mask_head.teacher.") for name in left_out)
    entry = content["psis_d2"]
    assert entry["class_names"] == ["box", "cup", "hat"] and entry["seen_ids"] == [0]
    assert (entry["name"], entry["license"], entry["data"]) == ("tiny", "MIT", "rectangles")
    assert entry["split"] == "auto" and entry["command"] == "psis-d2 train"
    assert entry["note"] == row["note"] == "drawn by us"
    assert entry["commit"] == row["commit"] == "abc123"
    assert entry["versions"]["torch"] == str(torch.__version__)
    results = json.loads((trained[2] / "results.json").read_text())
    assert entry["metrics"].keys() == results.keys()
    assert entry["metrics"] == row["metrics"]

    config = yaml.safe_load(entry["config"])
    assert config["MODEL"]["WEIGHTS"] == "psis_d2://tiny"
    assert config["PSIS"]["TEACHER_STUDENT"]["STUDENT_ONLY"] is True
    assert str(tmp_path) not in entry["config"] and str(trained[2].parent) not in entry["config"]
    card = (out / "tiny.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert "* drawn by us\n" in card
    assert "with masks: box\n" in card and "with boxes only: cup, hat\n" in card


def test_a_config_keeps_no_file_of_the_training(tmp_path):
    file = tmp_path / "file.json"
    file.write_text("{}")
    cfg = model_zoo.get_config("light/agnostic")
    for key in ("CATEGORY_MAP", "MASK_IMAGES", "MISSING_MASKS", "SEEN_CLASSES", "TRAIN_CLASSES"):
        cfg.PSIS[key] = str(file)
    cfg.PSIS.MISSING_MASK_SCORE_POWER = 2.0
    cfg.PSIS.TIMM.WEIGHTS = cfg.TEST.MASKS = cfg.PSIS.CACHE_DIR = str(file)
    cfg.PSIS.DATA_FILES = [["coco_2017_val_100", str(file), str(tmp_path)]]
    cfg.DATASETS.TRAIN = ("coco_2017_val_100", "coco_2017_train", "nobody_knows")
    before = cfg.clone()
    found = portable_config(cfg, "tiny")
    assert str(tmp_path) not in found.dump() and cfg == before
    assert found.DATASETS.TRAIN == ("coco_2017_train",)
    assert (found.PSIS.SEEN_CLASSES, found.PSIS.TRAIN_CLASSES) == ("auto", "all")
    assert (found.PSIS.MISSING_MASKS, found.PSIS.MISSING_MASK_SCORE_POWER) == ("none", 0.0)
    assert (found.PSIS.TIMM.WEIGHTS, found.PSIS.DATA_FILES) == ("auto", [])


def test_it_evaluates_elsewhere_by_its_name_to_the_last_digit(trained, tmp_path, monkeypatch):
    publish(trained, tmp_path / "published")
    shutil.move(tmp_path / "published", tmp_path / "elsewhere")
    monkeypatch.setenv("PSIS_D2_ZOO", str(tmp_path / "elsewhere" / "zoo.json"))
    data = trained[0]
    files = [x for flag in ("json", "images") for x in (f"--val-{flag}", data[flag])]
    line = ["--config-file", "psis_d2://tiny", "--num-gpus", "0", "--eval-only", *files]
    train_net.invoke_main([*line, "TEST.BOXES", "both", "OUTPUT_DIR", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    expected = json.loads((trained[2] / "results.json").read_text())
    # Of all categories: which of them count as seen is the command line's to say.
    tasks = {"bbox_all", "segm_all", "gtbox_all"}
    assert {task: found[task] for task in tasks} == {task: expected[task] for task in tasks}


def test_it_trains_on_from_its_name(trained, tmp_path, monkeypatch):
    publish(trained, tmp_path)
    monkeypatch.setenv("PSIS_D2_ZOO", str(tmp_path / "zoo.json"))
    named = ("MODEL.WEIGHTS", "psis_d2://tiny")
    line = command_line(trained[0], tmp_path / "on", *named, config="agnostic_shapes")
    line[line.index("--config-file") + 1] = "quick/agnostic_shapes"
    train_net.main(train_net.parse_arguments([*line, "PSIS.SKIP_MISMATCHED_WEIGHTS", "True"]))
    assert (tmp_path / "on" / "model_final.pth").is_file()


def test_detectron2s_predictor_and_the_zoos_functions_load_it(trained, tmp_path, monkeypatch):
    publish(trained, tmp_path)
    monkeypatch.setenv("PSIS_D2_ZOO", str(tmp_path / "zoo.json"))
    cfg = model_zoo.get_config("tiny", trained=True)
    assert cfg.MODEL.WEIGHTS == "psis_d2://tiny" and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    predictor = DefaultPredictor(cfg)
    image = np.asarray(Image.open(f"{trained[0]['images']}/000.png"))
    found = predictor(image[:, :, ::-1])["instances"]
    assert len(found) and found.pred_masks.shape[1:] == image.shape[:2]

    model = model_zoo.get("tiny", trained=True, device="cpu")
    assert model.training
    weights = read_weights(published_file(tmp_path))["model"]
    state = model.state_dict()
    assert all(torch.equal(state[name], x) for name, x in weights.items())


def test_safetensors_and_back(trained, tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    publish(trained, tmp_path / "a", "--safetensors")
    publish(trained, tmp_path / "b")
    a, b = (read_weights(published_file(tmp_path / x)) for x in "ab")
    assert published_file(tmp_path / "a").suffix == ".safetensors"
    assert a["model"].keys() == b["model"].keys()
    assert all(torch.equal(x, b["model"][name]) for name, x in a["model"].items())
    assert a["psis_d2"] == b["psis_d2"]
    # Detectron2's checkpointer, which knows nothing of them, loads them by their name.
    monkeypatch.setenv("PSIS_D2_ZOO", str(tmp_path / "a" / "zoo.json"))
    state = model_zoo.get("tiny", trained=True, device="cpu").state_dict()
    assert all(torch.equal(state[name], x) for name, x in b["model"].items())
    write_weights(tmp_path / "again.pth", a)
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert again["psis_d2"] == b["psis_d2"]
    assert all(torch.equal(x, b["model"][name]) for name, x in again["model"].items())


def test_upload_to_the_hub(trained, tmp_path, monkeypatch):
    calls = []

    class HfApi:
        def create_repo(self, repository, exist_ok):
            calls.append(("create", repository, exist_ok))

        def upload_file(self, *, path_or_fileobj, path_in_repo, repo_id):
            start = Path(path_or_fileobj).read_bytes()[:4]
            calls.append(("upload", start, path_in_repo, repo_id))

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfApi=HfApi))
    publish(trained, tmp_path, "--push", "org/repo", "--base-url", "https://host/models/")
    file = published_file(tmp_path)
    assert calls[0] == ("create", "org/repo", True)
    assert calls[1] == ("upload", b"PK\x03\x04", file.name, "org/repo")
    assert calls[2] == ("upload", b"---\n", "README.md", "org/repo")
    row = json.loads((tmp_path / "zoo.json").read_text())["models"][0]
    assert row["urls"] == [f"https://host/models/{file.name}", f"hf://org/repo/{file.name}"]

    def refuse(self, *args, **kwargs):
        raise RuntimeError("401 Unauthorized\nmore")

    HfApi.create_repo = refuse
    with pytest.raises(UserError, match=r"upload to org/repo failed \(401 Unauthorized\)"):
        publish(trained, tmp_path / "again", "--push", "org/repo")
    assert not (tmp_path / "again" / "zoo.json").exists()  # a row only when the file is there


def test_what_cannot_be_published_is_one_sentence(trained, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--name is '../x'; use letters"):
        publish(trained, tmp_path, "--name", "../x")
    with pytest.raises(UserError, match="results .*none.json cannot be used"):
        publish(trained, tmp_path, "--results", str(tmp_path / "none.json"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        publish(trained, tmp_path, "--push", "org/repo")
    assert list(tmp_path.iterdir()) == []


class RunsCode:
    """What a pickle that runs code looks like."""

    def __reduce__(self):
        return (open, (RunsCode.path, "w"))


def test_a_file_that_would_run_code_runs_none(tmp_path):
    RunsCode.path = str(tmp_path / "ran")
    torch.save({"model": {"a": RunsCode()}}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=re.escape("evil.pth holds more than weights")):
        read_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "text.pth").write_text("hello")
    for name in ("text.pth", "none.pth"):
        with pytest.raises(UserError, match=name):
            read_weights(tmp_path / name)
