"""The split of a checkpoint is that of its evaluation, and of nothing else without a word."""

import json
from pathlib import Path

import psis_d2  # noqa: F401
from psis_d2.config import add_psis_config
from psis_d2.data import seen_ids_for
from psis_d2.data.coco import register_coco_json
from psis_d2.engine.split import with_split_of

import pytest
import torch
import train_net
from detectron2.config import CfgNode, get_cfg

from tiny_data import command_line, write_tiny_data

pytestmark = pytest.mark.usefixtures("catalogs")
CLASSES = ["box", "cup", "hat"]


@pytest.fixture
def cfg(tmp_path):
    """What the split of a config is read from; its data has masks of all three classes."""
    data = write_tiny_data(tmp_path / "data", masked=CLASSES)
    register_coco_json("tiny_split", data["json"], data["images"])
    cfg = get_cfg()
    add_psis_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ("tiny_split",)
    cfg.PSIS.SEEN_CLASSES = "all"
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    return cfg


def adopted(cfg, seen, split="", classes=CLASSES):
    """Names that are seen in the evaluation of a checkpoint, and what its config calls them."""
    ids = [classes.index(name) for name in seen]
    new = with_split_of(cfg, {"class_names": classes, "seen_ids": ids, "split": split})
    return [CLASSES[i] for i in seen_ids_for(new)], new.PSIS.SEEN_CLASSES


def test_the_checkpoints_split_is_taken(cfg, tmp_path):
    file = str(tmp_path / "out" / "seen_classes.txt")
    assert adopted(cfg, ["cup"], "auto") == (["cup"], file)
    assert Path(file).read_text() == "cup\n"
    assert adopted(cfg, ["box", "hat"], "voc") == (["box", "hat"], file)
    # a name that means the same here goes on meaning it
    cfg.PSIS.SEEN_CLASSES = "random-2-5"
    names = [CLASSES[i] for i in seen_ids_for(cfg)]
    cfg.PSIS.SEEN_CLASSES = "all"
    assert adopted(cfg, names, "random-2-5") == (names, "random-2-5")


def test_the_same_split_is_left_alone(cfg):
    entry = {"class_names": CLASSES, "seen_ids": [0, 1, 2], "split": "auto"}
    assert with_split_of(cfg, entry) is cfg
    assert with_split_of(cfg, {}) is cfg  # a file of earlier versions, or of others
    assert with_split_of(cfg, {"class_names": [], "seen_ids": []}) is cfg


def test_names_are_matched_not_numbers(cfg):
    """A checkpoint of more classes, in another order; the data lacks one of its seen ones."""
    seen, _ = adopted(cfg, ["jar", "hat"], "auto", ["jar", "hat", "cup", "box"])
    assert seen == ["hat"]


def test_a_file_of_the_same_name_is_not_taken_for_the_checkpoints(cfg, tmp_path):
    (tmp_path / "seen.txt").write_text("box\n")
    seen, split = adopted(cfg, ["hat"], str(tmp_path / "seen.txt"))
    assert seen == ["hat"]
    assert split.endswith("seen_classes.txt")


def test_a_run_keeps_its_split(tmp_path, capsys, caplog):
    """From training to an evaluation on data that has masks of all, and to a resumed run."""
    data = write_tiny_data(tmp_path / "train", masked=("cup",))
    quick = ("DATALOADER.NUM_WORKERS", 0, "TEST.BOXES", "gt")
    line = command_line(data, tmp_path / "out", *quick, "DATASETS.TEST", "[]")
    train_net.main(train_net.parse_arguments(line))
    weights = tmp_path / "out" / "model_final.pth"
    entry = torch.load(weights, weights_only=True)["psis_d2"]
    assert (entry["seen_names"], entry["split"]) == (["cup"], "auto")

    # two of the three classes, in another order, under other ids
    some = write_tiny_data(tmp_path / "val", masked=CLASSES)
    content = json.loads(Path(some["json"]).read_text())
    content["categories"] = [{"id": 3, "name": "cup"}, {"id": 8, "name": "box"}]
    ids = {1: 8, 2: 3}
    content["annotations"] = [
        annotation | {"category_id": ids[annotation["category_id"]]}
        for annotation in content["annotations"]
        if annotation["category_id"] in ids
    ]
    Path(some["json"]).write_text(json.dumps(content))
    line = command_line(some, tmp_path / "eval", *quick, "MODEL.WEIGHTS", weights)
    i = line.index("--train-json")
    del line[i : i + 4]  # the training data is not there any more
    train_net.invoke_main(["--eval-only", *line])
    assert json.loads((tmp_path / "eval" / "results.json").read_text())["gtbox_seen"]
    config = CfgNode.load_cfg((tmp_path / "eval" / "config.yaml").read_text())
    assert Path(config.PSIS.SEEN_CLASSES).read_text() == "cup\n"

    # a split that is asked for stays, and both are named
    train_net.invoke_main(["--eval-only", *line, "PSIS.SEEN_CLASSES", "all"])
    both = "trained on masks of cup; seen here: box, cup, hat"
    printed = caplog.text + capsys.readouterr().out
    assert f"under another split than the training: {both}" in printed
    # in the headings of all tables, and in the files
    for heading in ("Masks in given boxes by category", "Masks in given boxes on val"):
        (*_, line) = [x for x in printed.splitlines() if heading in x]  # the last evaluation's
        assert line.endswith(f"(another split: {both}):")
    (metrics,) = (tmp_path / "eval" / "inference").glob("*/metrics_*.json")
    assert json.loads(metrics.read_text())["note"] == f"another split: {both}"

    with pytest.raises(SystemExit) as end:
        resumed = command_line(data, tmp_path / "out", *quick, "PSIS.SEEN_CLASSES", "all")
        train_net.main(train_net.parse_arguments(["--resume", *resumed]))
    assert end.value.code == 2
    assert (
        "cannot be resumed under another split: trained on masks of cup" in capsys.readouterr().err
    )
