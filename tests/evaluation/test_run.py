"""Evaluation as a config says, without a trainer: what is read, what is measured, where it goes."""

import json
from pathlib import Path

import psis_d2.data.coco
from psis_d2.config import add_psis_config
from psis_d2.data.catalog import get_class_names, get_dataset_dicts, shared_dataset_dicts
from psis_d2.data.checks import check_data
from psis_d2.data.coco import register_coco_json
from psis_d2.errors import UserError
from psis_d2.evaluation import build_evaluator, evaluate
from psis_d2.evaluation.base import PredictionCollector
from psis_d2.evaluation.names import LONGEST, short_name

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances
from torch import nn

from tiny_data import write_tiny_data

pytestmark = pytest.mark.usefixtures("catalogs")


class BoxFiller(nn.Module):
    """A meta-architecture that fills the boxes it is given, or else the whole image."""

    def forward(self, batched_inputs):
        return self.inference(batched_inputs)

    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        found = []
        for number, item in enumerate(batched_inputs):
            if detected_instances is None:
                size = item["height"], item["width"]
                instances = Instances(size)
                instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, size[1], size[0]]]))
                instances.scores, instances.pred_classes = torch.ones(1), torch.zeros(1).long()
            else:
                instances = detected_instances[number]
            masks = torch.zeros(len(instances), *instances.image_size, dtype=torch.bool)
            for mask, box in zip(masks, instances.pred_boxes.tensor.round().int(), strict=True):
                mask[box[1] : box[3], box[0] : box[2]] = True
            instances.pred_masks = masks
            found.append(instances)
        return [{"instances": x} for x in found] if do_postprocess else found


@pytest.fixture
def data(tmp_path):
    """A data set with masks of two of its three categories; returns its paths."""
    return write_tiny_data(tmp_path / "data", masked=("box", "cup"))


def config(output, *names, **test):
    cfg = get_cfg()
    add_psis_config(cfg)
    cfg.MODEL.DEVICE, cfg.OUTPUT_DIR, cfg.DATASETS.TEST = "cpu", str(output), names
    cfg.DATASETS.TRAIN = ()
    cfg.PSIS.SEEN_CLASSES = "all"
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TEST = 0
    for key, value in test.items():
        cfg.TEST[key] = value
    return cfg


def test_the_json_is_parsed_once_for_all_that_is_measured(data, tmp_path, monkeypatch):
    parsed, parse = [], psis_d2.data.coco.parse_dataset
    monkeypatch.setattr(
        psis_d2.data.coco, "parse_dataset", lambda *args: parsed.append(args) or parse(*args)
    )
    opened, load = [], json.load
    monkeypatch.setattr(json, "load", lambda file, **k: opened.append(file) or load(file, **k))
    register_coco_json("parsed_once", data["json"], data["images"])
    cfg = config(tmp_path / "out", "parsed_once", BOXES="both", BOX_SHRINK=0.75, OVERLAP=0.1)
    results = evaluate(cfg, BoxFiller())
    kinds = ("bbox", "segm", "segm_overlapped", "gtbox", "gtbox_overlapped")
    tasks = {f"{kind}_{group}" for kind in kinds for group in ("seen", "all")}
    assert results.keys() == tasks | {f"shrunk_{task}" for task in tasks}
    assert results["gtbox_seen"]["IoU"] == pytest.approx(100)
    assert results["shrunk_gtbox_seen"]["IoU"] < 95
    assert len(parsed) == 1 and not opened
    written = (tmp_path / "out/results.json").read_text()
    assert json.loads(written).keys() == results.keys()
    evaluate(cfg, BoxFiller())
    assert len(parsed) == 1 and not opened
    assert (tmp_path / "out/results.json").read_text() == written


def test_a_json_that_changed_is_read_again(data):
    register_coco_json("changing", data["json"], data["images"])
    before = shared_dataset_dicts("changing")
    assert shared_dataset_dicts("changing") is before
    content = json.loads(Path(data["json"]).read_text())
    content["images"].append(content["images"][0] | {"id": 99})
    with open(data["json"], "w") as file:
        json.dump(content, file)
    assert len(shared_dataset_dicts("changing")) == len(before) + 1


def test_copies_can_be_changed(data):
    register_coco_json("copied", data["json"], data["images"])
    dicts = get_dataset_dicts("copied")
    for record in dicts:
        for annotation in record["annotations"]:
            annotation.pop("segmentation", None)
        record["annotations"].pop()
    assert dicts != shared_dataset_dicts("copied")
    assert any(
        "segmentation" in a for r in shared_dataset_dicts("copied") for a in r["annotations"]
    )
    assert {len(r["annotations"]) for r in shared_dataset_dicts("copied")} == {2}


def test_another_evaluator_can_be_built(data, tmp_path):
    """What a trainer's subclass returns from build_evaluator is asked, and told what it gets."""
    register_coco_json("asked", data["json"], data["images"])
    asked = []

    def build(cfg, name, boxes, shrunk):
        asked.append((name, boxes, shrunk))
        return build_evaluator(cfg, name, boxes, shrunk)

    evaluate(config(tmp_path, "asked", BOXES="both", BOX_SHRINK=0.5), BoxFiller(), build)
    kinds = [(boxes, shrunk) for boxes in ("detected", "gt") for shrunk in (False, True)]
    assert asked == [("asked", *kind) for kind in kinds]


