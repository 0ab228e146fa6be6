"""check: what training will use, what it will drop, and why."""

import json
import re
from pathlib import Path

from psis_d2.check import check_dataset, check_validation, html_page
from psis_d2.check.findings import KINDS
from psis_d2.cli import main
from psis_d2.data.coco import load_coco
from psis_d2.errors import UserError

import numpy as np
import pytest
from PIL import Image

from tiny_data import write_tiny_data


@pytest.fixture
def data(tmp_path):
    return write_tiny_data(tmp_path / "data", images=6)


def spoil(data, change) -> None:
    content = json.loads(Path(data["json"]).read_text())
    change(content, content["images"], content["annotations"])
    Path(data["json"]).write_text(json.dumps(content))


def found(data) -> dict:
    check = check_dataset(data["json"], data["images"])
    return {x.kind: x.count for x in check.findings}


def save(data, name, array, **options):
    Image.fromarray(array).save(Path(data["images"]) / name, **options)


def test_clean_data(data):
    check = check_dataset(data["json"], data["images"])
    assert (check.images, check.objects) == (6, 12)
    counts = {x.name: (x.objects, x.masks, x.crowds) for x in check.categories.values()}
    assert counts == {"box": (4, 4, 0), "cup": (4, 0, 0), "hat": (4, 0, 0)}
    assert {x.kind: x.count for x in check.findings} == {"no mask at all": 2}
    assert len(check.box_sides) == 12 and check.mask_shares == [1.0] * 4


def _second(of, key, value):
    of[1][key] = value


