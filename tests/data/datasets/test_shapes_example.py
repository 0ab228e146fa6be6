"""The example data set: boxes for all objects, masks for half of the kinds."""

import json

from psis_d2.cli import main
from psis_d2.data.datasets.shapes_scene import SEEN_SHAPES, SHAPE_NAMES


def read(path):
    content = json.loads(path.read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    return [(names[a["category_id"]], "segmentation" in a) for a in content["annotations"]]


def test_masks_of_seen_kinds_alone_in_training_and_of_all_in_validation(tmp_path, capsys):
    folder = tmp_path / "shapes"
    line = ["make-shapes", "--output", str(folder), "--train", "8", "--val", "3"]
    assert main(line) == main(line) == 0  # the same again is no error
    train, val = read(folder / "train.json"), read(folder / "val.json")
    assert {name for name, _ in train} & set(SEEN_SHAPES)
    assert {name for name, _ in train} & (set(SHAPE_NAMES) - set(SEEN_SHAPES))
    assert all(masked == (name in SEEN_SHAPES) for name, masked in train)
    assert all(masked for _, masked in val)
    assert len(list((folder / "train").iterdir())) == 8
    masks = sum(masked for _, masked in train)
    said = f"{len(train)} objects in 8 pictures, {masks} of them with masks"
    assert said in capsys.readouterr().out
