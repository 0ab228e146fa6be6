"""Masks that are no annotations: read from a file, matched, weighted, and kept apart."""

import json
import logging

from psis_d2.data import get_dataset_dicts
from psis_d2.data.checks import check_data
from psis_d2.data.foreign_masks import match_masks, read_mask_file
from psis_d2.data.mapper import PartialMaskMapper
from psis_d2.data.shape_priors import make_shape_priors
from psis_d2.data.supervision import count_masks, masked_classes
from psis_d2.data.training_set import get_training_dicts, seen_ids_for
from psis_d2.errors import UserError

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_util

from toy_data import SIZES, annotations, polygon


def rle_of(image_id, left, top, side=8):
    """A square as an RLE of the toy image."""
    height, width = SIZES[image_id]
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + side, left : left + side] = 1
    rle = mask_util.encode(np.asfortranarray(mask))
    return {"size": [height, width], "counts": rle["counts"].decode()}


def cat(of_image, score=None, **changes):
    """An entry for the cat of a toy image: the left half of its mask."""
    entry = {"id": 2 * of_image, "image_id": of_image}
    entry["segmentation"] = rle_of(of_image, of_image + 4, 5, 4)
    return entry | ({} if score is None else {"score": score}) | changes


@pytest.fixture
def use(toy, tmp_path):
    """Write entries and let the config train on them; returns the config."""

    def write(content, **options):
        path = tmp_path / "masks.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        toy.PSIS.MISSING_MASKS = str(path)
        for key, value in options.items():
            toy.PSIS[f"MISSING_MASK_{key}"] = value
        return toy

    return write


def weights(dicts):
    return {
        (record["image_id"], a["category_id"]): a["foreign_weight"]
        for record in dicts
        for a in record["annotations"]
        if "foreign_segmentation" in a
    }


@pytest.mark.parametrize("wrap", [list, lambda x: {"annotations": x}], ids=["results", "data set"])
def test_objects_without_a_mask_get_that_of_the_file_and_it_counts_as_none(use, wrap, caplog):
    dog = cat(1, id=1)  # has an annotated mask
    cfg = use(wrap([cat(1, 0.5), cat(2), dog]), WEIGHT=0.5, SCORE_POWER=2.0)
    with caplog.at_level(logging.INFO, logger="psis_d2"):
        dicts = get_training_dicts(cfg)
    assert weights(dicts) == {(1, 1): 0.125, (2, 1): 0.5}
    given = dicts[0]["annotations"][1]
    assert np.array_equal(
        mask_util.decode(given["foreign_segmentation"]), mask_util.decode(rle_of(1, 5, 5, 4))
    )
    assert "segmentation" not in given
    assert list(map(list, dicts[0]["annotations"][0]["segmentation"])) == polygon(1, 5)
    assert count_masks(dicts).with_mask == 9
    assert masked_classes(dicts) == {0}
    assert "masks: 9 of 19 instances keep theirs" in caplog.text
    assert "3 of 3 masks fit objects of toy\n" in caplog.text
    assert "2 of 10 instances without an annotated mask learn from one, of weight 0.125 to 0.5" in (
        caplog.text
    )


def test_seen_categories_and_shape_priors_know_annotated_masks_alone(use, toy, make_dataset):
    make_dataset("partial", SIZES, annotations(lambda i: None))
    toy.DATASETS.TRAIN, toy.PSIS.SEEN_CLASSES = ("partial",), "auto"
    toy.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK, toy.PSIS.SHAPEMASK.NUM_PRIORS = True, 1
    before = seen_ids_for(toy), make_shape_priors(toy).provenance["masks_visible"]
    cfg = use([cat(i) for i in SIZES])
    assert len(weights(get_training_dicts(cfg))) == 9
    assert (
        (seen_ids_for(cfg), make_shape_priors(cfg).provenance["masks_visible"])
        == before
        == ([0], 9)
    )


def test_what_does_not_fit_is_counted(use, caplog):
    bad = [
        cat(2, id=77),
        cat(2, image_id=99),
        cat(2, segmentation=rle_of(3, 1, 1)),
        cat(2, segmentation=[[0, 0, 1, 1]]),
        cat(2, score=1.5),
        cat(2, score="high"),
        cat(4, 0.7, segmentation=rle_of(4, 0, 0)),
        cat(5, 0.29),
        # the annotated mask of a cat, which training may not see, in two spellings
        cat(6, segmentation=polygon(10, 5)),
        cat(7, segmentation=rle_of(7, 11, 5)),
    ]
    cfg = use([cat(4, 0.8), *bad, {"id": 8, "image_id": 4, "bbox": [0, 0, 1, 1]}], MIN_SCORE=0.3)
    with caplog.at_level(logging.INFO, logger="psis_d2"):
        dicts = get_training_dicts(cfg)
    assert weights(dicts) == {(4, 1): 1}
    assert dicts[3]["annotations"][1]["foreign_segmentation"] == rle_of(4, 8, 5, 4)
    (line,) = [message for message in caplog.messages if "masks fit" in message]
    assert "1 of 11 masks fit objects of toy; left out: " in line
    for words in (
        "2 of no object of the data",
        "1 of an image of another size",
        "1 malformed or without a pixel",
        "2 with a score that is no number from 0 to 1",
        "1 beside a better one of the same object",
        "1 with a score that is too low",
        "2 the very annotation that training may not see",
    ):
        assert words in line


