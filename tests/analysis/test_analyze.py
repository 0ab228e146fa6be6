"""psis-d2 analyze: files in, a CSV and its plot out, and what is refused."""

import csv
import json

from psis_d2.cli import main
from psis_d2.evaluation.base import write_predictions
from psis_d2.evaluation.predictions import ImagePredictions

import numpy as np
import pytest
from PIL import Image

from tiny_coco import predictions


@pytest.fixture
def files(tiny, tmp_path):
    """Annotations, predictions and heat-maps of one image."""
    data = tiny()
    image = data.image()
    data.add(image, 0, [10, 10, 20, 20])
    data.add(image, 1, [25, 10, 20, 20])
    data.register()
    rows = (0, [10, 10, 20, 20], 0.9), (1, [22, 10, 24, 20], 0.8)
    part = ImagePredictions.from_instances(predictions(*rows), image)
    write_predictions(str(tmp_path / "results.json"), [part], [3, 5])
    (tmp_path / "seen.txt").write_text("class0\n")
    (tmp_path / "maps").mkdir()
    np.savez(
        tmp_path / "maps" / "a.heat-maps.npz",
        file_name=f"pictures/{image}.jpg",
        boxes=np.array([[10, 10, 30, 30]], np.float32),
        map_saliency=np.ones((1, 4, 4), np.float16),
    )
    return {
        "truth": str(data.path),
        "predictions": str(tmp_path / "results.json"),
        "seen": str(tmp_path / "seen.txt"),
        "maps": str(tmp_path / "maps"),
        "output": str(tmp_path / "out" / "figure"),
    }


def written(files):
    with open(f"{files['output']}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with Image.open(f"{files['output']}.png") as picture:
        assert min(picture.size) > 100
    return rows


def analyze(name, files, *words):
    flags = [f"--{key}={files[key]}" for key in ("truth", "seen", "output")]
    assert main(["analyze", name, *flags, *words]) == 0
    return written(files)


def test_overlap(files, capsys):
    path = files["predictions"]
    words = [
        f"--predictions=ours={path}",
        f"--predictions=theirs={path}",
        "--edges",
        "0",
        "0.5",
        "1",
    ]
    rows = analyze("overlap", files, *words)
    assert len(rows) == 2 * 2 * 3 and {row["label"] for row in rows} == {"ours", "theirs"}
    first = rows[0]
    assert (first["above"], first["to"], first["group"], first["objects"]) == (
        "0",
        "0.5",
        "seen",
        "1",
    )
    assert float(first["AP"]) == pytest.approx(100)
    assert rows[3]["objects"] == "0" and rows[3]["AP"] == ""
    assert "12 rows are in" in capsys.readouterr().out


def test_false_positives(files):
    rows = analyze("false-positives", files, f"--predictions={files['predictions']}")
    by = {row["group"]: row for row in rows}
    # The second reaches 3 columns into the first and one into the background.
    assert (by["unseen"]["wrong"], by["unseen"]["seen"], by["unseen"]["background"]) == (
        "80",
        "60",
        "20",
    )
    assert rows[0]["label"]  # the folder's name


def test_best_overlap(files):
    flags = [f"--{key}={files[key]}" for key in ("truth", "maps", "output")]
    assert main(["analyze", "best-overlap", *flags]) == 0
    (row,) = written(files)
    assert row["map"] == "saliency" and float(row["overlap"]) == 1 and float(row["size"]) == 20


def test_curve(files, tmp_path):
    lines = ["series,split,results"]
    for number, (series, split) in enumerate(
        (s, x) for s in ("base", "ours") for x in ("maskx-20-1", "maskx-30-1", "maskx-30-2")
    ):
        content = {"segm_unseen": {"AP": 20 + number}}
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
        lines.append(f"{series},{split},{number}.json")
    (tmp_path / "runs.csv").write_text("\n".join(lines))
    for words in ([], ["--relative-to", "base"]):
        line = ["analyze", "curve", "--runs", str(tmp_path / "runs.csv")]
        assert main([*line, "--output", files["output"], *words]) == 0
        rows = written(files)
        assert len(rows) == (3 if words else 6)
    assert float(rows[0]["increase"]) == pytest.approx(15)


def test_bad_input_ends_with_one_sentence(files, capsys):
    flags = [f"--{key}={files[key]}" for key in ("truth", "seen", "output", "predictions")]
    with pytest.raises(SystemExit) as caught:
        main(["analyze", "overlap", *flags, "--edges", "0.5"])
    assert caught.value.code == 2
    assert "make no bins" in capsys.readouterr().err