def test_files_and_metrics_of_data_sets_with_long_paths_for_names(data, tmp_path):
    names = [f"val:../../{'deep/' * 40}{x}/instances val.json" for x in ("a", "b")]
    for name in names:
        register_coco_json(name, data["json"], data["images"])
    out = tmp_path / "deep" / "out"
    results = evaluate(config(out, *names, BOXES="both"), BoxFiller())
    assert len(results) == 2 and {"bbox_all", "gtbox_all"} <= results[short_name(names[0])].keys()
    files = [p.relative_to(tmp_path) for p in tmp_path.rglob("*.json")]
    files.remove((tmp_path / "data/data.json").relative_to(tmp_path))
    assert {p.parts[:2] for p in files} == {("deep", "out")}
    # Of each: predictions and figures, of detected and of given boxes; and the results.
    assert len(files) == 2 * 2 * 2 + 1
    assert max(len(p.name) for p in files) < 100
    for name in results:
        assert len(name) < 80 and "/" not in name


@pytest.mark.parametrize("name", ["coco_2017_val", "a.b-c", "x" * LONGEST])
def test_plain_names_stay(name):
    assert short_name(name) == name


def test_other_names_are_shortened_and_stay_different():
    names = ["val:val.json", "val:../val.json", "val_val", "..", "../val", "", "x" * 61, "val:ü/é"]
    names += [f"val:{'long/' * 30}{x}" for x in "ab"] + ["-x", ".x", "a b", "a_b", "a/b"]
    short = [short_name(name) for name in names]
    assert len(set(short)) == len(names)
    assert short[0].startswith("val_val-") and short_name(names[0]) == short[0]
    for name in short:
        assert len(name) <= LONGEST
        assert name.isascii() and not set(name) & set("/\\: ") and name[0] not in ".-"


def test_every_evaluator_shortens(data, tmp_path):
    register_coco_json("val:a/b.json", data["json"], data["images"])
    for boxes in ("detected", "gt"):
        evaluator = build_evaluator(config(tmp_path, "val:a/b.json"), "val:a/b.json", boxes)
        assert isinstance(evaluator, PredictionCollector)
        assert evaluator.output_dir == str(tmp_path / "inference" / short_name("val:a/b.json"))


def test_images_without_annotations_get_predictions_and_one_log_line(data, tmp_path, caplog):
    content = json.loads(Path(data["json"]).read_text())
    del content["annotations"]
    content["images"] = [image | {"id": 70 + image["id"]} for image in content["images"]]
    for place, category in enumerate(content["categories"]):
        category["id"] = 11 + 2 * place
    listed = tmp_path / "image_info.json"
    listed.write_text(json.dumps(content))
    register_coco_json("image_list", str(listed), data["images"])
    assert evaluate(config(tmp_path, "image_list"), BoxFiller()) == {}
    folder = tmp_path / "inference" / "image_list"
    found = json.loads((folder / "coco_instances_results.json").read_text())
    assert [f["image_id"] for f in found] == list(range(71, 77))
    assert {f["category_id"] for f in found} == {11}
    assert all(f["segmentation"]["size"] == [64, 64] for f in found)
    lines = [r.getMessage() for r in caplog.records if "no annotations" in r.getMessage()]
    assert len(lines) == 1 and "nothing is measured" in lines[0] and str(folder) in lines[0]
    assert "masks are measured" not in caplog.text and "AP" not in caplog.text
    assert not list(tmp_path.rglob("metrics_*"))
    assert evaluate(config(tmp_path / "given", "image_list", BOXES="gt"), BoxFiller()) == {}
    assert "no boxes to give" in caplog.text and not list((tmp_path / "given").rglob("*.json"))


def test_further_groups_of_categories(data, tmp_path):
    """Beside seen, unseen and all, whatever the split is; in detected and in given boxes."""
    register_coco_json("grouped", data["json"], data["images"])
    names = get_class_names("grouped")
    novel = tmp_path / "novel.txt"
    novel.write_text(f"{names[0]}\n")
    groups = [["novel", str(novel)], ["others", f"not:{novel}"]]
    cfg = config(tmp_path / "out", "grouped", BOXES="both", GROUPS=groups)
    results = evaluate(cfg, BoxFiller())
    for kind in ("segm", "gtbox"):
        tasks = {task for task in results if task.startswith(kind)}
        assert tasks == {f"{kind}_{x}" for x in ("seen", "all", "novel", "others")}
    alone = config(tmp_path / "alone", "grouped", BOXES="both")
    alone.PSIS.SEEN_CLASSES = str(novel)
    split = evaluate(alone, BoxFiller())
    for task in ("bbox", "segm", "gtbox"):
        for group, same in (("novel", "seen"), ("others", "unseen"), ("all", "all")):
            assert results[f"{task}_{group}"] == pytest.approx(split[f"{task}_{same}"], nan_ok=True)


@pytest.mark.parametrize(
    "groups, sentence",
    [
        ([["seen", "all"]], "names a group 'seen'; take letters"),
        ([["a_b", "all"]], "names a group 'a_b'; take letters"),
        ([["a", "all"], ["a", "all"]], "names a group 'a'; take letters"),
        ([["none", "not:all"]], "TEST.GROUPS none 'not:all' has no category"),
        ([["novel", "vox"]], r"TEST.GROUPS novel 'vox' is neither one of .*did you mean 'voc'"),
    ],
)
def test_groups_that_cannot_be(data, tmp_path, groups, sentence):
    register_coco_json("not_grouped", data["json"], data["images"])
    cfg = config(tmp_path, "not_grouped", GROUPS=groups)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    with pytest.raises(UserError, match=sentence):
        check_data(cfg, training=False)
