"""GrabCut masks: of one box, of a data set through the cache, and as masks to train on."""

import copy
import json
import multiprocessing
import os
import shutil
from pathlib import Path

from psis_d2.cli import run_command
from psis_d2.data import get_dataset_dicts, get_training_dicts
from psis_d2.data.coco import register_coco_json
from psis_d2.data.grabcut import GrabCut, grabcut_masks
from psis_d2.data.mapper import PartialMaskMapper
from psis_d2.errors import UserError

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_util

from model_builders import tiny_model, training_losses

SIZE = 48
GREEN, RED = (40, 160, 60), (200, 60, 50)


def disc(cx, cy, radius, size=SIZE):
    """bool [size, size], true within a radius of a center."""
    y, x = np.mgrid[:size, :size]
    return (x - cx) ** 2 + (y - cy) ** 2 <= radius**2


def painting(*discs, seed=0):
    """Red discs on green, a little noise on both: uint8 [SIZE, SIZE, 3]."""
    image = np.full((SIZE, SIZE, 3), GREEN, dtype=np.float64)
    for mask in discs:
        image[mask] = RED
    image += np.random.default_rng(seed).normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def box_of(mask):
    """XYWH of a mask."""
    return [float(v) for v in mask_util.toBbox(mask_util.encode(np.asfortranarray(mask, np.uint8)))]


# ------------------------------------------------------------------------------------- one box


def test_the_mask_of_a_two_colored_image_is_the_object():
    truth = disc(22, 25, 9)
    mask, made = GrabCut()(painting(truth), (11, 14, 34, 37))
    assert made == "grabcut"
    assert np.array_equal(mask, truth)


def test_a_shrunk_crop_gives_the_object_to_a_pixel_of_its_border():
    truth = disc(22, 25, 9)
    mask, made = GrabCut(max_side=24)(painting(truth), (11, 14, 34, 37))
    assert made == "grabcut"
    inner, outer = disc(22, 25, 7.5), disc(22, 25, 10.5)
    assert mask[inner].all()
    assert not mask[~outer].any()


def test_nothing_outside_the_box_is_foreground():
    image = painting(disc(24, 24, 15))  # the object goes on outside the box
    mask, _ = GrabCut()(image, (20.4, 18.0, 40.0, 30.6))
    outside = np.ones_like(mask)
    outside[18:31, 20:40] = False
    assert mask.any()
    assert not mask[outside].any()


@pytest.mark.parametrize(
    ("box", "how", "filled"),
    [
        ((0, 0, SIZE, SIZE), "whole image", (0, 0, SIZE, SIZE)),
        ((-9, -9, SIZE + 9, SIZE + 9), "whole image", (0, 0, SIZE, SIZE)),
        ((10.2, 12.5, 11.4, 13.5), "tiny", (10, 12, 12, 14)),
        ((SIZE + 1, 3, SIZE + 9, 9), "outside", None),
        ((5, 5, 5, 9), "outside", None),
    ],
)
def test_boxes_that_cannot_be_cut(box, how, filled):
    mask, made = GrabCut()(painting(), box)
    assert made == how
    if filled is None:
        assert mask is None
        return
    x0, y0, x1, y1 = filled
    expected = np.zeros((SIZE, SIZE), dtype=bool)
    expected[y0:y1, x0:x1] = True
    assert np.array_equal(mask, expected)


def test_a_box_that_is_all_background_is_filled():
    # Inside and outside are the same one color: nothing speaks for foreground but the box.
    image = np.full((SIZE, SIZE, 3), 90, dtype=np.uint8)
    mask, made = GrabCut()(image, (10, 10, 30, 30))
    assert made == "empty"
    assert mask[10:30, 10:30].all()
    assert mask.sum() == 400