def test_the_size_of_a_data_sets_image_counts(use):
    images = [{"id": 1, "height": 10, "width": 10}, {"id": 2, "height": 24, "width": 32}]
    entries = [cat(i, segmentation=polygon(5, 5, 4)) for i in (1, 2)]
    assert weights(get_training_dicts(use({"images": images, "annotations": entries}))) == {
        (2, 1): 1
    }


def test_a_file_that_fits_nothing_is_an_error_before_training(use):
    cfg = use([cat(2, id=77), cat(2, segmentation=[[0, 0, 1, 1]])])
    with pytest.raises(UserError, match=r"None of the 2 masks of PSIS.MISSING_MASKS .*masks.json "):
        check_data(cfg)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "as JSON"),
        ('{"images": []}', "has no masks"),
        ("[1]", "has no masks"),
        (None, "exist"),
    ],
)
def test_bad_files_are_one_sentence(use, content, words):
    cfg = use(content or "")
    if content is None:
        cfg.PSIS.MISSING_MASKS = "nowhere.json"
    with pytest.raises(UserError, match=words):
        check_data(cfg)


def test_weight_zero_is_as_if_there_were_none(use, toy):
    none = get_training_dicts(toy)
    assert get_training_dicts(use([cat(1)], WEIGHT=0.0)) == none
    assert get_training_dicts(use([cat(1, 0.0)], WEIGHT=1.0, SCORE_POWER=1.0)) == none


def test_foreign_masks_alone_are_enough_to_train_on_unless_they_weigh_nothing(
    use, toy, make_dataset
):
    bare = [{k: v for k, v in a.items() if k != "segmentation"} for a in annotations()]
    make_dataset("bare", SIZES, bare)
    toy.DATASETS.TRAIN, toy.PSIS.SEEN_CLASSES = ("bare",), "all"
    toy.MODEL.ROI_HEADS.NUM_CLASSES = 3
    check_data(use([cat(1)]))
    with pytest.raises(UserError, match="has a mask that training may see"):
        check_data(use([cat(1)], WEIGHT=0.0))


def test_a_mask_belongs_to_one_of_several_data_sets(use, toy, make_dataset):
    sizes = {i + 100: size for i, size in SIZES.items()}
    moved = [a | {"image_id": a["image_id"] + 100} for a in annotations(lambda i: None)]
    make_dataset("other", sizes, moved)
    toy.DATASETS.TRAIN = ("toy", "other")
    dicts = get_training_dicts(use([cat(2), cat(2, image_id=102)]))
    assert weights(dicts) == {(2, 1): 1, (102, 1): 1}
    make_dataset("twin", SIZES, annotations(lambda i: None))
    toy.DATASETS.TRAIN = ("toy", "twin")
    with pytest.raises(UserError, match="more than one of the data sets toy, twin"):
        get_training_dicts(toy)


def test_ids_in_text_are_those_of_the_json_and_numbers_those_of_results(make_dataset, tmp_path):
    named = [a | {"id": f"object {a['id']}"} for a in annotations(lambda i: None)]
    dicts = get_dataset_dicts(make_dataset("named", SIZES, named))
    path = tmp_path / "masks.json"
    for content in ({"annotations": [cat(3, id="object 6")]}, [cat(3, id=6)]):
        path.write_text(json.dumps(content))
        found = match_masks(read_mask_file(str(path), "KEY"), dicts)
        assert list(found.masks) == [(3, 6)]


def test_the_mapper_draws_them_with_their_weights_beside_annotated_ones(use):
    cfg = use([cat(1, 0.25)], SCORE_POWER=1.0)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (24,), "none"
    dicts = get_training_dicts(cfg)
    instances = PartialMaskMapper(cfg)(dicts[0])["instances"]
    assert instances.gt_has_mask.tolist() == [True, False, False]
    assert instances.gt_mask_weight.tolist() == [1, 0.25, 0]
    assert instances.gt_mask_weight.dtype == torch.float32
    expected = mask_util.decode(rle_of(1, 5, 5, 4))
    assert np.array_equal(instances.gt_masks.tensor[1].numpy(), expected)
    assert not instances.gt_masks.tensor[2].any()
    # a crop without a pixel of it leaves neither mask nor weight
    lost = {**dicts[0]["annotations"][1], "foreign_segmentation": [[50, 50, 60, 50, 60, 60]]}
    instances = PartialMaskMapper(cfg)(dicts[0] | {"annotations": [lost]})["instances"]
    assert instances.gt_mask_weight.tolist() == [0]
    empty = PartialMaskMapper(cfg)(dicts[0] | {"annotations": []})["instances"]
    assert empty.gt_mask_weight.shape == (0,)
    cfg.PSIS.MISSING_MASKS = "none"
    assert not PartialMaskMapper(cfg)(dicts[0])["instances"].has("gt_mask_weight")
