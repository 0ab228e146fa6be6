import hashlib
from pathlib import Path

import psis_d2  # noqa: F401  (before detectron2)
from psis_d2.data.splits import (
    NONVOC_NAMES,
    SHAPES_SEEN_NAMES,
    SHAPES_UNSEEN_NAMES,
    SPLIT_LISTS,
    VOC_NAMES,
    resolve_seen_classes,
)
from psis_d2.errors import UserError

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from tool_scripts import load_tool

COCO = MetadataCatalog.get("coco_2017_train").thing_classes
SHAPES = SHAPES_SEEN_NAMES + SHAPES_UNSEEN_NAMES
VOC_IDS = [0, 1, 2, 3, 4, 5, 6, 8, 14, 15, 16, 17, 18, 19, 39, 56, 57, 58, 60, 62]
ABCD = ["a", "b", "c", "d"]
DIGESTS = ["744586f82ee1", "eb63d8c2f173", "9ea04184fa58", "6ca978ff61e2"]


def names_of(spec, class_names, **options):
    return [class_names[i] for i in resolve_seen_classes(spec, class_names, **options)]


def test_voc_has_the_published_contiguous_ids():
    assert resolve_seen_classes("voc", COCO) == VOC_IDS


def test_voc_has_the_published_coco_ids():
    ids = MetadataCatalog.get("coco_2017_train").thing_dataset_id_to_contiguous_id
    coco_id = {contiguous: original for original, contiguous in ids.items()}
    assert [coco_id[i] for i in resolve_seen_classes("voc", COCO)] == [
        *(1, 2, 3, 4, 5, 6, 7, 9, 16, 17, 18, 19, 20, 21, 44, 62, 63, 64, 67, 72)
    ]


def test_nonvoc_is_the_other_sixty():
    nonvoc = resolve_seen_classes("nonvoc", COCO)
    assert nonvoc == [7, *range(9, 14), *range(20, 39), *range(40, 56), 59, 61, *range(63, 80)]
    assert sorted(nonvoc + VOC_IDS) == list(range(80))
    assert len(nonvoc) == len(NONVOC_NAMES) == 60


def test_couch_is_voc_and_bench_is_not():
    assert "couch" in VOC_NAMES and "couch" not in NONVOC_NAMES
    assert "bench" in NONVOC_NAMES and "bench" not in VOC_NAMES


def test_the_order_of_the_json_decides_the_ids():
    backwards = COCO[::-1]
    assert resolve_seen_classes("voc", backwards) == sorted(79 - i for i in VOC_IDS)


def test_shapes_and_its_swap_share_out_the_twenty():
    assert names_of("shapes", SHAPES) == list(SHAPES_SEEN_NAMES)
    assert names_of("shapes-swapped", SHAPES) == list(SHAPES_UNSEEN_NAMES)
    assert len(set(SHAPES)) == 20


def test_all_and_auto():
    assert resolve_seen_classes("all", ABCD) == [0, 1, 2, 3]
    assert resolve_seen_classes("auto", ABCD, masked_classes={3, 1}) == [1, 3]
    assert resolve_seen_classes("auto", ABCD, masked_classes=()) == []
    with pytest.raises(UserError, match="'auto' needs the training annotations"):
        resolve_seen_classes("auto", ABCD)


def test_random_is_the_k_smallest_hashes():
    def rank(name):
        return hashlib.sha256(f"9:{name}".encode()).hexdigest()

    assert names_of("random-2-9", ABCD) == sorted(sorted(ABCD, key=rank)[:2])


def test_random_never_changes():
    # Written down once: published splits must stay what they were.
    assert resolve_seen_classes("random-6-0", COCO) == [37, 43, 50, 58, 77, 79]
    assert resolve_seen_classes("random-6-1", COCO) == [12, 28, 43, 62, 66, 71]


def test_random_is_nested_and_independent_of_the_order_of_categories():
    small, large = (set(resolve_seen_classes(f"random-{k}-3", COCO)) for k in (20, 40))
    assert len(small) == 20 and len(large) == 40 and small < large
    assert set(names_of("random-20-3", COCO[::-1])) == {COCO[i] for i in small}


@pytest.mark.parametrize("count", [0, 5])
def test_random_of_an_impossible_number(count):
    with pytest.raises(UserError, match=f"asks for {count} categories, but data set 'pets' has 4"):
        resolve_seen_classes(f"random-{count}-1", ABCD, dataset_name="pets")


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_file_of_names(tmp_path, newline):
    path = tmp_path / "seen.txt"
    lines = ["# my split", "d", "", "  b  ", "d", "   ", "#c"]
    path.write_text("\ufeff" + newline.join(lines), encoding="utf-8")
    assert resolve_seen_classes(str(path), ABCD) == [1, 3]


