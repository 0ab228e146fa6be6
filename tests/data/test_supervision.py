import copy
import logging

import psis_d2  # noqa: F401  (before detectron2)
from psis_d2.data.supervision import (
    MaskCounts,
    clean_annotations,
    count_masks,
    masked_classes,
    match_image_list,
    read_image_list,
    restrict_masks,
    select_images,
    usable_segmentation,
)
from psis_d2.errors import UserError

import numpy as np
import pytest
from pycocotools import mask as mask_util

HEIGHT, WIDTH = 6, 8
TRIANGLE = [1, 1, 5, 1, 3, 4]
SQUARE = [2.0, 2.0, 4.0, 2.0, 4.0, 4.0, 2.0, 4.0]


def rle_of(mask):
    """Compressed RLE, counts as text."""
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def a_mask():
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:4, 3:6] = 1
    return mask


# Down the columns: 3 columns of 6 and 2 more pixels off, then 2 on and 4 off, three times.
UNCOMPRESSED = {"size": [HEIGHT, WIDTH], "counts": [20, 2, 4, 2, 4, 2, 14]}

USABLE = {
    "polygon": [TRIANGLE],
    "two polygons": [TRIANGLE, SQUARE],
    "bad polygon beside a good one": [[1, 1, 2, 2], SQUARE],
    "polygon a little outside": [[-3, -3, 12, -3, 12, 9]],
    "polygon as array": [np.array(SQUARE)],
    "numbers of numpy": [[np.float32(v) for v in TRIANGLE]],
    "compressed RLE": rle_of(a_mask()),
    "compressed RLE, bytes": {**rle_of(a_mask()), "counts": rle_of(a_mask())["counts"].encode()},
    "uncompressed RLE": UNCOMPRESSED,
    "RLE of float runs": {"size": [6.0, 8.0], "counts": [20.0, 2.0, 4.0, 2.0, 4.0, 2.0, 14.0]},
    "RLE of arrays": {"size": np.array([6, 8]), "counts": np.array([20, 2, 26])},
    "flat polygon": TRIANGLE,
    "flat array": np.array(TRIANGLE),
    "point pairs": [[1, 1], [5, 1], [3, 4]],
    "nested point pairs": [[[1, 1], [5, 1], [3, 4]]],
    "array of points": [np.array([[1, 1], [5, 1], [3, 4]])],
    "mask as array": a_mask(),
    "size as tuple": {**UNCOMPRESSED, "size": (HEIGHT, WIDTH)},
}

ABSENT = {
    "null": None,
    "empty list": [],
    "list of an empty list": [[]],
    "empty dict": {},
    "empty text": "",
}

BAD = {
    "two points": [[1, 1, 4, 4]],
    "box as flat list": [1, 1, 3, 3],
    "odd length": [[1, 1, 5, 1, 3, 4, 2]],
    "text numbers": [["1", "1", "5", "1", "3", "4"]],
    "null in polygon": [[1, 1, 5, None, 3, 4]],
    "booleans": [[True, False, True, True, False, True]],
    "nan first": [[float("nan"), 1, 5, 1, 3, 4]],
    "nan last": [[1, 1, 5, 1, 3, float("nan")]],
    "infinite": [[1, 1, 5, 1, float("inf"), 4]],
    "both infinities": [[1, 1, float("-inf"), 1, float("inf"), 4]],
    "a line": [[1, 1, 3, 1, 5, 1]],
    "a point": [[2, 2, 2, 2, 2, 2]],
    "wholly outside": [[-9, -9, -3, -9, -3, -4]],
    "two pairs": [[1, 1], [4, 4]],
    "RLE of half runs": {"size": [HEIGHT, WIDTH], "counts": [20.5, 2, 25.5]},
    "mask of another size": np.ones((HEIGHT + 1, WIDTH), np.uint8),
    "empty mask as array": np.zeros((HEIGHT, WIDTH), bool),
    "mask of labels": np.full((HEIGHT, WIDTH), 7),
    "absurdly far": [[1, 1, 1e9, 1, 3, 4]],
    "text": "1,1,5,1,3,4",
    "number": 7,
    "RLE without counts": {"size": [HEIGHT, WIDTH]},
    "RLE without size": {"counts": [20, 2, 26]},
    "RLE of another size": {**UNCOMPRESSED, "size": [WIDTH, HEIGHT]},
    "RLE too short": {"size": [HEIGHT, WIDTH], "counts": [20, 2]},
    "RLE too long": {"size": [HEIGHT, WIDTH], "counts": [20, 2, 27]},
    "RLE of negative run": {"size": [HEIGHT, WIDTH], "counts": [50, -2]},
    "RLE of text runs": {"size": [HEIGHT, WIDTH], "counts": ["20", "28"]},
    "RLE of no pixel": {"size": [HEIGHT, WIDTH], "counts": [48]},
    "compressed RLE of no pixel": rle_of(np.zeros((HEIGHT, WIDTH))),
    "compressed RLE of another size": rle_of(np.ones((WIDTH, HEIGHT))),
    "compressed RLE cut off": {**rle_of(a_mask()), "counts": rle_of(a_mask())["counts"][:-1]},
    "compressed RLE with more": {**rle_of(a_mask()), "counts": rle_of(a_mask())["counts"] + "2"},
    "compressed RLE unfinished": {"size": [HEIGHT, WIDTH], "counts": "d1d"},
    "compressed RLE of foreign letters": {"size": [HEIGHT, WIDTH], "counts": "µ ü"},
    "compressed RLE, empty": {"size": [HEIGHT, WIDTH], "counts": ""},
    "compressed RLE, huge number": {"size": [HEIGHT, WIDTH], "counts": "o" * 40 + "0"},
    "RLE counts of another type": {"size": [HEIGHT, WIDTH], "counts": 48},
}


