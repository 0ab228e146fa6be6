"""The best overlap of soft maps with masks: by hand, and threshold by threshold."""

import math

from psis_d2.analysis import best_overlaps, read_maps
from psis_d2.analysis.best_overlap import SavedMaps, best_iou, spread
from psis_d2.evaluation.ground_truth import load_ground_truth

import numpy as np
import pytest
from one_sentence import refusal
from pycocotools import mask as mask_util

from tiny_coco import polygon, rectangle


def test_spreading_by_hand():
    """Two cells over four pixels: centers at 1 and 3 of 4, pixels at 0.5, 1.5, 2.5 and 3.5."""
    values = np.array([[0.0, 1.0]])
    out = spread(values, np.array([10.0, 5, 14, 6]), (10, 5, 14, 6))
    assert out.shape == (1, 4)
    assert out[0].tolist() == pytest.approx([0, 0.25, 0.75, 1])
    assert (
        spread(np.array([[0.3]]), np.array([0.0, 0, 9, 9]), (2, 3, 5, 5)).tolist()
        == [pytest.approx([0.3] * 3)] * 2
    )


def test_the_best_threshold_by_hand():
    values = np.array([0.9, 0.8, 0.8, 0.1, 0.0])
    inside = np.array([True, True, False, True, True])
    # 0.9: 1/5; 0.8: 2 of 3 + 5 - 2 = 6; 0.1: 3 of 4 + 5 - 3 = 6; 0 is no threshold.
    assert best_iou(values, inside, 5) == pytest.approx(3 / 6)
    assert best_iou(np.zeros(3), np.ones(3, bool), 3) == 0


def saved(boxes, maps, image):
    return SavedMaps([image] * len(boxes), np.array(boxes, dtype=float), maps)


def test_by_hand(tiny):
    """Of two objects the one that is covered best; a map that fits is 1, whatever its scale."""
    data = tiny()
    image = data.image()
    data.add(image, 0, [10, 10, 20, 20], polygon([10, 10, 10, 20]))
    data.add(image, 1, [10, 10, 20, 20])
    data.add(image, 1, [60, 60, 10, 10], "missing")
    truth = load_ground_truth(data.register())
    halves = np.zeros((1, 20, 20))
    halves[0, :, :10] = 1e-3
    flat = np.full((1, 20, 20), 0.5)
    rows = best_overlaps(truth, saved([[10, 10, 30, 30]], {"half": halves, "flat": flat}, image))
    assert [row["map"] for row in rows] == ["half", "flat"]
    assert [row["overlap"] for row in rows] == [1, 1]
    assert [row["size"] for row in rows] == pytest.approx([math.sqrt(200), 20])
    # Half of the object lies outside of the box.
    rows = best_overlaps(truth, saved([[20, 10, 30, 30]], {"flat": flat}, image))
    assert rows[0]["overlap"] == pytest.approx(0.5) and rows[0]["size"] == 20
    assert best_overlaps(truth, saved([[60, 60, 70, 70]], {"flat": flat}, image)) == []
    assert best_overlaps(truth, saved([[150, 0, 170, 9]], {"flat": flat}, image)) == []


def interpolated(values, box, y, x):
    """A map at one pixel's center."""
    height, width = values.shape
    at_y = np.clip((y + 0.5 - box[1]) / (box[3] - box[1]) * height - 0.5, 0, height - 1)
    at_x = np.clip((x + 0.5 - box[0]) / (box[2] - box[0]) * width - 0.5, 0, width - 1)
    total = 0
    for row in range(height):
        for column in range(width):
            weight = max(0, 1 - abs(at_y - row)) * max(0, 1 - abs(at_x - column))
            total += weight * values[row, column]
    return total


def test_by_the_letter_on_random_scenes(tiny):
    """Every pixel, every threshold, every mask of the image."""
    rng = np.random.default_rng(3)
    data = tiny(size=(24, 30))
    boxes, masks = [], []
    image = data.image()
    for _ in range(4):
        x, y = rng.integers(0, 15, 2).tolist()
        w, h = rng.integers(3, 9, 2).tolist()
        mask = rectangle([x, y, w, h], (24, 30)) & (rng.random((24, 30)) < 0.8)
        rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
        data.add(image, 0, [x, y, w, h], {**rle, "counts": rle["counts"].decode()})
        masks.append(mask)
        near = np.array([x, y, x + w, y + h]) + rng.uniform(-2, 2, 4)
        boxes.append(near)
    boxes.append(np.array([-3.2, -2.7, 40.1, 30.3]))  # reaches out of the image
    maps = {name: rng.random((5, side, side)).round(1) for name, side in (("a", 3), ("b", 1))}
    rows = best_overlaps(load_ground_truth(data.register()), saved(boxes, maps, image))
    expected = []
    for number, box in enumerate(boxes):
        for name in maps:
            soft = np.full((24, 30), -1.0)
            for y in range(24):
                for x in range(30):
                    if box[0] <= x + 0.5 < box[2] and box[1] <= y + 0.5 < box[3]:
                        soft[y, x] = interpolated(maps[name][number], box, y, x)
            best = (0, 0)
            for mask in masks:
                for threshold in sorted(set(soft[soft > 0].tolist())):
                    covered = soft >= threshold - 1e-12
                    iou = (covered & mask).sum() / (covered | mask).sum()
                    best = max(best, (round(iou, 9), math.sqrt(mask.sum())))
            if best[0]:  # else the box meets no object
                expected.append((name, best[0]))
    assert [(row["map"], round(row["overlap"], 9)) for row in rows] == expected


def write(path, **content):
    content = {"file_name": "x/10.jpg", "boxes": np.zeros((2, 4), np.float32)} | content
    np.savez(path, **content)


def test_files(tiny, tmp_path):
    data = tiny()
    for _ in range(2):
        data.add(data.image(), 0, [0, 0, 9, 9])
    data.images[1]["file_name"] = "b/10.jpg"
    truth = load_ground_truth(data.register())
    folder = tmp_path / "maps[1]"  # no pattern
    folder.mkdir()
    maps = np.ones((2, 5, 5), np.float16)
    write(folder / "one.heat-maps.npz", map_saliency=maps)
    write(
        folder / "two.heat-maps.npz", map_saliency=maps[:1], file_name="a/b/10.jpg", boxes=[[1] * 4]
    )
    read = read_maps(str(folder), truth)
    assert list(read.maps) == ["saliency"] and read.image_ids == [10, 10, 11]
    assert read.maps["saliency"].shape == (3, 5, 5) and read.boxes.tolist()[2] == [1] * 4

    write(folder / "two.heat-maps.npz", map_other=maps)
    assert "maps of different models" in refusal(read_maps, str(folder), truth)
    write(folder / "two.heat-maps.npz", map_saliency=maps, file_name="11.jpg")
    assert "the image 11.jpg, which" in refusal(read_maps, str(folder), truth)
    for content in ({}, {"map_a": maps[:1]}, {"map_a": maps, "boxes": np.zeros((2, 3))}):
        write(folder / "two.heat-maps.npz", **content)
        assert "holds no heat-maps" in refusal(read_maps, str(folder), truth)
    (folder / "two.heat-maps.npz").write_text("no maps")
    assert "write it with psis-d2 predict --save-heat-maps" in refusal(
        read_maps, str(folder), truth
    )
    assert "has no *.heat-maps.npz" in refusal(read_maps, str(tmp_path), truth)
