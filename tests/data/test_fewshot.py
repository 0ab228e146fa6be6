"""Few-shot data: what is drawn, that it is drawn again, and what the tool says."""

import json
import os

import psis_d2  # noqa: F401  (before detectron2)
from psis_d2.cli import run_command
from psis_d2.data import get_dataset_dicts, get_training_dicts, prepare_dataset, seen_ids_for
from psis_d2.data.fewshot import draw_few_shots, register_few_shots, select_shots
from psis_d2.errors import UserError

import pytest
from detectron2.data import MetadataCatalog

SIZES = {i: (24, 32) for i in range(1, 13)}
# Contiguous ids of these data sets: dog 0, cat 1, bird 2.


def annotation(number, image_id, category_id, **extra):
    square = [[4, 4, 12, 4, 12, 12, 4, 12]]
    return {
        **{"id": number, "image_id": image_id, "category_id": category_id, "iscrowd": 0},
        **{"bbox": [4, 4, 8, 8], "area": 64, "segmentation": square, **extra},
    }


@pytest.fixture
def source(make_dataset, tmp_path):
    """A dog (1), a cat (3) and a bird (7) in each image; bird 101 is a crowd, 102 has no mask."""
    annotations = []
    for image_id in SIZES:
        annotations.append(annotation(image_id, image_id, 1))
        annotations.append(annotation(50 + image_id, image_id, 3))
        annotations.append(annotation(100 + image_id, image_id, 7))
    annotations[2]["iscrowd"] = 1
    annotations[5]["segmentation"] = []
    make_dataset("source", SIZES, annotations)
    (tmp_path / "novel.txt").write_text("cat\nbird\n")
    return tmp_path


def draw(source, *options):
    """What the tool writes, run on the fixture's data."""
    out = source / "few.json"
    line = ["--dataset", "source", "--novel", str(source / "novel.txt"), "--out", str(out)]
    run_command("make-fewshot", [*line, *options])
    return json.loads(out.read_text())


def test_each_novel_category_has_as_many_objects_and_nothing_else(source):
    few = draw(source, "--shots", "5")
    by_category = {}
    for record in few["annotations"]:
        by_category.setdefault(record["category_id"], set()).add(record["id"])
    assert {key: len(ids) for key, ids in by_category.items()} == {3: 5, 7: 5}
    assert not {101, 102} & by_category[7]  # a crowd; no mask
    assert {image["id"] for image in few["images"]} == {a["image_id"] for a in few["annotations"]}
    assert [c["name"] for c in few["categories"]] == ["cat", "dog", "bird"]  # all, as they were
    everything = {
        a["id"]: a for a in json.loads((source / "source.json").read_text())["annotations"]
    }
    assert all(record == everything[record["id"]] for record in few["annotations"])


def test_a_seed_is_one_draw_whatever_the_order(source):
    dicts = get_dataset_dicts("source")
    drawn = select_shots(dicts, [1, 2], 5, seed=0)
    assert select_shots(dicts[::-1], [2, 1], 5, seed=0) == drawn
    assert select_shots(dicts, [1, 2], 5, seed=1) != drawn
    fewer = select_shots(dicts, [1, 2], 2, seed=0)
    assert all(set(fewer[i]) < set(drawn[i]) for i in drawn)
    # Known once and for all: a change would change everyone's few-shot data.
    assert fewer == {1: [57, 61], 2: [107, 110]}


def test_the_tool_prints_what_it_took_and_does_it_once(source, capsys):
    few = draw(source, "--shots", "2", "--seed", "4")
    printed = capsys.readouterr().out
    for name, key in (("cat", 3), ("bird", 7)):
        ids = sorted(a["id"] for a in few["annotations"] if a["category_id"] == key)
        assert f"{name}: annotations {ids[0]}, {ids[1]}\n" in printed
    assert f"4 objects of 2 categories in {len(few['images'])} images, seed 4" in printed
    assert sorted(os.listdir(source)) == ["few.json", "images", "novel.txt", "source.json"]
    before = os.stat(source / "few.json").st_mtime_ns
    assert draw(source, "--shots", "2", "--seed", "4") == few
    assert os.stat(source / "few.json").st_mtime_ns == before
    with pytest.raises(UserError, match="is there already and holds something else"):
        draw(source, "--shots", "3")


def test_too_few_objects_are_named(source):
    with pytest.raises(UserError, match=r"for 11 of each novel category \(bird 10\); draw fewer"):
        draw(source, "--shots", "11")
    assert not (source / "few.json").exists()
    with pytest.raises(UserError, match="shots is 0"):
        draw(source, "--shots", "0")
    with pytest.raises(UserError, match="--novel 'vox' is neither"):
        draw_few_shots(str(source / "source.json"), "vox", 2, 0)


def test_named_draws(source, cfg):
    get_dataset_dicts("source")  # its categories are known from now on
    register_few_shots("source", "all")
    register_few_shots("source", "all")  # again is fine
    name = "source_fewshot_all_10_seed2"
    command = "psis-d2 make-fewshot --dataset source --novel all --shots 10 --seed 2"
    with pytest.raises(UserError, match=f"not drawn yet; do it once: {command}"):
        prepare_dataset(name)
    run_command("make-fewshot", command.split()[2:])
    cfg.DATASETS.TRAIN = (name,)
    cfg.PSIS.SEEN_CLASSES = str(source / "novel.txt")
    cfg.PSIS.ORACLE = True
    shown = [a for record in get_training_dicts(cfg) for a in record["annotations"]]
    assert len(shown) == 30
    assert all("segmentation" in a for a in shown)
    assert seen_ids_for(cfg) == [1, 2]
    assert MetadataCatalog.get(name).thing_classes == ["dog", "cat", "bird"]


def test_training_sees_nothing_of_other_categories(source, cfg):
    cfg.DATASETS.TRAIN = ("source",)
    cfg.PSIS.TRAIN_CLASSES = str(source / "novel.txt")
    shown = [a for record in get_training_dicts(cfg) for a in record["annotations"]]
    assert {a["category_id"] for a in shown} == {1, 2}
    assert len(shown) == 24
    # Images without such an object are left out.
    (source / "rare.txt").write_text("bird\n")
    cfg.PSIS.TRAIN_CLASSES = str(source / "rare.txt")
    assert [record["image_id"] for record in get_training_dicts(cfg)] == list(range(2, 13))
    cfg.PSIS.TRAIN_CLASSES = "bards"
    with pytest.raises(UserError, match="PSIS.TRAIN_CLASSES 'bards' is neither"):
        get_training_dicts(cfg)