@pytest.mark.parametrize("name", USABLE)
def test_usable(name):
    assert usable_segmentation(USABLE[name], HEIGHT, WIDTH)


@pytest.mark.parametrize("name", [*ABSENT, *BAD])
def test_unusable(name):
    assert not usable_segmentation({**ABSENT, **BAD}[name], HEIGHT, WIDTH)


@pytest.mark.parametrize("seed", range(5))
def test_rle_of_any_mask_is_usable_and_one_wrong_run_is_noticed(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 90, 2)
    # Blobs of very different sizes give runs from 1 to thousands, and negative differences.
    mask = np.kron(rng.random((7, 5)) < 0.4, np.ones((height, width))) > 0
    mask &= rng.random(mask.shape) < (1 if seed % 2 else 0.97)
    rle = rle_of(mask)
    assert mask.any() and usable_segmentation(rle, *mask.shape)
    assert not usable_segmentation(rle, mask.shape[0], mask.shape[1] + 1)
    runs = uncompressed(mask)
    assert usable_segmentation(runs, *mask.shape)
    assert not usable_segmentation({**runs, "counts": runs["counts"] + [1]}, *mask.shape)


def uncompressed(mask):
    """Uncompressed RLE, run by run."""
    counts, value = [0], 0
    for pixel in mask.flatten(order="F"):
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def record(*segmentations, image_id=1, **more):
    """A dataset dict; the marker ``missing`` stands for an annotation without the key."""
    annotations = []
    for number, segmentation in enumerate(segmentations):
        annotation = {
            "id": number + 1,
            "bbox": [1.0 + number, 1.0, 4.0, 3.0],
            "category_id": number,
            "iscrowd": 0,
            "segmentation": segmentation,
        }
        if isinstance(segmentation, str) and segmentation == "missing":
            del annotation["segmentation"]
        annotations.append(annotation)
    return {
        "file_name": f"images/{image_id}.png",
        "image_id": image_id,
        "height": HEIGHT,
        "width": WIDTH,
        "annotations": annotations,
        **more,
    }


def keys(dicts):
    return [["segmentation" in a for a in r["annotations"]] for r in dicts]


@pytest.mark.parametrize("name", [*ABSENT, *BAD, "missing"])
def test_cleaning_takes_the_key_and_never_the_box(name):
    value = {**ABSENT, **BAD, "missing": "missing"}[name]
    dicts = [record(value, [TRIANGLE])]
    clean_annotations(dicts)
    without_mask, _ = record("missing", [TRIANGLE])["annotations"]
    assert dicts[0]["annotations"] == [without_mask, record(0, [TRIANGLE])["annotations"][1]]


def test_cleaning_keeps_the_good_polygons():
    dicts = [record([[1, 1, 2, 2], TRIANGLE, [], [9, 9, 9], SQUARE])]
    counts = clean_annotations(dicts)
    assert dicts[0]["annotations"][0]["segmentation"] == [TRIANGLE, SQUARE]
    assert counts == MaskCounts(instances=1, with_mask=1, bad_masks=0, bad_polygons=2)


@pytest.mark.parametrize(
    "name", ["compressed RLE", "compressed RLE, bytes", "uncompressed RLE", "size as tuple"]
)
def test_cleaning_leaves_an_rle_that_decodes_to_the_mask(name):
    dicts = [record(USABLE[name])]
    clean_annotations(dicts)
    decoded = mask_util.decode(dicts[0]["annotations"][0]["segmentation"])
    np.testing.assert_array_equal(decoded, a_mask())


