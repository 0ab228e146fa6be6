"""Masks of a file as a row of their own: measured in annotated boxes, without a model's help."""

import json

from psis_d2.errors import UserError

import pytest
import train_net
from pycocotools.coco import COCO

from tiny_data import command_line, write_tiny_data

pytestmark = pytest.mark.usefixtures("catalogs")


@pytest.fixture
def data(tmp_path):
    """Twelve objects of three categories; the masks are their boxes."""
    return write_tiny_data(tmp_path / "data", masked=("box", "cup", "hat"), size=40)


def run(data, out, masks, *opts, config="agnostic_shapes"):
    line = command_line(data, out, "TEST.MASKS", str(masks), *opts, config=config)
    train_net.invoke_main(["--eval-only", *line])
    return json.loads((out / "results.json").read_text())


def rle(coco, annotation):
    encoded = coco.annToRLE(annotation)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def test_the_row_of_a_file(data, tmp_path):
    """Half of each mask, and none of one object: its mean IoU is known; the input is resized."""
    coco = COCO(data["json"])
    entries = []
    for annotation in coco.dataset["annotations"][1:]:
        x, y, w, h = annotation["bbox"]
        left = [[x, y, x + w // 2, y, x + w // 2, y + h, x, y + h]]
        entries.append(annotation | {"segmentation": left, "score": 0.5})
    (tmp_path / "half.json").write_text(json.dumps({"annotations": entries}))
    results = run(data, tmp_path / "out", tmp_path / "half.json", "TEST.BOXES", "gt")
    assert {"gtbox_seen", "gtbox_all"} <= set(results)
    assert not any(task.startswith(("bbox", "segm")) for task in results)
    ious = {}
    for place, annotation in enumerate(coco.dataset["annotations"]):
        w = annotation["bbox"][2]
        iou = (w // 2) / w if place else 0.0
        ious.setdefault(annotation["category_id"], []).append(iou)
    expected = sum(sum(x) / len(x) for x in ious.values()) / len(ious)
    assert results["gtbox_all"]["IoU"] == pytest.approx(100 * expected)
    assert results["gtbox_all"]["N"] == 12
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "1 objects with a mask got no prediction and count with an IoU of 0" in log


def test_what_the_evaluator_writes_can_be_read_and_needs_no_mask_head(data, tmp_path):
    """A result list gives the row that it came from, also beside a detector without masks."""
    coco = COCO(data["json"])
    whole = [a | {"segmentation": rle(coco, a)} for a in coco.dataset["annotations"]]
    (tmp_path / "whole.json").write_text(json.dumps(whole))
    first = run(data, tmp_path / "one", tmp_path / "whole.json", "TEST.BOXES", "gt")
    assert first["gtbox_all"]["IoU"] == pytest.approx(100)
    (written,) = (tmp_path / "one").rglob("given_box_results.json")
    options = ("TEST.BOXES", "gt", "MODEL.MASK_ON", "False")
    assert run(data, tmp_path / "two", written, *options, config="Base-shapes") == first


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (("TEST.BOXES", "detected"), "TEST.BOXES is detected, but TEST.MASKS "),
        (("TEST.BOXES", "both"), "set TEST.BOXES gt."),
        (("TEST.BOXES", "gt", "TEST.BOX_SHRINK", "0.75"), "set TEST.BOX_SHRINK 1.0."),
    ],
)
def test_other_boxes_are_refused(data, tmp_path, opts, words, capsys):
    (tmp_path / "masks.json").write_text("[]")
    with pytest.raises((UserError, SystemExit)) as error:
        run(data, tmp_path / "out", tmp_path / "masks.json", *opts)
    assert words in f"{error.value} {capsys.readouterr().err}"


def test_a_file_of_other_data_is_refused_before_anything_is_measured(data, tmp_path, capsys):
    (tmp_path / "masks.json").write_text("[]")
    with pytest.raises((UserError, SystemExit)) as error:
        run(data, tmp_path / "out", tmp_path / "masks.json", "TEST.BOXES", "gt")
    words = f"{error.value} {capsys.readouterr().err}"
    assert "None of the 0 masks of TEST.MASKS" in words
    assert not list((tmp_path / "out").rglob("*.json"))
