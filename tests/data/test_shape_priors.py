"""Shape priors: cut out by hand, from visible masks alone, the same file from the same seed."""

import json
import os
import pickle
from pathlib import Path

import psis_d2  # noqa: F401
from psis_d2.data import shape_priors
from psis_d2.data.shape_priors import (
    load_shape_priors,
    make_shape_priors,
    mask_in_box,
    prepare_shape_priors,
    priors_path,
    save_shape_priors,
)
from psis_d2.data.training_set import get_training_dicts
from psis_d2.errors import UserError

import numpy as np
import pytest
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from at_once import two_at_once

pytest.importorskip("sklearn")

SIZE = (60, 80)
ROUNDS = 5


def annotation(box, segmentation):
    return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "segmentation": segmentation}


def rle(mask):
    packed = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": packed["size"], "counts": packed["counts"].decode()}


@pytest.mark.parametrize("kind", ["polygon", "rle"])
def test_mask_in_box_by_hand(kind):
    """A box of 16 x 8 pixels, whose left 6 columns and top 2 rows are mask: cells are 4 x 2."""
    mask = np.zeros(SIZE)
    mask[20:28, 10:16] = 1
    mask[20:22, 10:26] = 1
    outline = [[10, 20, 26, 20, 26, 22, 16, 22, 16, 28, 10, 28]]
    shape = mask_in_box(annotation([10, 20, 16, 8], rle(mask) if kind == "rle" else outline), 4)
    expected = [[1, 1, 1, 1]] + [[1, 0.5, 0, 0]] * 3
    # pycocotools draws the lower and right edge of a polygon half a sample further out
    np.testing.assert_allclose(shape, expected, atol=0 if kind == "rle" else 0.3)
    assert (shape[0] == 1).all()
    assert shape[1:, 2:].max() <= 0.3


def test_rle_and_polygon_agree():
    outline = [[12.0, 5, 60, 11, 44, 50, 9, 38]]
    decoded = mask_util.decode(mask_util.merge(mask_util.frPyObjects(outline, *SIZE)))
    box = [9, 5, 51, 45]
    a, b = (mask_in_box(annotation(box, s)) for s in (outline, rle(decoded)))
    assert np.abs(a - b).mean() < 0.02


def test_what_lies_outside_of_the_box_is_cut_off():
    whole = annotation([0, 0, 40, 40], [[-50, -50, 200, -50, 200, 200, -50, 200]])
    assert mask_in_box(whole, 4).min() == 1


@pytest.mark.parametrize("kind", ["rle", "polygon"])
@pytest.mark.parametrize("sides", [(1e-7, 8), (16, 1e-7), (1e-7, 1e-7)])
def test_a_box_of_hardly_any_width_has_a_shape(kind, sides):
    """Such boxes have an area, so that reading leaves them in."""
    mask = np.zeros(SIZE)
    mask[18:30, 8:28] = 1  # all around the box
    outline = [[8, 18, 28, 18, 28, 30, 8, 30]]
    shape = mask_in_box(annotation([10, 20, *sides], rle(mask) if kind == "rle" else outline), 4)
    assert shape.shape == (4, 4)
    np.testing.assert_allclose(shape, 1)


CATEGORIES = [{"id": i, "name": f"class{i}"} for i in range(1, 4)]


