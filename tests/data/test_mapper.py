import copy
import itertools
import random

import psis_d2  # noqa: F401  (before detectron2)
from psis_d2.data.mapper import PartialMaskMapper
from psis_d2.data.supervision import clean_annotations
from psis_d2.errors import UserError

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_util

HEIGHT, WIDTH = 24, 32
SQUARE = [4, 4, 12, 4, 12, 12, 4, 12]


def block(top, left, height=8, width=8):
    """A filled rectangle as a mask of the image."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


def rle(mask, compressed=True):
    packed = mask_util.encode(np.asfortranarray(mask))
    packed["counts"] = packed["counts"].decode()
    if compressed:
        return packed
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    return {
        "size": [HEIGHT, WIDTH],
        "counts": np.diff([0, *edges, flat.size]).tolist(),
    }


# Every spelling, with the mask that it means or None.
SPELLINGS = {
    "missing": (..., None),
    "null": (None, None),
    "empty": ([], None),
    "two points": ([[4, 4, 12, 12]], None),
    "polygon": ([SQUARE], block(4, 4)),
    "RLE": (rle(block(10, 14)), block(10, 14)),
    "uncompressed RLE": (rle(block(2, 20), compressed=False), block(2, 20)),
}


@pytest.fixture
def sample(tmp_path):
    """Write a noise image; return a function that makes a cleaned dataset dict of it."""
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)

    def make(*segmentations, boxes=None, crowd=()):
        annotations = []
        for number, segmentation in enumerate(segmentations):
            annotation = {
                "id": 100 + number,
                "bbox": boxes[number] if boxes else [float(number), 4.0, 8.0, 8.0],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": number,
                "iscrowd": int(number in crowd),
            }
            if segmentation is not ...:
                annotation["segmentation"] = copy.deepcopy(segmentation)
            annotations.append(annotation)
        record = {
            "file_name": str(path),
            "height": HEIGHT,
            "width": WIDTH,
            "image_id": 7,
            "annotations": annotations,
        }
        clean_annotations([record])
        return record

    return make


def mapper(*augmentations, is_train=True, **options):
    return PartialMaskMapper(
        is_train, augmentations=list(augmentations), image_format="BGR", **options
    )


@pytest.mark.parametrize("first", SPELLINGS)
def test_every_spelling_mixed_in_one_image_with_each_of_them_first(sample, first):
    others = [name for name in SPELLINGS if name != first]
    for rest in (others, others[::-1]):
        names = [first, *rest]
        instances = mapper()(sample(*(SPELLINGS[name][0] for name in names)))["instances"]
        assert_masks(instances, [SPELLINGS[name][1] for name in names])


@pytest.mark.parametrize(
    "names", list(itertools.permutations(["missing", "polygon", "RLE"])), ids=" then ".join
)
def test_orders_of_missing_polygon_and_rle(sample, names):
    instances = mapper()(sample(*(SPELLINGS[name][0] for name in names)))["instances"]
    assert_masks(instances, [SPELLINGS[name][1] for name in names])
    assert instances.gt_classes.tolist() == [0, 1, 2]
    assert instances.gt_boxes.tensor.tolist() == [[i, 4, i + 8, 12] for i in range(3)]


def assert_masks(instances, expected):
    assert instances.gt_has_mask.dtype == torch.bool
    assert instances.gt_masks.tensor.dtype == torch.bool
    assert instances.gt_has_mask.tolist() == [mask is not None for mask in expected]
    blank = np.zeros((HEIGHT, WIDTH), np.uint8)
    wanted = np.stack([blank if mask is None else mask for mask in expected])
    np.testing.assert_array_equal(instances.gt_masks.tensor.numpy(), wanted)


def test_output_of_training(sample):
    record = sample([SQUARE], ...)
    before = copy.deepcopy(record)
    output = mapper()(record)
    assert record == before
    assert set(output) == {"image", "height", "width", "file_name", "image_id", "instances"}
    assert (output["height"], output["width"], output["image_id"]) == (HEIGHT, WIDTH, 7)
    pixels = np.asarray(Image.open(record["file_name"]))
    assert output["image"].dtype == torch.uint8
    np.testing.assert_array_equal(output["image"].numpy(), pixels[:, :, ::-1].transpose(2, 0, 1))
    assert set(output["instances"].get_fields()) == {
        *("gt_boxes", "gt_classes", "gt_masks", "gt_has_mask")
    }


@pytest.mark.parametrize("seed", range(3))
def test_same_as_detectron2_where_every_instance_has_a_mask(sample, cfg, seed):
    cfg.INPUT.MASK_FORMAT = "bitmask"
    polygon = [3.3, 2.2, 17.5, 5.1, 11.9, 20.4]
    record = sample([polygon], rle(block(10, 14)), [SQUARE, polygon])
    outputs = []
    for kind in (PartialMaskMapper, DatasetMapper):
        np.random.seed(seed)
        outputs.append(kind(cfg, True)(copy.deepcopy(record)))
    ours, theirs = outputs
    assert torch.equal(ours["image"], theirs["image"])
    assert ours["instances"].gt_has_mask.all()
    for field in ("gt_boxes", "gt_masks"):
        mine, other = (output["instances"].get(field).tensor for output in outputs)
        assert torch.equal(mine, other.to(mine.dtype)), field
    assert torch.equal(ours["instances"].gt_classes, theirs["instances"].gt_classes)


@pytest.mark.parametrize(("horizontal", "axis"), [(True, 2), (False, 1)])
def test_a_flip_flips_image_masks_and_boxes_alike(sample, horizontal, axis):
    record = sample(
        ..., [SQUARE], rle(block(10, 14)), boxes=[[1, 2, 3, 4], [4, 4, 8, 8], [14, 10, 8, 8]]
    )
    plain = mapper()(record)
    flip = T.RandomFlip(prob=1.0, horizontal=horizontal, vertical=not horizontal)
    flipped = mapper(flip)(record)
    assert torch.equal(flipped["image"], plain["image"].flip(axis))
    before, after = plain["instances"], flipped["instances"]
    assert torch.equal(after.gt_masks.tensor, before.gt_masks.tensor.flip(axis))
    assert after.gt_has_mask.tolist() == [False, True, True]
    first = [WIDTH - 4, 2, WIDTH - 1, 6] if horizontal else [1, HEIGHT - 6, 4, HEIGHT - 2]
    assert after.gt_boxes.tensor[0].tolist() == first
    # The tight boxes of the flipped masks are the flipped boxes, which were tight.
    assert torch.equal(after.gt_masks.get_bounding_boxes().tensor[1:], after.gt_boxes.tensor[1:])


class Crop(T.Augmentation):
    """A fixed crop."""

    def __init__(self, left, top, width, height):
        super().__init__()
        self.region = (left, top, width, height)

    def get_transform(self, image):
        return T.CropTransform(*self.region)


@pytest.mark.parametrize("compressed", [None, True, False], ids=["polygon", "RLE", "plain RLE"])
@pytest.mark.parametrize("region", [(0, 0, 10, 10), (6, 2, 20, 20), (5, 6, 4, 4), (8, 8, 24, 16)])
def test_a_crop_of_the_mask_is_the_mask_of_the_crop(sample, compressed, region):
    segmentation = [SQUARE] if compressed is None else rle(block(4, 4), compressed)
    output = mapper(Crop(*region))(sample(segmentation, boxes=[[4, 4, 8, 8]]))
    left, top, width, height = region
    wanted = block(4, 4)[top : top + height, left : left + width]
    np.testing.assert_array_equal(output["instances"].gt_masks.tensor[0].numpy(), wanted)


def test_a_mask_lost_in_a_crop_costs_the_mask_and_not_the_instance(sample):
    # The box is wider than its mask, and the crop shows a part of the box without any mask.
    record = sample([SQUARE], [SQUARE], boxes=[[4, 4, 20, 8], [4, 4, 8, 8]])
    instances = mapper(Crop(14, 0, 18, 24))(record)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[0, 4, 10, 12]]
    assert instances.gt_classes.tolist() == [0]
    assert instances.gt_has_mask.tolist() == [False]
    assert not instances.gt_masks.tensor.any()


@pytest.mark.parametrize("garbage", [..., [[0, 0, 2, 0, 2, 2]], rle(block(0, 0, 24, 32))])
def test_no_mask_moves_or_removes_a_box(sample, cfg, garbage):
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.SIZE = [0.5, 0.5]
    outputs = []
    for first in ([SQUARE], garbage):
        record = sample(first, [SQUARE], boxes=[[2, 3, 25, 19], [4, 4, 8, 8]])
        np.random.seed(3)
        outputs.append(PartialMaskMapper(cfg, is_train=True)(record))
    one, other = (output["instances"] for output in outputs)
    assert torch.equal(one.gt_boxes.tensor, other.gt_boxes.tensor)
    assert torch.equal(one.gt_classes, other.gt_classes)
    assert torch.equal(outputs[0]["image"], outputs[1]["image"])


def test_crop_and_flip_of_the_config_are_used_in_training_only(cfg):
    cfg.INPUT.CROP.ENABLED = True

    def kinds(is_train):
        augmentations = PartialMaskMapper(cfg, is_train=is_train).augmentations.augs
        return [type(augmentation) for augmentation in augmentations]

    assert kinds(True) == [T.RandomCrop, T.ResizeShortestEdge, T.RandomFlip]
    assert kinds(False) == [T.ResizeShortestEdge]
    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.RANDOM_FLIP = "none"
    assert kinds(True) == [T.ResizeShortestEdge]


def test_crowd_regions_are_left_out(sample):
    record = sample([SQUARE], [SQUARE], ..., crowd=(0,))
    training = mapper()(record)["instances"]
    assert training.gt_classes.tolist() == [1, 2]
    assert training.gt_has_mask.tolist() == [True, False]
    testing = mapper(is_train=False, with_boxes=True)(record)["instances"]
    assert testing.gt_ids.tolist() == [101, 102]


@pytest.mark.parametrize("crowd", [(), (0,)])
def test_image_without_instances(sample, crowd):
    record = sample(*[[SQUARE]] * len(crowd), crowd=crowd)
    instances = mapper(T.RandomFlip())(record)["instances"]
    assert len(instances) == 0
    assert instances.gt_masks.tensor.shape == (0, HEIGHT, WIDTH)
    assert instances.gt_has_mask.shape == (0,) and instances.gt_boxes.tensor.shape == (0, 4)
    assert len(mapper(is_train=False, with_boxes=True)(record)["instances"].gt_ids) == 0


def test_test_samples(sample, cfg):
    record = sample([SQUARE], ...)
    output = PartialMaskMapper(cfg, is_train=False)(record)
    assert set(output) == {"image", "height", "width", "file_name", "image_id"}
    assert (output["height"], output["width"]) == (HEIGHT, WIDTH)
    # The shorter side, 24, becomes 32.
    assert output["image"].shape == (3, 32, 43)


def test_test_samples_with_boxes_in_the_resized_frame(sample, cfg):
    record = sample([SQUARE], ..., boxes=[[6, 3, 12, 9], [0, 0, 32, 24]])
    instances = PartialMaskMapper(cfg, is_train=False, with_boxes=True)(record)["instances"]
    assert instances.image_size == (32, 43)
    wanted = torch.tensor([[6 * 43 / 32, 4, 18 * 43 / 32, 16], [0, 0, 43, 32]])
    torch.testing.assert_close(instances.gt_boxes.tensor, wanted)
    assert instances.gt_ids.dtype == torch.int64 and instances.gt_ids.tolist() == [100, 101]
    assert instances.gt_classes.tolist() == [0, 1]
    assert not instances.has("gt_masks")


def test_without_a_mask_branch_no_mask_is_drawn(sample, cfg):
    cfg.MODEL.MASK_ON = False
    instances = PartialMaskMapper(cfg, is_train=True)(sample([SQUARE]))["instances"]
    assert set(instances.get_fields()) == {"gt_boxes", "gt_classes"}


def test_boxes_of_other_modes(sample):
    record = sample(...)
    record["annotations"][0].update(bbox=[1, 2, 5, 9], bbox_mode=BoxMode.XYXY_ABS)
    assert mapper()(record)["instances"].gt_boxes.tensor.tolist() == [[1, 2, 5, 9]]


def test_gray_image_and_image_format(sample, tmp_path):
    record = sample(...)
    gray = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
    Image.fromarray(gray).save(record["file_name"])
    image = PartialMaskMapper(True, augmentations=[], image_format="RGB")(record)["image"]
    np.testing.assert_array_equal(image.numpy(), np.stack([gray] * 3))


def test_missing_image(sample):
    record = sample(...)
    record["file_name"] += ".lost"
    with pytest.raises(UserError, match=r"Cannot read the image .*image.png.lost \(FileNotFound"):
        mapper()(record)


@pytest.mark.parametrize("damage", ["not an image", "cut off", "empty"])
def test_unreadable_image(sample, damage):
    record = sample(...)
    path = record["file_name"]
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write({"not an image": b"hello", "cut off": content[:300], "empty": b""}[damage])
    with pytest.raises(UserError, match="Cannot read the image .*image.png") as caught:
        mapper()(record)
    assert "\n" not in str(caught.value)


def test_image_of_another_size(sample):
    record = {**sample(...), "width": 99}
    with pytest.raises(UserError, match="image.png is 32 x 24 pixels, but .* say 99 x 24"):
        mapper()(record)


def test_image_turned_by_exif(sample):
    record = sample(...)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(record["file_name"]).save(record["file_name"], exif=exif)
    with pytest.raises(UserError, match="is 24 x 32 pixels .*EXIF.*say 32 x 24"):
        mapper()(record)


def test_without_augmentations_no_random_number_is_drawn(sample):
    before = random.getstate(), np.random.get_state()[1:3], torch.get_rng_state()
    mapper()(sample([SQUARE], ..., rle(block(1, 1))))
    assert random.getstate() == before[0]
    np.testing.assert_equal(np.random.get_state()[1:3], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])
