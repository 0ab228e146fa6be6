"""autolabel: every box gets a mask, and nothing else changes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psis_d2
from psis_d2.errors import UserError
from psis_d2.inference.autolabel import (
    CROWD,
    HAS_MASK,
    NO_BOX,
    OUTSIDE,
    UNKNOWN,
    UNREADABLE,
    Labeling,
    autolabel,
)

import pytest
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from saved_models import save_model
from tiny_data import write_tiny_data

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path):
    return write_tiny_data(tmp_path / "data", images=4)


def edit(data, change) -> dict:
    """Change the json in place and return it."""
    content = json.loads(Path(data["json"]).read_text())
    change(content)
    Path(data["json"]).write_text(json.dumps(content))
    return content


def label(predictor, data, tmp_path, name="out.json", **options):
    path = tmp_path / name
    report = autolabel(
        predictor,
        data["images"],
        str(path),
        boxes=data["json"],
        labeling=Labeling(**options),
        progress=False,
    )
    return json.loads(path.read_text()), report


def test_boxes_without_masks_get_one_and_all_else_stays(predictor, data, tmp_path):
    def add_foreign_keys(content):
        content["info"] = {"year": 2026}
        content["images"][0]["license"] = 7
        content["annotations"][0]["attributes"] = {"occluded": True}

    before = edit(data, add_foreign_keys)
    after, report = label(predictor, data, tmp_path)
    assert list(after) == list(before)
    assert after["images"] == before["images"] and after["info"] == before["info"]
    made = 0
    for old, new in zip(before["annotations"], after["annotations"], strict=True):
        if "segmentation" in old:
            assert new == old
            continue
        made += 1
        assert {k: v for k, v in new.items() if k in old and k != "area"} == {
            k: v for k, v in old.items() if k != "area"
        }
        assert new["source"] == "psis_d2" and 0.5 <= new["score"] <= 1
        mask = mask_util.decode(new["segmentation"])
        assert mask.shape == (64, 64) and mask.sum() == new["area"] > 0
        x, y, w, h = new["bbox"]
        assert mask[max(y - 1, 0) : y + h + 1, max(x - 1, 0) : x + w + 1].sum() == mask.sum()
    assert report.labeled == made > 0
    assert report.left == {HAS_MASK: len(before["annotations"]) - made}
    assert not list(tmp_path.glob("*unfinished"))


def test_all_draws_existing_masks_anew(predictor, data, tmp_path):
    after, report = label(predictor, data, tmp_path, only_missing=False)
    assert report.labeled == len(after["annotations"])
    assert {a["source"] for a in after["annotations"]} == {"psis_d2"}


def test_every_box_without_a_mask_has_a_reason(tmp_path):
    of_classes = save_model(tmp_path, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False)
    predictor = psis_d2.Predictor(of_classes, device="cpu")
    data = write_tiny_data(tmp_path / "six", images=6)

    def spoil(content):
        annotations = [a for a in content["annotations"] if "segmentation" not in a]
        annotations[0]["iscrowd"] = 1
        del annotations[1]["bbox"]
        annotations[2]["bbox"] = [500, 500, 10, 10]
        annotations[3]["bbox"] = [3, 3, 0, 5]
        content["categories"].append({"id": 99, "name": "ship"})
        annotations[4]["category_id"] = 99
        (Path(data["images"]) / content["images"][5]["file_name"]).unlink()

    before = edit(data, spoil)
    after, report = label(predictor, data, tmp_path)
    for reason, count in {CROWD: 1, NO_BOX: 1, OUTSIDE: 2, UNKNOWN: 1, UNREADABLE: 2}.items():
        assert report.left[reason] == count, reason
    assert report.labeled + sum(report.left.values()) == len(before["annotations"])
    unchanged = [a for a in after["annotations"] if "source" not in a]
    assert all(a in before["annotations"] for a in unchanged)
    saved = json.loads((tmp_path / "out.report.json").read_text())
    assert saved["labeled"] == report.labeled
    assert "005.png" in saved["unreadable"][0]


def test_a_class_agnostic_model_labels_categories_that_it_does_not_know(predictor, data, tmp_path):
    def rename(content):
        for category in content["categories"]:
            category["name"] = f"other {category['name']}"

    before = edit(data, rename)
    assert predictor.class_agnostic
    after, report = label(predictor, data, tmp_path)
    assert UNKNOWN not in report.left
    assert all("segmentation" in a for a in after["annotations"])
    assert report.labeled == sum("segmentation" not in a for a in before["annotations"]) > 0


def test_masks_below_the_minimal_score_are_left_out(predictor, data, tmp_path):
    after, _ = label(predictor, data, tmp_path)
    scores = sorted(a["score"] for a in after["annotations"] if "score" in a)
    limit = (scores[0] + scores[-1]) / 2
    _, report = label(predictor, data, tmp_path, "sure.json", min_score=limit)
    assert report.labeled == sum(score >= limit for score in scores)


def test_polygons_show_what_the_rle_shows(predictor, data, tmp_path):
    rle, _ = label(predictor, data, tmp_path)
    polygons, _ = label(predictor, data, tmp_path, "polygons.json", polygons=0.5)
    COCO(str(tmp_path / "polygons.json"))
    for a, b in zip(rle["annotations"], polygons["annotations"], strict=True):
        if "source" not in b:
            continue
        assert isinstance(b["segmentation"], list)
        drawn = mask_util.merge(mask_util.frPyObjects(b["segmentation"], 64, 64))
        assert mask_util.area(drawn) == b["area"]
        assert mask_util.iou([drawn], [a["segmentation"]], [0])[0, 0] > 0.95


def test_own_detections(predictor, data, tmp_path):
    out = tmp_path / "own.json"
    options = {"labeling": Labeling(min_score=0.0), "progress": False}
    report = autolabel(predictor, data["images"], str(out), **options)
    content = json.loads(out.read_text())
    assert report.labeled == len(content["annotations"]) > 0
    assert [a["id"] for a in content["annotations"]] == list(range(1, report.labeled + 1))
    assert [c["name"] for c in content["categories"]] == predictor.class_names
    coco = COCO(str(out))
    for annotation in content["annotations"]:
        assert coco.annToMask(annotation).sum() == annotation["area"]


def test_what_was_labeled_is_not_labeled_again_and_trains(predictor, data, tmp_path):
    label(predictor, data, tmp_path)
    again = {**data, "json": str(tmp_path / "out.json")}
    content, report = label(predictor, again, tmp_path, "again.json")
    assert report.labeled == 0
    assert content == json.loads((tmp_path / "out.json").read_text())


def test_previews(predictor, data, tmp_path):
    label(predictor, data, tmp_path, previews=2)
    assert len(list((tmp_path / "out_previews").glob("*.png"))) == 2


class Stopping:
    """A predictor that is interrupted after so many images."""

    def __init__(self, predictor, images):
        self.predictor, self.left = predictor, images

    def __getattr__(self, name):
        return getattr(self.predictor, name)

    def __call__(self, *args):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return self.predictor(*args)


@pytest.mark.parametrize("images", range(4))
def test_stopped_and_continued_is_byte_identical(predictor, data, tmp_path, images):
    label(predictor, data, tmp_path, "whole.json")
    with pytest.raises(KeyboardInterrupt):
        label(Stopping(predictor, images), data, tmp_path)
    assert not (tmp_path / "out.json").exists()
    finish = Stopping(predictor, 4 - images)
    label(finish, data, tmp_path)
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_another_job_does_not_go_on(predictor, data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        label(Stopping(predictor, 1), data, tmp_path)
    with pytest.raises(UserError, match="another options"):
        label(predictor, data, tmp_path, min_score=0.7)


def test_flags_names_and_ids_in_any_spelling(predictor, data, tmp_path):
    """What reading for training takes: flags as text, ids as floats, an address for a name."""

    def respell(content):
        for image in content["images"]:
            image["coco_url"] = f"http://host/train/{image.pop('file_name')}"
            image["id"] = float(image["id"])
        for annotation in content["annotations"]:
            annotation["iscrowd"] = "false"

    before = edit(data, respell)
    after, report = label(predictor, data, tmp_path)
    assert report.left.keys() == {HAS_MASK}
    assert report.labeled == sum("segmentation" not in a for a in before["annotations"]) > 0
    assert after["images"] == before["images"]
    edit(data, lambda content: content["annotations"][1].update(iscrowd="1"))
    _, report = label(predictor, data, tmp_path, "crowd.json")
    assert report.left[CROWD] == 1
    edit(data, lambda content: content["annotations"][1].update(iscrowd="maybe"))
    with pytest.raises(UserError, match="iscrowd of annotation 2 in .* is 'maybe'"):
        label(predictor, data, tmp_path, "never.json")


BAD = {
    "brackets in brackets": "[" * 100_000,
    "an id that is a list": json.dumps(
        {"images": [{"id": [1]}], "annotations": [], "categories": []}
    ),
    "a category that is a list": json.dumps(
        {
            "images": [{"id": 1, "file_name": "a"}],
            "annotations": [{"id": 5, "image_id": 1, "category_id": [1]}],
            "categories": [{"id": 1, "name": "box"}],
        }
    ),
    "no json": "{",
    "a list": "[]",
    "no images": '{"annotations": [], "categories": []}',
    "two images of one id": json.dumps(
        {"images": [{"id": 1, "file_name": "a"}] * 2, "annotations": [], "categories": []}
    ),
    "an image without a name": '{"images": [{"id": 1}], "annotations": [], "categories": []}',
    "an unknown image": json.dumps(
        {
            "images": [],
            "annotations": [{"id": 5, "image_id": 3, "category_id": 1}],
            "categories": [{"id": 1, "name": "box"}],
        }
    ),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_bad_files_are_one_sentence(predictor, tmp_path, content):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(UserError, match="bad.json"):
        autolabel(predictor, ".", str(tmp_path / "out.json"), boxes=str(tmp_path / "bad.json"))
    assert not list(tmp_path.glob("out*"))


def command(weights, data, output, *more):
    line = [sys.executable, "-m", "psis_d2", "autolabel", weights, "--device", "cpu"]
    line += ["--images", data["images"], "--boxes", data["json"], "--output", str(output), *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.faults
@pytest.mark.parametrize("finished", [0, 1, 7, 14, 22])
def test_killed_at_five_moments_gives_the_same_bytes(weights, predictor, tmp_path, finished):
    """Killed as soon as so many of 24 images are in the journal, the first time before any is."""
    data = write_tiny_data(tmp_path / "many", images=24)
    label(predictor, data, tmp_path, "whole.json")
    parts, output = tmp_path / "out.json.unfinished", tmp_path / "out.json"
    process = command(weights, data, output)

    def lines():
        return sum(x.read_bytes().count(b"\n") for x in parts.glob("*.jsonl"))

    while process.poll() is None and not (parts.exists() and lines() >= finished):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert parts.exists() and not output.exists()
    process = command(weights, data, output)
    text, _ = process.communicate(timeout=400)
    assert process.returncode == 0, text
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_two_processes_and_a_kill_give_the_same_bytes(weights, predictor, tmp_path):
    data = write_tiny_data(tmp_path / "many", images=24)
    label(predictor, data, tmp_path, "whole.json")
    process = command(weights, data, tmp_path / "out.json")
    parts = tmp_path / "out.json.unfinished"
    while process.poll() is None and not any(x.stat().st_size for x in parts.glob("*.jsonl")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = command(weights, data, tmp_path / "out.json", "--num-cpu-processes", "2")
    text, _ = process.communicate(timeout=400)
    assert process.returncode == 0, text
    assert "annotations got a mask" in text
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
