"""Inputs after public bug reports and exports of labeling tools, each with the right value.

``shared/cases`` beside the repository has some of them as folders; they are read where it is there.
"""

import copy
import itertools
import json
import logging
from pathlib import Path

from psis_d2.data.checks import check_data
from psis_d2.data.coco import load_coco, register_coco_json
from psis_d2.data.loader import build_test_loader, build_train_loader
from psis_d2.data.training_set import get_training_dicts, seen_ids_for
from psis_d2.errors import UserError

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

pytestmark = pytest.mark.usefixtures("catalogs")

WIDTH, HEIGHT = 64, 48
NAMES = ("box", "tri", "disk")
IDS = (1, 2, 5)
# Of each image: an object of each category.
BOXES = ([31, 12, 16, 20], [22, 18, 17, 19], [2, 4, 20, 15])


def outline(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def content():
    """A plain json of two images with three objects each, all with masks."""
    images = [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in (1, 2)]
    annotations = [
        {
            "id": 3 * (image["id"] - 1) + k + 1,
            "image_id": image["id"],
            "category_id": IDS[k],
            "bbox": list(box),
            "iscrowd": 0,
            "area": box[2] * box[3],
            "segmentation": [outline(*box)],
        }
        for image in images
        for k, box in enumerate(BOXES)
    ]
    categories = [
        {"id": key, "name": name, "supercategory": "x"}
        for key, name in zip(IDS, NAMES, strict=True)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def write(tmp_path):
    """Write a json (and images); returns its path and the folder of images."""

    def make(data, name="train"):
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for image in data["images"]:
            if image.get("file_name"):
                pixels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
                Image.fromarray(pixels).save(folder / image["file_name"])
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(data))
        return str(path), str(folder)

    return make


@pytest.fixture
def run(write, cfg):
    """A config of a training json and a validation json."""

    def make(train, val=None):
        for key, data, name in (("TRAIN", train, "train"), ("TEST", val, "val")):
            if data is None:
                continue
            register_coco_json(name, *write(data, name))
            cfg.DATASETS[key] = (name,)
        cfg.PSIS.SEEN_CLASSES = "auto"
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
        return cfg

    return make


def changed(change, every=True):
    """The plain json, its annotations (all, or every second one) changed in place by a function."""
    data = content()
    for number, annotation in enumerate(data["annotations"]):
        if every or number % 2 == 0:
            change(annotation)
    return data


def masks_of(dicts):
    """Segmentations, polygons as lists: those of a json may be arrays."""
    masks = [a.get("segmentation") for record in dicts for a in record["annotations"]]
    return [list(map(list, mask)) if isinstance(mask, list) else mask for mask in masks]


def runs(annotation, kind=int):
    """An uncompressed RLE that covers an annotation's box."""
    x, y, w, h = annotation["bbox"]
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + h, x : x + w] = 1
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": [kind(run) for run in counts]}


# -------------------------------------------------------------------------------------- crowds


def as_cvat(annotation):
    """As CVAT exports what was painted by brush."""
    annotation["segmentation"] = runs(annotation)
    annotation["iscrowd"] = 1


def test_some_crowds_are_counted_in_the_log_line(write, caplog):
    with caplog.at_level(logging.INFO, logger="psis_d2"):
        load_coco(*write(changed(as_cvat, every=False)), "toy")
    assert "annotations: 3 instances, 3 with a mask, 0 with a box only, and 3 crowd" in caplog.text


def test_categories_of_crowds_alone_are_warned_of_and_taken_as_instances_if_asked(run, caplog):
    cfg = run(changed(as_cvat))
    with pytest.raises(UserError, match=r"no images with .* \(6 crowd regions; PSIS.CROWDS inst"):
        get_training_dicts(cfg)
    assert "all 6 annotations of 'box', 'tri', 'disk' are crowd regions" in caplog.text
    cfg.PSIS.CROWDS = "instances"
    dicts = get_training_dicts(cfg)
    assert [a["iscrowd"] for r in dicts for a in r["annotations"]] == [0] * 6
    assert all(masks_of(dicts)) and seen_ids_for(cfg) == [0, 1, 2]
    cfg.PSIS.CROWDS = "perhaps"
    with pytest.raises(UserError, match="PSIS.CROWDS is 'perhaps'; choose one of ignore, inst"):
        get_training_dicts(cfg)