def patchwork():
    """A disc and its ground in patches of eight colors each, four of them common to both."""
    rng = np.random.default_rng(3)
    palette = rng.integers(0, 256, (12, 3))
    ground, figure = (
        rng.integers(first, first + 8, (SIZE // 4, SIZE // 4)).repeat(4, 0).repeat(4, 1)
        for first in (0, 4)
    )
    image = palette[np.where(disc(24, 24, 13), figure, ground)]
    return (image + rng.normal(0, 5, image.shape)).clip(0, 255).astype(np.uint8)


def test_other_random_numbers_of_opencv_change_nothing():
    masks = []
    for seed in range(4):
        cv2.setRNGSeed(seed)
        mask, made = GrabCut(iterations=1)(patchwork(), (8, 8, 40, 40))
        assert made == "grabcut"
        masks.append(mask)
    assert all(np.array_equal(mask, masks[0]) for mask in masks)


# ---------------------------------------------------------------------------------- a data set


@pytest.fixture
def paint_dataset(write_json, catalogs):
    """Write and register images with two red discs each, a dog with and a cat without a mask."""

    def paint(name, count=5, cat_mask=None, dog_mask="disc"):
        """``cat_mask``: None, or a function of the annotation id that gives a segmentation."""
        images, annotations, pixels = [], [], {}
        rng = np.random.default_rng(0)
        for i in range(1, count + 1):
            discs = [
                disc(*rng.uniform(11, 15, 2), rng.uniform(6, 9)),
                disc(*rng.uniform(32, 36, 2), rng.uniform(6, 9)),
            ]
            pixels[f"{i}.png"] = painting(*discs, seed=i)
            images.append({"id": i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE})
            for category, mask in zip((1, 3), discs, strict=True):
                x, y, w, h = box_of(mask)
                entry = {"id": len(annotations) + 1, "image_id": i, "category_id": category}
                entry |= {"bbox": [x - 1, y - 1, w + 2, h + 2], "iscrowd": 0}
                if category == 1:
                    entry["segmentation"] = [[x, y, x + w, y, x + w, y + h]]
                elif cat_mask is not None:
                    entry["segmentation"] = cat_mask(entry["id"])
                annotations.append(entry)
        json_file, folder = write_json(images, annotations, file_name=f"{name}.json")
        for file_name, image in pixels.items():
            Image.fromarray(image).save(f"{folder}/{file_name}")
        register_coco_json(name, json_file, folder)
        return name

    return paint


def parts_in(folder) -> list[Path]:
    return [path for path in Path(folder).rglob("*") if path.is_file()]


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("psis_d2.data.grabcut.cache._IMAGES_A_PART", 2)


@pytest.fixture
def counted(monkeypatch):
    """Image ids that GrabCut is called for; one of them can be made to fail."""
    import psis_d2.data.grabcut.cache as module

    calls, bad = [], []
    segment = module._segment

    def count(job, **options):
        if job["image_id"] in bad:
            raise KeyboardInterrupt
        calls.append(job["image_id"])
        return segment(job, **options)

    monkeypatch.setattr(module, "_segment", count)
    count.calls, count.bad = calls, bad
    return count


def test_masks_of_a_data_set_are_those_of_its_boxes(paint_dataset, tmp_path):
    dicts = get_dataset_dicts(paint_dataset("grab_direct", 2))
    masks = grabcut_masks(dicts, "grab_direct", str(tmp_path / "cache"))
    cats = [(r["image_id"], a) for r in dicts for a in r["annotations"] if a["category_id"] == 1]
    assert masks.keys() == {(image_id, a["id"]) for image_id, a in cats}
    for image_id, annotation in cats:
        # The color order that images are read in cannot matter.
        image = np.asarray(Image.open(tmp_path / "images" / f"{image_id}.png"))
        x, y, w, h = annotation["bbox"]
        expected = GrabCut()(image, (x, y, x + w, y + h))[0]
        assert np.array_equal(mask_util.decode(masks[image_id, annotation["id"]]), expected)


def test_parallel_is_serial_and_the_cache_is_used(paint_dataset, tmp_path, small_parts, counted):
    dicts = get_dataset_dicts(paint_dataset("grab_cache"))
    serial = grabcut_masks(dicts, "a", str(tmp_path / "serial"), threads=1)
    assert sorted(counted.calls) == [1, 2, 3, 4, 5]
    parallel = grabcut_masks(dicts, "a", str(tmp_path / "parallel"), threads=4)
    assert parallel == serial
    assert len(serial) == 5
    counted.calls.clear()
    assert grabcut_masks(dicts, "a", str(tmp_path / "serial")) == serial
    assert counted.calls == []
    assert len(parts_in(tmp_path / "serial")) == 1
    # Other settings, other boxes: other masks.
    grabcut_masks(dicts, "a", str(tmp_path / "serial"), GrabCut(iterations=2))
    dicts[0]["annotations"][1]["bbox"][2] += 1
    grabcut_masks(dicts, "a", str(tmp_path / "serial"))
    assert len(counted.calls) == 10
    assert len(parts_in(tmp_path / "serial")) == 3


def test_an_interrupted_call_continues(paint_dataset, tmp_path, small_parts, counted, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 0)  # begins with the first part
    dicts = get_dataset_dicts(paint_dataset("grab_stop"))
    whole = grabcut_masks(dicts, "a", str(tmp_path / "whole"))
    counted.calls.clear()
    counted.bad.append(4)
    folder = str(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        grabcut_masks(dicts, "a", folder, threads=1)
    left = {path.name for path in parts_in(folder)}
    # The part of image 4 is not there; whether the next one had begun is the thread's affair.
    assert {"000000.json"} <= left <= {"000000.json", "000002.json"}
    counted.bad.clear()
    counted.calls.clear()
    assert grabcut_masks(dicts, "a", folder) == whole
    assert sorted(counted.calls) == [3, 4] + [5] * ("000002.json" not in left)
    assert len(parts_in(folder)) == 1


def test_two_processes_share_the_work(paint_dataset, tmp_path, small_parts, counted, monkeypatch):
    """What another process finishes in the meantime is not made again."""
    import psis_d2.data.grabcut.cache as module

    monkeypatch.setattr(os, "getpid", lambda: 0)  # begins with the first part, of two images
    dicts = get_dataset_dicts(paint_dataset("grab_share"))
    grabcut_masks(dicts, "a", str(tmp_path / "theirs"))
    (finished,) = parts_in(tmp_path / "theirs")
    counted.calls.clear()
    segment = module._segment

    def meanwhile(job, **options):
        result = segment(job, **options)
        target = tmp_path / "ours" / "grabcut" / finished.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(finished, target)
        shutil.rmtree(f"{target}.parts", ignore_errors=True)
        return result

    monkeypatch.setattr(module, "_segment", meanwhile)
    masks = grabcut_masks(dicts, "a", str(tmp_path / "ours"), threads=1)
    assert len(masks) == 5
    assert counted.calls == [1, 2]
    assert len(parts_in(tmp_path / "ours")) == 1


def test_a_missing_image_and_a_folder_that_is_a_file_are_named(paint_dataset, tmp_path):
    dicts = get_dataset_dicts(paint_dataset("grab_bad", 2))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="PSIS.CACHE_DIR"):
        grabcut_masks(dicts, "a", str(tmp_path / "file"))
    (tmp_path / "images" / "2.png").unlink()
    with pytest.raises(UserError, match=r"2\.png"):
        grabcut_masks(dicts, "a", str(tmp_path / "cache"))


# ------------------------------------------------------------------------------------ training


@pytest.fixture
def grabcut_cfg(cfg, tmp_path):
    names = tmp_path / "seen.txt"
    names.write_text("dog\n")
    cfg.PSIS.SEEN_CLASSES = str(names)
    cfg.PSIS.MISSING_MASKS = "grabcut"
    cfg.PSIS.CACHE_DIR = str(tmp_path / "cache")
    return cfg


def test_training_sees_grabcut_masks_and_the_annotated_ones(paint_dataset, grabcut_cfg):
    grabcut_cfg.DATASETS.TRAIN = (paint_dataset("grab_train", 2),)
    grabcut_cfg.INPUT.MIN_SIZE_TRAIN = (SIZE,)
    grabcut_cfg.INPUT.RANDOM_FLIP = "none"
    dicts = get_training_dicts(grabcut_cfg)
    image = np.asarray(Image.open(dicts[0]["file_name"]))
    dog, cat = dicts[0]["annotations"]
    x, y, w, h = cat["bbox"]
    expected = GrabCut()(image, (x, y, x + w, y + h))[0]
    assert isinstance(dog["segmentation"], list)
    assert np.array_equal(mask_util.decode(cat["foreign_segmentation"]), expected)
    assert "segmentation" not in cat
    instances = PartialMaskMapper(grabcut_cfg)(dicts[0])["instances"]
    assert instances.gt_has_mask.tolist() == [True, False]
    assert instances.gt_mask_weight.tolist() == [1, 1]
    assert np.array_equal(instances.gt_masks.tensor[1].numpy(), expected)


def test_losses_are_those_of_annotated_masks_that_grabcut_drew(paint_dataset, grabcut_cfg):
    grabcut_cfg.DATASETS.TRAIN = (paint_dataset("grab_losses", 2),)
    dicts = get_training_dicts(grabcut_cfg)
    as_annotated = copy.deepcopy(dicts)
    for record in as_annotated:
        for annotation in record["annotations"]:
            if "foreign_weight" in annotation:
                assert annotation.pop("foreign_weight") == 1
                annotation["segmentation"] = annotation.pop("foreign_segmentation")
    found = []
    for records, masks in ((dicts, "grabcut"), (as_annotated, "none")):
        grabcut_cfg.PSIS.MISSING_MASKS = masks
        mapper = PartialMaskMapper(grabcut_cfg)
        np.random.seed(0)
        batch = [mapper(record) for record in records]
        assert batch[0]["instances"].has("gt_mask_weight") == (masks == "grabcut")
        found.append(training_losses(tiny_model(), batch))
    assert found[0].keys() == found[1].keys()
    for name, loss in found[0].items():
        assert torch.equal(loss, found[1][name]), name


def test_garbage_in_unseen_masks_changes_nothing(paint_dataset, grabcut_cfg, tmp_path):
    def garbage(number):
        noise = np.random.default_rng(number).random((SIZE, SIZE)) > 0.5
        rle = mask_util.encode(np.asfortranarray(noise, np.uint8))
        return {"size": [SIZE, SIZE], "counts": rle["counts"].decode()}

    found = []
    for name, mask in (("grab_none", None), ("grab_garbage", garbage)):
        grabcut_cfg.DATASETS.TRAIN = (paint_dataset(name, 3, cat_mask=mask),)
        grabcut_cfg.PSIS.CACHE_DIR = str(tmp_path / name)
        found.append(get_training_dicts(grabcut_cfg))
    assert found[0] == found[1]
    for record in found[0]:
        assert all(
            ("segmentation" in a) != ("foreign_segmentation" in a) for a in record["annotations"]
        )


def test_images_without_masks_get_grabcut_masks_too(paint_dataset, grabcut_cfg):
    grabcut_cfg.DATASETS.TRAIN = (paint_dataset("grab_images", 2),)
    grabcut_cfg.PSIS.SEEN_CLASSES = "all"
    grabcut_cfg.PSIS.MASK_IMAGE_FRACTION = 0.0
    dicts = get_training_dicts(grabcut_cfg)
    assert all(isinstance(a["foreign_segmentation"], dict) for r in dicts for a in r["annotations"])


def test_an_unknown_choice_is_refused(paint_dataset, grabcut_cfg):
    grabcut_cfg.DATASETS.TRAIN = (paint_dataset("grab_choice", 1),)
    grabcut_cfg.PSIS.MISSING_MASKS = "magic"
    with pytest.raises(UserError, match="choose one of none, grabcut"):
        get_training_dicts(grabcut_cfg)


# ---------------------------------------------------------------------------------------- tool


def test_the_tool_writes_a_json_with_grabcut_masks(paint_dataset, tmp_path, capsys):
    paint_dataset("grab_tool", 2, cat_mask=lambda i: [[0, 0, 9, 0, 9, 9]])
    source = json.loads((tmp_path / "grab_tool.json").read_text())
    (tmp_path / "seen.txt").write_text("dog\nbird\n")
    line = ["--json", str(tmp_path / "grab_tool.json"), "--images", str(tmp_path / "images")]
    line += ["--seen", str(tmp_path / "seen.txt"), "--cache", str(tmp_path / "cache")]
    run_command("make-grabcut-masks", [*line, "--output", str(tmp_path / "out.json")])
    assert "2 GrabCut masks" in capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["images"] == source["images"]
    for before, after in zip(source["annotations"], result["annotations"], strict=True):
        if before["category_id"] == 1:
            assert after == before
        else:
            assert after["area"] == mask_util.area(after["segmentation"]) > 50
            assert after["bbox"] == before["bbox"]


def test_the_tool_wants_one_source():
    with pytest.raises(UserError, match="--dataset, or --json and --images"):
        run_command("make-grabcut-masks", ["--json", "a.json", "--output", "b.json"])


# ----------------------------------------------------------------------------- damaged caches


def other_size(text):
    """The cache of images that are twice as large."""
    content = json.loads(text)
    for image in content["images"]:
        image[1:3] = [2 * side for side in image[1:3]]
    return json.dumps(content)


def other_objects(text):
    content = json.loads(text)
    content["images"][0][3][0][0] += 1000
    return json.dumps(content)


def other_runs(text):
    content = json.loads(text)
    content["images"][0][3][0][2] = "0"
    return json.dumps(content)


DAMAGE = {
    "empty": lambda text: "",
    "cut off": lambda text: text[: len(text) // 2],
    "foreign": lambda text: json.dumps({"images": [{"id": 1}], "annotations": []}),
    "a list": lambda text: "[]",
    "of another size": other_size,
    "of other objects": other_objects,
    "with a damaged mask": other_runs,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_made_again_with_a_warning(paint_dataset, tmp_path, damage, caplog):
    dicts = get_dataset_dicts(paint_dataset("grab_damage", 2))
    masks = grabcut_masks(dicts, "a", str(tmp_path / "cache"))
    (path,) = parts_in(tmp_path / "cache")
    whole = path.read_text()
    path.write_text(DAMAGE[damage](whole))
    assert path.read_text() != whole
    with caplog.at_level("WARNING", logger="psis_d2"):
        assert grabcut_masks(dicts, "a", str(tmp_path / "cache")) == masks
    assert f"{path} is no cache of these GrabCut masks" in caplog.text
    assert path.read_text() == whole
    assert parts_in(tmp_path / "cache") == [path]


def test_a_damaged_part_is_made_again(
    paint_dataset, tmp_path, small_parts, counted, monkeypatch, caplog
):
    monkeypatch.setattr(os, "getpid", lambda: 0)  # begins with the first part
    dicts = get_dataset_dicts(paint_dataset("grab_part"))
    whole = grabcut_masks(dicts, "a", str(tmp_path / "whole"))
    counted.bad.append(4)
    with pytest.raises(KeyboardInterrupt):
        grabcut_masks(dicts, "a", str(tmp_path / "cache"), threads=1)
    first = next(path for path in parts_in(tmp_path / "cache") if path.name == "000000.json")
    first.write_text("[")
    counted.bad.clear()
    counted.calls.clear()
    assert grabcut_masks(dicts, "a", str(tmp_path / "cache")) == whole
    assert f"{first} is no cache" in caplog.text
    assert {1, 2} <= set(counted.calls)


def _make_masks(dicts, path, damaged, barrier, results):
    for _ in range(4):
        if barrier.wait(60) == 0:
            path.unlink()
            if damaged:
                path.write_text("")
        barrier.wait(60)
        results.put(grabcut_masks(dicts, "a", str(path.parents[1]), threads=1, progress=False))
        barrier.wait(60)


@pytest.mark.parametrize("damaged", [False, True])
def test_two_processes_that_make_one_cache_at_once_both_end_well(
    paint_dataset, tmp_path, small_parts, damaged
):
    dicts = get_dataset_dicts(paint_dataset("grab_twice"))
    whole = grabcut_masks(dicts, "a", str(tmp_path / "cache"))
    (path,) = parts_in(tmp_path / "cache")
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (dicts, path, damaged, barrier, results)
    processes = [context.Process(target=_make_masks, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in range(4) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert all(masks == whole for masks in found)
    assert parts_in(tmp_path / "cache") == [path]