def test_counts_and_the_log_line(caplog):
    crowd = record([TRIANGLE], [[1, 1]])
    for annotation in crowd["annotations"]:
        annotation["iscrowd"] = 1
    dicts = [record([TRIANGLE], [[1, 1, 2, 2]], None, "missing", []), crowd]
    with caplog.at_level(logging.INFO, logger="psis_d2"):
        counts = clean_annotations(dicts)
    assert counts == MaskCounts(instances=5, with_mask=1, bad_masks=1, bad_polygons=0, crowds=2)
    assert counts.without_mask == 4
    assert keys(dicts) == [[True, False, False, False, False], [True, False]]
    (line,) = caplog.messages
    assert "5 instances, 1 with a mask, 4 with a box only, and 2 crowd regions; 1 masks are" in line
    assert count_masks(dicts) == MaskCounts(instances=5, with_mask=1)
    assert masked_classes(dicts) == {0}


def test_box_only_image_loses_all_masks_and_the_flag():
    dicts = [record([TRIANGLE], UNCOMPRESSED, box_only=True), record([TRIANGLE], box_only=False)]
    counts = clean_annotations(dicts)
    assert dicts == [record("missing", "missing"), record([TRIANGLE])]
    assert counts.bad_masks == 0


def test_image_without_annotations():
    bare = {"image_id": 1, "height": 2, "width": 2}
    assert clean_annotations([dict(bare)]) == MaskCounts()


@pytest.mark.parametrize("garbage", [BAD["two points"], [SQUARE], UNCOMPRESSED, None])
def test_restricted_masks_look_like_masks_that_never_were(garbage):
    simulated = [record([TRIANGLE], garbage, [SQUARE])]
    real = [record([TRIANGLE], "missing", [SQUARE])]
    for dicts in (simulated, real):
        clean_annotations(dicts)
        restrict_masks(dicts, seen_ids=[0, 2])
    assert simulated == real == [record([TRIANGLE], "missing", [SQUARE])]


def test_restricting_by_image_and_by_both():
    dicts = [record([TRIANGLE], [SQUARE], image_id=i) for i in (1, 2)]
    by_image, by_both, by_none = (copy.deepcopy(dicts) for _ in range(3))
    restrict_masks(by_image, keep_images={2})
    assert keys(by_image) == [[False, False], [True, True]]
    restrict_masks(by_both, seen_ids=[1], keep_images={2})
    assert keys(by_both) == [[False, False], [False, True]]
    restrict_masks(by_none)
    assert by_none == dicts


def test_no_seen_category_leaves_no_mask():
    dicts = [record([TRIANGLE], [SQUARE])]
    restrict_masks(dicts, seen_ids=[])
    assert keys(dicts) == [[False, False]]


def test_fractions_are_nested_and_do_not_depend_on_the_order():
    ids = list(range(100))
    chosen = [select_images(ids, f, seed=4, key="F") for f in (0, 0.1, 0.25, 0.5, 1.0)]
    assert [len(images) for images in chosen] == [0, 10, 25, 50, 100]
    assert all(a < b for a, b in zip(chosen, chosen[1:], strict=False))
    assert select_images(ids[::-1] + ids, 0.25, seed=4, key="F") == chosen[2]
    assert select_images(ids, 0.25, seed=5, key="F") != chosen[2]


def test_fraction_rounds_to_the_nearest():
    assert [len(select_images(range(3), f, 0, "F")) for f in (0.1, 0.4, 0.5, 0.9)] == [0, 1, 2, 3]


@pytest.mark.parametrize("fraction", [-0.1, 1.01, float("nan")])
def test_fraction_out_of_range(fraction):
    with pytest.raises(UserError, match="MASK_IMAGES is .* between 0 and 1"):
        select_images([1], fraction, 0, "MASK_IMAGES")


def test_image_list(tmp_path):
    path = tmp_path / "images.txt"
    path.write_text("# masks drawn in May\n12\n\n a.png \ntrain/b.png\nlost.png\n")
    entries = read_image_list(str(path))
    assert entries == {"12", "a.png", "train/b.png", "lost.png"}
    dicts = [
        {"image_id": 12, "file_name": "root/train/x.png"},
        {"image_id": 1, "file_name": "root/train/a.png"},
        {"image_id": 2, "file_name": "root/train/b.png"},
        {"image_id": 3, "file_name": "root/val/b.png"},
        {"image_id": 120, "file_name": "root/train/aa.png"},
    ]
    assert match_image_list(dicts, entries) == ({12, 1, 2}, {"lost.png"})


def test_image_list_errors(tmp_path):
    with pytest.raises(UserError, match="missing.txt does not exist"):
        read_image_list(str(tmp_path / "missing.txt"))
    empty = tmp_path / "empty.txt"
    empty.write_text("\n# none\n")
    with pytest.raises(UserError, match="empty.txt names no image"):
        read_image_list(str(empty))
    binary = tmp_path / "list.zip"
    binary.write_bytes(b"PK\xff\xfe")
    with pytest.raises(UserError, match="Cannot read the image list"):
        read_image_list(str(binary))