FAULTS = {
    "no id": lambda c, i, a: i.append({"id": [1], "file_name": "009.png"}),
    "bad flag": lambda c, i, a: _second(a, "iscrowd", "perhaps"),
    "duplicate category id": lambda c, i, a: c["categories"].append({"id": 1, "name": "x"}),
    "no file name": lambda c, i, a: i.append({"id": 99}),
    "duplicate image id": lambda c, i, a: i.append({**i[0], "file_name": "001.png"}),
    "duplicate annotation id": lambda c, i, a: _second(a, "id", 1),
    "duplicate file name": lambda c, i, a: i.append({**i[0], "id": 77}),
    "unknown image": lambda c, i, a: _second(a, "image_id", 99),
    "unknown category": lambda c, i, a: _second(a, "category_id", 99),
    "no size": lambda c, i, a: _second(i, "height", None),
    "bad box": lambda c, i, a: _second(a, "bbox", [1, 2, 3]),
    "flat box": lambda c, i, a: _second(a, "bbox", [1, 2, 0, 5]),
    "box outside": lambda c, i, a: _second(a, "bbox", [50, 50, 30, 5]),
    "tiny object": lambda c, i, a: _second(a, "bbox", [5, 5, 3, 9]),
    "bad mask": lambda c, i, a: _second(a, "segmentation", [[1, 2, 3, 4]]),
    "mask outside box": lambda c, i, a: _second(a, "segmentation", [[0, 0, 3, 0, 3, 3, 0, 3]]),
    "bad points": lambda c, i, a: _second(a, "point_labels", [1]),
    "points outside box": lambda c, i, a: a[1].update(point_coords=[[0, 0]], point_labels=[1]),
    "crowd": lambda c, i, a: _second(a, "iscrowd", 1),
    "no object at all": lambda c, i, a: c["categories"].append({"id": 9, "name": "ship"}),
    "other size": lambda c, i, a: _second(i, "width", 65),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_in_the_json(data, kind):
    spoil(data, FAULTS[kind])
    assert found(data)[kind] == 1


def test_a_box_whose_area_is_lost_in_rounding_is_flat(data):
    spoil(data, lambda c, i, a: _second(a, "bbox", [0.0, 0.0, 8e-224, 8e-224]))
    assert found(data)["flat box"] == 1


def test_a_mask_without_a_pixel_is_none(data):
    spoil(data, lambda c, i, a: _second(a, "segmentation", [[70, 70, 80, 70, 80, 80]]))
    assert found(data)["bad mask"] == 1


def test_an_image_without_objects(data):
    def remove(content, images, annotations):
        content["annotations"] = [a for a in annotations if a["image_id"] != 3]

    spoil(data, remove)
    assert found(data)["no objects"] == 1


def test_files(data):
    folder = Path(data["images"])
    (folder / "000.png").unlink()
    (folder / "001.png").write_bytes((folder / "001.png").read_bytes()[:200])
    save(data, "002.png", np.zeros((64, 64), np.uint16))
    assert found(data) == {
        "missing file": 1,
        "unreadable file": 1,
        "unusual pixels": 1,
        "no mask at all": 2,
    }


def test_headers_alone_do_not_show_damage(data):
    path = Path(data["images"]) / "001.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    save(data, "001.jpg", noise)
    path.write_bytes(path.read_bytes()[:1500])
    spoil(data, lambda c, i, a: _second(i, "file_name", "001.jpg"))
    for decode, damaged in ((True, 1), (False, 0)):
        check = check_dataset(data["json"], data["images"], decode=decode)
        assert check.findings.count("unreadable file") == damaged


def test_exif_rotation(data):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(data, "rotated.jpg", np.zeros((40, 60, 3), np.uint8), exif=exif)

    def as_stored(content, images, annotations):
        images[0].update(file_name="rotated.jpg", width=60, height=40)

    spoil(data, as_stored)
    assert found(data)["rotated"] == 1

    def as_shown(content, images, annotations):
        images[0].update(width=40, height=60)

    spoil(data, as_shown)
    assert "rotated" not in found(data) and "other size" not in found(data)


def test_validation_categories_that_training_does_not_know(data, tmp_path):
    other = write_tiny_data(tmp_path / "other", images=2)
    spoil(other, lambda c, i, a: c["categories"].append({"id": 9, "name": "ship"}))
    training, validation = (check_dataset(x["json"], x["images"]) for x in (data, other))
    check_validation(training, validation)
    assert validation.findings.count("category unknown to training") == 1


def test_every_kind_of_fault_is_tested():
    source = Path(__file__).read_text()
    assert not [kind for kind in KINDS if f'"{kind}"' not in source]


def test_samples_show_many_categories(data):
    check = check_dataset(data["json"], data["images"], samples=2)
    kinds = {a["category_id"] for s in check.samples for a in s["annotations"]}
    assert len(check.samples) == 2 and kinds == {1, 2, 3}


def test_page_holds_everything_and_escapes_names(data):
    spoil(data, lambda c, i, a: c["categories"][0].update(name="<b>box</b>"))
    check = check_dataset(data["json"], data["images"])
    page = html_page([("training", check)])
    assert "<b>box</b>" not in page and "&lt;b&gt;box&lt;/b&gt;" in page
    assert page.count("data:image/jpeg;base64,") == 6
    assert not re.findall(r'(?:src|href)="(?!data:)', page)


def test_what_is_no_coco_json(tmp_path):
    for content in ("[]", "{", '{"images": 3}'):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(UserError, match="x.json"):
            check_dataset(str(tmp_path / "x.json"), str(tmp_path))
    with pytest.raises(UserError, match="does not exist"):
        (tmp_path / "y.json").write_text('{"images": [], "annotations": [], "categories": []}')
        check_dataset(str(tmp_path / "y.json"), str(tmp_path / "nowhere"))


def run(data, *more) -> int:
    """Exit status of the command."""
    line = ["check", "--train-json", data["json"], "--train-images", data["images"], *more]
    try:
        return main(line)
    except SystemExit as stop:
        return stop.code


def test_the_command(data, tmp_path, capsys):
    page, counts = str(tmp_path / "c.html"), str(tmp_path / "c.json")
    assert run(data, "--html", page, "--json", counts) == 0
    assert "cup" in capsys.readouterr().out
    assert json.loads(Path(counts).read_text())["training"]["masks"] == 4
    assert run(data, "--strict") == 1
    (Path(data["images"]) / "000.png").unlink()
    assert run(data) == 1
    assert run(data, "--val-json", data["json"]) == 2


CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"


@pytest.mark.parametrize("folder", sorted(p.name for p in CASES.glob("*/")))
def test_counts_are_those_of_training(folder, catalogs):
    """Whatever the spelling, what is counted here is what training reads."""
    json_file, images = str(CASES / folder / "train.json"), str(CASES / folder / "images")
    records = load_coco(json_file, images, f"check {folder}")
    objects = [a for record in records for a in record["annotations"] if not a["iscrowd"]]
    check = check_dataset(json_file, images)
    assert check.images == len(records)
    assert check.objects == len(objects)
    assert check.masks == sum("segmentation" in a for a in objects)
    assert "missing file" not in {finding.kind for finding in check.findings}


SPELLINGS = {
    "a flat list": lambda polygon: polygon,
    "pairs": lambda polygon: [polygon[i : i + 2] for i in range(0, len(polygon), 2)],
    "nested pairs": lambda polygon: [[polygon[i : i + 2] for i in range(0, len(polygon), 2)]],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_masks_in_any_spelling(data, spelling):
    def respell(content, images, annotations):
        for annotation in annotations:
            if "segmentation" in annotation:
                annotation["segmentation"] = SPELLINGS[spelling](annotation["segmentation"][0])
            annotation["iscrowd"] = "false"

    spoil(data, respell)
    check = check_dataset(data["json"], data["images"])
    assert (check.objects, check.masks, check.mask_shares) == (12, 4, [1.0] * 4)
    assert "<img" in html_page([("training", check)])


def test_a_list_of_images_without_annotations(data):
    spoil(data, lambda content, images, annotations: content.pop("annotations"))
    assert found(data) == {"no objects": 6, "no object at all": 3}