def test_file_with_an_unknown_name_says_which_and_what_is_near(tmp_path):
    path = tmp_path / "seen.txt"
    path.write_text("dog\nmotorbike\nsofa\n")
    with pytest.raises(
        UserError, match=r"seen.txt names 'motorbike' \(did you mean 'motorcycle'\?\), 'sofa'"
    ):
        resolve_seen_classes(str(path), COCO, dataset_name="coco")


def test_file_without_names(tmp_path):
    path = tmp_path / "seen.txt"
    path.write_text("# nothing yet\n")
    with pytest.raises(UserError, match="names no category"):
        resolve_seen_classes(str(path), ABCD)


def test_file_that_is_no_text(tmp_path):
    path = tmp_path / "seen.txt"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UserError, match="Cannot read the class list"):
        resolve_seen_classes(str(path), ABCD)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vocs", r"'vocs' is neither one of voc, nonvoc, .*did you mean 'voc'\?"),
        ("random-20", r"'random-20' is neither one of"),
        ("no/such/file.txt", r"nor an existing file"),
    ],
)
def test_unknown_spelling(spec, message):
    with pytest.raises(UserError, match=message):
        resolve_seen_classes(spec, ABCD)


@pytest.mark.parametrize("spec", ["voc", "nonvoc", "shapes", "shapes-swapped"])
def test_named_split_on_a_data_set_it_does_not_fit(spec):
    with pytest.raises(UserError, match=f"PSIS.SEEN_CLASSES '{spec}' names .* data set 'pets'"):
        resolve_seen_classes(spec, ABCD, dataset_name="pets")


def test_released_random_splits_are_those_that_the_released_code_draws():
    """Twice by the letter: NumPy's legacy generator, whose stream is frozen, and pure Python."""
    generator, tool = np.random.RandomState(3), load_tool("write_split_lists")
    drawn = tool.all_splits()
    for trial in range(1, 6):
        for size in (20, 30, 40, 50, 60):
            name = f"maskx-{size}-{trial}"
            ids = resolve_seen_classes(name, COCO)
            assert ids == sorted(generator.choice(80, size, replace=False).tolist())
            assert ids == drawn[name]
    assert len(drawn) == len(list(Path(SPLIT_LISTS).glob("*.txt"))) == 25


def test_released_random_splits_never_change():
    text = [" ".join(names_of(f"maskx-{k}-{t}", COCO)) for k in (20, 60) for t in (1, 5)]
    assert [hashlib.sha256(x.encode()).hexdigest()[:12] for x in text] == DIGESTS


def test_the_mersenne_twister_is_the_published_one():
    """The first outputs for seed 5489, the default of the C++ standard's mt19937."""
    generator = load_tool("write_split_lists").mersenne_twister(5489)
    assert [generator.getrandbits(32) for _ in range(3)] == [3499211612, 581869302, 3890346734]


def test_the_files_are_what_the_tool_writes(tmp_path, monkeypatch):
    tool = load_tool("write_split_lists")
    monkeypatch.setattr(tool, "SPLIT_LISTS", str(tmp_path))
    tool.main()
    for path in Path(SPLIT_LISTS).glob("*.txt"):
        assert path.read_text() == (tmp_path / path.name).read_text()


@pytest.mark.parametrize("name", ["maskx-25-1", "maskx-20-6"])
def test_a_released_split_that_there_is_not(name):
    with pytest.raises(UserError, match=f"'{name}' is none of the 25 splits"):
        resolve_seen_classes(name, COCO)


def test_a_growing_split_is_the_named_one_and_more():
    voc, small, large = (
        set(resolve_seen_classes(x, COCO)) for x in ("voc", "voc+10-0", "voc+30-0")
    )
    assert voc < small < large and len(small) == 30 and len(large) == 50
    with pytest.raises(UserError, match="asks for 61 categories, but the data set has 60 others"):
        resolve_seen_classes("voc+61-0", COCO)


def test_the_others():
    assert resolve_seen_classes("not:voc", COCO) == resolve_seen_classes("nonvoc", COCO)
    assert resolve_seen_classes("not:not:voc", COCO) == VOC_IDS
    assert resolve_seen_classes("not:auto", ABCD, masked_classes=[1]) == [0, 2, 3]
    # A fixed set of novel categories beside nested seen ones.
    novel = set(resolve_seen_classes("not:random-60-0", COCO))
    assert len(novel) == 20
    for count in (20, 40, 60):
        assert not novel & set(resolve_seen_classes(f"random-{count}-0", COCO))
