"""Masks of the whole image: where their cells lie in the output."""

import psis_d2  # noqa: F401
from psis_d2.modeling.image_masks import ImageMasks

import torch
import torch.nn.functional as F
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances


def test_the_same_size_is_bilinear_upsampling():
    torch.manual_seed(0)
    soft = torch.rand(20, 6, 8)  # of a padded image of 24 x 32
    masks = ImageMasks(soft, 4, (21, 30)).to_bitmasks(None, 21, 30).tensor
    expected = F.interpolate(soft[None], scale_factor=4, mode="bilinear")[0, :, :21, :30] >= 0.5
    agree = masks == expected
    assert agree.float().mean() > 0.9999  # a value at the threshold may round either way
    assert 0.2 < masks.float().mean() < 0.8


def test_cells_keep_their_place_in_any_output_size():
    soft = torch.zeros(1, 4, 4)
    soft[0, 1, 2] = 1.0  # of the input's rows 4 to 8, columns 8 to 12
    for height, width in ((12, 15), (24, 30), (6, 45)):
        mask = ImageMasks(soft, 4, (12, 15)).to_bitmasks(None, height, width).tensor[0]
        y, x = (c.float() + 0.5 for c in mask.nonzero(as_tuple=True))
        assert abs(y.mean().item() * 12 / height - 6) < 0.6
        assert abs(x.mean().item() * 15 / width - 10) < 0.6


def test_through_detectron2s_postprocessing():
    soft = torch.stack([torch.ones(4, 4), torch.zeros(4, 4), torch.eye(4)])
    instances = Instances((16, 12))
    boxes = torch.tensor([[0.0, 0, 4, 4], [30, 30, 40, 40], [2, 2, 9, 9]])
    instances.pred_boxes = Boxes(boxes)  # the second is outside of the image
    instances.pred_masks = ImageMasks(soft, 4, (16, 12)).to("cpu")
    found = detector_postprocess(instances, 32, 24)
    assert found.pred_masks.shape == (2, 32, 24)
    assert found.pred_masks[0].all()  # beyond its box
    assert found.pred_masks[1, 3, 3]
    assert not found.pred_masks[1, 3, 20]


def test_no_mask():
    masks = ImageMasks(torch.zeros(0, 4, 4), 4, (16, 12)).to_bitmasks(None, 32, 24)
    assert masks.tensor.shape == (0, 32, 24)