def test_regions_to_ignore_stay_crowd_where_crowds_are_instances(write):
    data = changed(lambda a: a.update(ignore=1, iscrowd=0), every=False)
    dicts = load_coco(*write(data), "toy", crowds="instances")
    assert [a["iscrowd"] for r in dicts for a in r["annotations"]] == [1, 0, 1, 0, 1, 0]


# --------------------------------------------------------------------------------------- flags


@pytest.mark.parametrize(
    ("value", "flag"),
    [
        *(("0", 0), ("false", 0), ("False", 0), (" FALSE ", 0), (False, 0), (0.0, 0), (None, 0)),
        *(("1", 1), ("true", 1), ("True", 1), (True, 1), (1.0, 1)),
    ],
)
@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_flags_of_annotations_in_any_spelling(write, key, value, flag):
    dicts = load_coco(*write(changed(lambda a: a.update({key: value}))), "toy")
    assert [a["iscrowd"] for r in dicts for a in r["annotations"]] == [flag] * 6


@pytest.mark.parametrize(("value", "masks"), [("false", 3), ("0", 3), ("TRUE", 0), (1, 0)])
def test_a_flag_of_images_in_any_spelling(write, value, masks):
    data = content()
    data["images"][0]["box_only"] = value
    first, second = load_coco(*write(data), "toy")
    assert [len([m for m in masks_of([r]) if m]) for r in (first, second)] == [masks, 3]
    assert "box_only" not in first


@pytest.mark.parametrize("value", ["yes", "", 2, [0], {}, 0.5, "nan"])
def test_what_is_no_flag_is_refused(write, value):
    data = changed(lambda a: a.update(iscrowd=value))
    with pytest.raises(UserError, match="iscrowd of annotation 1 in .*train.json is .*write 0 or"):
        load_coco(*write(data), "toy")
    data = content()
    data["images"][1]["box_only"] = value
    with pytest.raises(UserError, match="box_only of image id 2 in .*train.json is"):
        load_coco(*write(data), "toy")


def test_areas_in_text_are_none(write):
    dicts = load_coco(*write(changed(lambda a: a.update(area="320"))), "toy")
    assert not any("area" in a for r in dicts for a in r["annotations"])


# --------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("shape", ["line", "point", "outside", "no pixel"])
def test_polygons_without_a_pixel_are_no_masks_and_auto_does_not_see_their_class(run, shape):
    def damage(annotation):
        x, y, w, h = annotation["bbox"]
        line = [x, y, x + 1, y, x + 2, y]
        shapes = {
            "line": line,
            "point": [x, y] * 3,
            "outside": outline(x + WIDTH, y, w, h),
            "no pixel": outline(x + 0.4, y + 0.4, 0.05, 0.05),
        }
        if annotation["category_id"] == 5:
            annotation["segmentation"] = [shapes[shape]]

    cfg = run(changed(damage))
    assert seen_ids_for(cfg) == [0, 1]
    assert [bool(m) for m in masks_of(get_training_dicts(cfg))] == [True, True, False] * 2


PLAIN = {
    "one flat list": lambda a: outline(*a["bbox"]),
    "point pairs": lambda a: np.reshape(outline(*a["bbox"]), (-1, 2)).tolist(),
    "nested pairs": lambda a: [np.reshape(outline(*a["bbox"]), (-1, 2)).tolist()],
}


@pytest.mark.parametrize("spelling", PLAIN)
def test_polygons_are_taken_as_what_they_plainly_are(write, spelling):
    data = changed(lambda a: a.update(segmentation=PLAIN[spelling](a)))
    expected = masks_of(load_coco(*write(content()), "plain"))
    assert masks_of(load_coco(*write(data, "spelled"), "spelled")) == expected


def test_run_lengths_as_floats_are_run_lengths(write):
    whole, floats = (
        changed(lambda a, k=k: a.update(segmentation=runs(a, k))) for k in (int, float)
    )
    expected = masks_of(load_coco(*write(whole), "whole"))
    assert all(expected)
    assert masks_of(load_coco(*write(floats, "floats"), "floats")) == expected


def test_the_mask_of_training_is_that_of_the_plain_polygon(run, cfg):
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (HEIGHT,), "none"
    cfg.SOLVER.IMS_PER_BATCH = 1
    (sample,) = next(
        iter(
            build_train_loader(
                run(changed(lambda a: a.update(segmentation=PLAIN["point pairs"](a))))
            )
        )
    )
    expected = np.zeros((3, HEIGHT, WIDTH), bool)
    for mask, (x, y, w, h) in zip(expected, BOXES, strict=True):
        mask[y : y + h, x : x + w] = True
    assert (sample["instances"].gt_masks.tensor.numpy() == expected).all()