@pytest.fixture
def shapes(make_dataset, cfg, tmp_path):
    """Rectangles, triangles and small squares in their boxes; class3 is not to be seen."""
    rng = np.random.default_rng(0)
    annotations = []
    for number in range(36):
        x, y, w, h = (int(v) for v in rng.integers(8, 28, 4))
        corners = [
            [x, y, x + w, y, x + w, y + h, x, y + h],
            [x, y, x + w, y + h, x, y + h],
            [x, y, x + w // 2, y, x + w // 2, y + h // 2, x, y + h // 2],
        ]
        annotations.append(
            {"id": number + 1, "image_id": number % 4 + 1, "iscrowd": 0, "bbox": [x, y, w, h]}
            | {"category_id": number % 3 + 1, "area": w * h}
            | {"segmentation": [corners[rng.integers(3)]]}
        )
    seen = tmp_path / "seen.txt"
    seen.write_text("class1\nclass2\n")
    name = make_dataset("shapes", dict.fromkeys(range(1, 5), SIZE), annotations, CATEGORIES)
    cfg.DATASETS.TRAIN = (name,)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_MASK_HEAD.NAME = "ShapeMaskHead"
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = True
    cfg.PSIS.SEEN_CLASSES = str(seen)
    cfg.PSIS.SHAPEMASK.NUM_PRIORS = 4
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    return cfg


def edit_masks(folder, category: int) -> None:
    """Replace the masks of a category by other ones, some of them broken."""
    path = folder / "shapes.json"
    content = json.loads(path.read_text())
    garbage = [[[3.0, 3, 70, 5, 9, 50]], None, [[1, 2]], [[0, 0, 79, 0, 79, 59, 0, 59]]]
    for number, a in enumerate(content["annotations"]):
        if a["category_id"] == category:
            a["segmentation"] = garbage[number % 4]
    path.write_text(json.dumps(content))


def file_of(cfg, path) -> bytes:
    save_shape_priors(str(path), make_shape_priors(cfg))
    return path.read_bytes()


@pytest.mark.parametrize("agnostic", [True, False])
def test_garbage_in_unseen_masks_changes_no_bit(shapes, tmp_path, agnostic):
    shapes.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = agnostic
    clean = file_of(shapes, tmp_path / "a.npz")
    edit_masks(tmp_path, category=3)
    assert file_of(shapes, tmp_path / "b.npz") == clean
    edit_masks(tmp_path, category=2)
    assert file_of(shapes, tmp_path / "c.npz") != clean


def test_same_seed_same_file_other_seed_other_file(shapes, tmp_path):
    first = file_of(shapes, tmp_path / "a.npz")
    assert file_of(shapes, tmp_path / "b.npz") == first
    shapes.PSIS.SHAPEMASK.PRIORS_SEED = 1
    assert file_of(shapes, tmp_path / "c.npz") != first
    assert not list(tmp_path.glob("*.tmp"))


def test_centroids_are_means_of_masks(shapes):
    made = make_shape_priors(shapes)
    assert made.priors.shape == (4, 32, 32)
    assert made.priors.dtype == np.float32
    assert made.priors.min() >= 0
    assert made.priors.max() <= 1
    masks = [
        mask_in_box(a)
        for record in get_training_dicts(shapes)
        for a in record["annotations"]
        if "segmentation" in a
    ]
    flat, priors = np.stack(masks).reshape(-1, 1024), made.priors.reshape(4, 1024)
    nearest = ((flat[:, None] - priors) ** 2).sum(axis=2).argmin(axis=1)
    for k in range(4):  # a fixed point of Lloyd's algorithm
        np.testing.assert_allclose(priors[k], flat[nearest == k].mean(axis=0), atol=1e-5)
    sizes = np.bincount(nearest, minlength=4)
    assert (np.diff(sizes) <= 0).all()
    facts = made.provenance
    assert facts["masks_used"] == facts["masks_visible"] == 24
    assert facts["masks_of_class"] == {"class1": 12, "class2": 12}
    assert facts["datasets"] == ["shapes"]


def test_class_specific_priors(shapes):
    shapes.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = False
    made = make_shape_priors(shapes).priors
    assert made.shape == (3, 4, 32, 32)
    assert not np.array_equal(made[0], made[1])
    shapes.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = True
    # A category without masks has those of all.
    assert np.array_equal(made[2], make_shape_priors(shapes).priors)


def test_fewer_masks_than_priors(shapes):
    shapes.PSIS.SHAPEMASK.NUM_PRIORS = 25
    with pytest.raises(UserError, match="training data has 24 .* 25 shape priors cannot be made"):
        make_shape_priors(shapes)
    shapes.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = False
    shapes.PSIS.SHAPEMASK.NUM_PRIORS = 13
    with pytest.raises(UserError, match="'class1' has 12 .* 13 shape priors .*NUM_PRIORS"):
        make_shape_priors(shapes)


def test_limited_number_of_masks(shapes):
    shapes.PSIS.SHAPEMASK.PRIORS_MAX_MASKS = 10
    assert make_shape_priors(shapes).provenance["masks_used"] == 10


def test_number_of_priors(shapes):
    shapes.PSIS.SHAPEMASK.NUM_PRIORS = 0
    assert shape_priors.num_priors(shapes) == 100
    shapes.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = False
    assert shape_priors.num_priors(shapes) == 20


def test_prepared_once_and_again_when_masks_change(shapes, tmp_path):
    path = priors_path(shapes)
    prepare_shape_priors(shapes)
    made = Path(path).read_bytes()
    stamp = os.stat(path).st_mtime_ns
    edit_masks(tmp_path, category=3)
    prepare_shape_priors(shapes)
    assert os.stat(path).st_mtime_ns == stamp
    edit_masks(tmp_path, category=2)
    prepare_shape_priors(shapes)
    assert Path(path).read_bytes() != made
    assert load_shape_priors(path).provenance["masks_of_class"]["class1"] == 12


def with_other(path: Path, **changes) -> bytes:
    """The file with other priors or another provenance."""
    with np.load(path) as file:
        content = {"priors": file["priors"], "provenance": file["provenance"]}
    other = path.with_suffix(".other.npz")
    np.savez(other, **{**content, **changes})
    return other.read_bytes()


def foreign(path: Path) -> bytes:
    np.savez(path.with_suffix(".other.npz"), boxes=np.zeros((3, 4)))
    return path.with_suffix(".other.npz").read_bytes()


def bare(path: Path) -> bytes:
    np.save(path.with_suffix(".other.npy"), np.zeros((4, 32, 32), np.float32))
    return path.with_suffix(".other.npy").read_bytes()


def no_masks_named(path: Path) -> np.ndarray:
    with np.load(path) as file:
        provenance = json.loads(str(file["provenance"]))
    return np.array(json.dumps({**provenance, "masks_of_class": None}))


DAMAGE = {
    "empty": lambda path: b"",
    "cut off": lambda path: path.read_bytes()[: path.stat().st_size // 2],
    "without its last byte": lambda path: path.read_bytes()[:-1],
    "with a flipped bit": lambda path: path.read_bytes().replace(b"?", b">"),
    "an array alone": bare,
    "foreign": foreign,
    "text": lambda path: b"<html>not found</html>",
    "a pickle": lambda path: pickle.dumps({"priors": 1}),
    "of more priors": lambda path: with_other(path, priors=np.zeros((5, 32, 32), np.float32)),
    "of smaller ones": lambda path: with_other(path, priors=np.zeros((4, 16, 16), np.float32)),
    "of numbers beyond 1": lambda path: with_other(path, priors=np.ones((4, 32, 32), "f4") * 2),
    "not finite": lambda path: with_other(path, priors=np.full((4, 32, 32), np.nan, "f4")),
    "of nobody": lambda path: with_other(path, provenance=np.array("{}")),
    "of no categories": lambda path: with_other(path, provenance=no_masks_named(path)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_priors_are_made_again_with_a_warning(shapes, damage, caplog):
    path = Path(priors_path(shapes))
    prepare_shape_priors(shapes)
    whole = path.read_bytes()
    path.write_bytes(DAMAGE[damage](path))
    assert path.read_bytes() != whole
    caplog.clear()
    with caplog.at_level("WARNING", logger="psis_d2"):
        prepare_shape_priors(shapes)
    (warning,) = (r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    assert warning.startswith(f"{path} ")
    assert warning.endswith(". They are made again.")
    assert path.read_bytes() == whole
    # those that somebody names are not ours to replace
    path.write_bytes(damaged := DAMAGE[damage](path))
    shapes.PSIS.SHAPEMASK.PRIORS = str(path)
    with pytest.raises(UserError, match="make it with psis-d2 make-shape-priors"):
        prepare_shape_priors(shapes)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("damaged", [False, True])
def test_two_processes_that_make_the_same_priors_at_once_both_end_well(shapes, damaged):
    path = Path(priors_path(shapes))
    prepare_shape_priors(shapes)  # also: what the processes share is imported
    whole = path.read_bytes()

    def run(barrier):
        for _ in range(ROUNDS):
            if barrier.wait(60) == 0:
                path.unlink()
                if damaged:
                    path.write_bytes(whole[:1000])
            barrier.wait(60)
            prepare_shape_priors(shapes)
            assert path.read_bytes() == whole

    two_at_once(run)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_priors_of_hidden_masks_are_refused(shapes, tmp_path):
    split = shapes.PSIS.SEEN_CLASSES
    shapes.PSIS.SEEN_CLASSES = "all"
    file_of(shapes, tmp_path / "all.npz")
    shapes.PSIS.SHAPEMASK.PRIORS = str(tmp_path / "all.npz")
    prepare_shape_priors(shapes)
    shapes.PSIS.SEEN_CLASSES = split
    with pytest.raises(UserError, match="masks of class3, which .* hides from training"):
        prepare_shape_priors(shapes)


def test_unusable_files(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(UserError, match="do not exist; make it with psis-d2 make-shape-priors"):
        load_shape_priors(str(path))
    path.write_text("no")
    with pytest.raises(UserError, match="is no file of shape priors"):
        load_shape_priors(str(path))
    facts = {"format": shape_priors._FORMAT, "num_priors": 2, "class_specific": False}
    facts["masks_of_class"] = {}
    priors = np.full((2, 32, 32), 1.5, np.float32)
    np.savez(path, priors=priors, provenance=json.dumps(facts))
    with pytest.raises(UserError, match="no shape priors between 0 and 1"):
        load_shape_priors(str(path))