# --------------------------------------------------------------------------------------- units


def share(value, unit):
    sides = (WIDTH, HEIGHT) * (len(value) // 2)
    return [unit * v / side for v, side in zip(value, sides, strict=True)]


UNITS = {
    "shares in masks": (
        lambda a: a.update(segmentation=[share(a["segmentation"][0], 1)]),
        "the masks look like shares from 0 to 1",
    ),
    "percent in masks": (
        lambda a: a.update(segmentation=[share(a["segmentation"][0], 100)]),
        "the masks look like percentages",
    ),
    "shares in both": (
        lambda a: a.update(segmentation=[share(a["segmentation"][0], 1)], bbox=share(a["bbox"], 1)),
        "nearly all boxes lie between 0 and 1",
    ),
    "corners": (
        lambda a: a.update(bbox=[*a["bbox"][:2], *a["segmentation"][0][4:6]]),
        "nearly all boxes look like two corners",
    ),
}


@pytest.mark.parametrize("unit", UNITS)
def test_another_unit_is_warned_of_with_the_likely_cause(write, unit, caplog):
    change, message = UNITS[unit]
    load_coco(*write(changed(change)), "toy")
    assert f"train.json: {message}" in caplog.text


def test_good_data_is_read_without_a_warning(write, caplog):
    with caplog.at_level(logging.WARNING, logger="psis_d2"):
        load_coco(*write(content()), "toy")
    assert caplog.messages == []


# ----------------------------------------------------------------------------------------- ids


def renamed(ids):
    data = content()
    for image in data["images"]:
        image["id"] = ids[image["id"]]
    for annotation in data["annotations"]:
        annotation["image_id"] = ids[annotation["image_id"]]
    return data


@pytest.mark.parametrize("ids", [(1, "b"), (2**53, 2**53 + 1), ("b", "a"), (10**30, -5)])
def test_image_ids_of_any_size_and_of_mixed_kinds_are_kept(run, ids):
    cfg = run(content(), renamed({1: ids[0], 2: ids[1]}))
    loader = build_test_loader(cfg, "val", with_boxes=True)
    samples = {sample["image_id"]: sample for (sample,) in loader}
    assert samples.keys() == set(ids)
    assert samples[ids[0]]["instances"].gt_ids.tolist() == [1, 2, 3]
    assert samples[ids[1]]["file_name"].endswith("2.png")


def test_annotations_without_ids_are_numbered(write):
    dicts = load_coco(*write(changed(lambda a: a.pop("id"))), "toy")
    assert [a["id"] for r in dicts for a in r["annotations"]] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("key", [2**53 + 1, 2**63, "a1"])
def test_annotation_ids_of_any_size_and_kind_are_kept(write, key):
    def rename(annotation):
        if annotation["id"] == 3:
            annotation["id"] = key

    (third,) = (
        a
        for record in load_coco(*write(changed(rename)), "toy")
        for a in record["annotations"]
        if a.get("json_id", a["id"]) == key
    )
    assert third["bbox"] == BOXES[2]
    assert third["id"] == (key if key == 2**53 + 1 else 3)


# ---------------------------------------------------------------------------------- categories


@pytest.mark.parametrize("root", [0, 9])
def test_an_unused_root_category_with_a_classs_name_is_left_out(write, root, caplog):
    data = content()
    data["categories"].insert(0, {"id": root, "name": "box", "supercategory": "none"})
    with caplog.at_level(logging.INFO, logger="psis_d2"):
        dicts = load_coco(*write(data), "toy")
    assert MetadataCatalog.get("toy").thing_classes == list(NAMES)
    assert [a["category_id"] for r in dicts for a in r["annotations"]] == [0, 1, 2] * 2
    assert f"category {root} 'box' repeats a name and is unused" in caplog.text
    data["annotations"] = []
    load_coco(*write(data), "without annotations")
    assert MetadataCatalog.get("without annotations").thing_classes == list(NAMES)


def test_two_used_categories_of_one_name_are_refused(write):
    data = content()
    data["categories"][1]["name"] = "box"
    with pytest.raises(UserError, match=r"two categories with the name 'box' \(ids 1, 2\)"):
        load_coco(*write(data), "toy")


def reordered(names):
    """The plain json with some of its categories, ids anew and in another order."""
    data = content()
    new_ids = {IDS[NAMES.index(name)]: place + 1 for place, name in enumerate(names)}
    data["categories"] = [{"id": place + 1, "name": name} for place, name in enumerate(names)]
    data["annotations"] = [
        {**a, "category_id": new_ids[a["category_id"]]}
        for a in data["annotations"]
        if a["category_id"] in new_ids
    ]
    return data


@pytest.mark.parametrize("names", [("disk", "box", "tri"), ("tri",), ("disk", "box")])
def test_a_validation_json_with_a_subset_or_another_order_is_matched_by_name(run, names):
    cfg = run(content(), reordered(names))
    check_data(cfg)
    for (sample,) in build_test_loader(cfg, "val", with_boxes=True):
        found = sample["instances"]
        by_place = dict(zip(map(tuple, BOXES), range(3), strict=True))
        scale = sample["image"].shape[1] / HEIGHT
        boxes = (found.gt_boxes.tensor / scale).round().int()
        boxes[:, 2:] -= boxes[:, :2]
        assert found.gt_classes.tolist() == [by_place[tuple(box)] for box in boxes.tolist()]
        assert len(found) == len(names)


def test_classes_of_a_checkpoint_are_matched_by_name_without_the_training_data(run):
    cfg = run(None, reordered(("disk", "box")))
    cfg.PSIS.CLASSES = list(NAMES)
    cfg.PSIS.SEEN_CLASSES = "all"
    check_data(cfg, training=False)
    (sample,) = next(iter(build_test_loader(cfg, "val", with_boxes=True)))
    assert sorted(sample["instances"].gt_classes.tolist()) == [0, 2]
    assert seen_ids_for(cfg) == [0, 1, 2]


def test_a_validation_json_with_another_category_is_refused(run):
    data = content()
    data["categories"].append({"id": 6, "name": "hat"})
    cfg = run(content(), data)
    with pytest.raises(UserError, match=r"'train' \(3 categories\) and 'val' \(4\) .*: 'hat'; .*"):
        check_data(cfg)


# -------------------------------------------------------------------------- images and lists


def test_lvis_without_file_names(write, tmp_path):
    data = content()
    for image in data["images"]:
        name = f"{image['id']}.png"
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{name}"
        image["neg_category_ids"], image["not_exhaustive_category_ids"] = [5], [2]
    paths = write(data)
    for image in data["images"]:
        del image["file_name"]
    Path(paths[0]).write_text(json.dumps(data))
    first, second = load_coco(*paths, "flat")
    assert first["file_name"] == str(tmp_path / "images" / "1.png")
    assert first["neg_category_ids"] == [2] and first["not_exhaustive_category_ids"] == [1]
    (tmp_path / "images" / "train2017").mkdir()
    (tmp_path / "images" / "2.png").rename(tmp_path / "images" / "train2017" / "2.png")
    first, second = load_coco(*paths, "in folders")
    assert second["file_name"] == str(tmp_path / "images" / "train2017" / "2.png")


@pytest.mark.parametrize("empty", [False, True])
def test_an_image_list_without_annotations_can_be_predicted_on(run, empty):
    data = content()
    del data["annotations"]
    if empty:
        data["annotations"] = []
    cfg = run(content(), data)
    check_data(cfg)
    assert len(list(build_test_loader(cfg, "val"))) == 2
    cfg.DATASETS.TRAIN = ("val",)
    with pytest.raises(UserError, match=r"training data \(val\) has no images with instances"):
        check_data(cfg)


# ---------------------------------------------------------------------------------------- late


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_image_is_found_before_the_start(run, tmp_path, split):
    other = copy.deepcopy(content())
    other["images"][1]["file_name"] = "lost.png"
    datas = {"train": content(), "val": content(), split: other}
    cfg = run(datas["train"], datas["val"])
    check_data(cfg)
    (tmp_path / "images" / "lost.png").unlink()
    with pytest.raises(UserError, match=rf"1 of 2 image files of {split} are missing, .*lost.png"):
        check_data(cfg)
    cfg.DATALOADER.CHECK_FILES = False
    check_data(cfg)


def test_a_malformed_annotation_to_evaluate_on_is_found_before_the_start(run):
    bad = content()
    bad["annotations"][4]["bbox"] = [1, 2, 3]
    with pytest.raises(UserError, match="Annotation 5 in .*val.json has no usable bbox"):
        check_data(run(content(), bad))


def test_evaluation_alone_does_not_look_at_the_training_data(run, tmp_path):
    cfg = run(content(), content())
    (tmp_path / "train.json").unlink()
    cfg.PSIS.CLASSES = list(NAMES)
    check_data(cfg, training=False)
    with pytest.raises(UserError, match="train.json does not exist"):
        check_data(cfg, training=True)


# ---------------------------------------------------------------------------- no mask to learn from


@pytest.fixture
def maskless(run):
    return run(changed(lambda a: a.pop("segmentation")))


def test_training_without_a_usable_mask_is_refused(maskless):
    with pytest.raises(UserError, match="No object of train has a mask that training may see"):
        check_data(maskless)


@pytest.mark.parametrize(
    "options",
    [
        {"MODEL.MASK_ON": False},
        {"PSIS.MISSING_MASKS": "grabcut"},
        {"MODEL.META_ARCHITECTURE": "CondInst", "PSIS.CONDINST.SUPERVISION": "boxes"},
        {"PSIS.MASK_IMAGE_FRACTION": 0.0},
    ],
)
def test_training_without_masks_if_asked_for(maskless, options, tmp_path):
    maskless.PSIS.CACHE_DIR = str(tmp_path / "cache")
    maskless.merge_from_list([part for item in options.items() for part in item])
    check_data(maskless)


# -------------------------------------------------------------------------------- the folders

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
FOLDERS = sorted(path.name for path in CASES.glob("*/")) if CASES.is_dir() else []
# What reading the training json warns of, where it does.
WARNED = {
    "j01_cvat_iscrowd_rle": "PSIS.CROWDS instances takes them",
    "j02_all_iscrowd": "PSIS.CROWDS instances takes them",
    "j15_normalised_poly": "the masks look like shares",
    "j16_percent_poly": "the masks look like percentages",
    "j17_normalised_all": "nearly all boxes lie between 0 and 1",
    "j18_xyxy": "look like two corners",
    "l07_auto_degenerate": "4 masks are malformed or without a pixel",
}
# Instances and masks of the training json, where they are not 12 and 8.
COUNTS = {
    "j01_cvat_iscrowd_rle": (4, 0),
    "j02_all_iscrowd": (0, 0),
    "j15_normalised_poly": (12, 4),
    "j17_normalised_all": (12, 4),
}
# What a check of all data says where it ends a run.
REFUSED = {
    "i19_missing_val_image": "1 of 3 image files of val are missing",
    "i20_bad_val_json": "Annotation 6 in .*val.json has no usable bbox",
    "j01_cvat_iscrowd_rle": "No object of train has a mask",
    "j02_all_iscrowd": "no images with instances to train on .12 crowd regions; PSIS.CROWDS",
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_of_cases(folder, caplog, cfg):
    place = CASES / folder
    for key, name in (("TRAIN", "train"), ("TEST", "val")):
        register_coco_json(name, str(place / f"{name}.json"), str(place / "images"))
        cfg.DATASETS[key] = (name,)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.PSIS.SEEN_CLASSES = "auto"
    dicts = load_coco(str(place / "train.json"), str(place / "images"), "train")
    instances = [a for r in dicts for a in r["annotations"] if not a["iscrowd"]]
    masked = sum("segmentation" in a for a in instances)
    assert (len(instances), masked) == COUNTS.get(folder, (12, 8))
    assert WARNED.get(folder, "") in caplog.text
    assert folder in WARNED or "WARNING" not in caplog.text
    assert MetadataCatalog.get("train").thing_classes == list(NAMES)
    if folder in REFUSED:
        with pytest.raises(UserError, match=REFUSED[folder]):
            check_data(cfg)
        return
    check_data(cfg)
    cfg.SOLVER.IMS_PER_BATCH = 2
    (batch,) = itertools.islice(build_train_loader(cfg), 1)
    # No image is blank: neither black nor white.
    assert all(10 < sample["image"].float().mean() < 245 for sample in batch) or "12bit" in folder
    other = place / {"e23_testdev": "test.json", "k13_order_differs": "val2.json"}.get(folder, "")
    if other.is_file():
        register_coco_json("other", str(other), str(place / "images"))
        cfg.DATASETS.TEST = ("other",)
        check_data(cfg)
        plain, matched = (
            [sample["instances"].gt_classes.tolist() for (sample,) in loader]
            for loader in (
                build_test_loader(cfg, name, with_boxes=True) for name in ("val", "other")
            )
        )
        assert matched == (plain if folder == "k13_order_differs" else [[], [], []])
