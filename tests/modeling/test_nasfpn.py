"""NAS-FPN: strides and channels, merging cells by hand, export."""

import psis_d2.modeling  # noqa: F401
from psis_d2.errors import UserError
from psis_d2.modeling.nasfpn import CELLS, LEVELS, NASFPN, MergingCells, merge, resample

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_backbone

from model_builders import partial_batch, tiny_config, tiny_model, training_losses

NARROW = (
    *("MODEL.BACKBONE.NAME", "build_resnet_nasfpn_backbone", "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.STEM_OUT_CHANNELS", 4, "MODEL.RESNETS.NORM", "BN"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.FPN.OUT_CHANNELS", 64, "PSIS.NASFPN.REPEATS", 1, "MODEL.DEVICE", "cpu"),
)


def backbone(*keys):
    torch.manual_seed(0)
    return build_backbone(tiny_config(*NARROW, *keys, config="shapemask_R101_NASFPN.yaml"))


def test_strides_and_channels_are_as_declared():
    model = backbone()
    assert model.size_divisibility == 128
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 256, 128))
    assert list(maps) == list(model.output_shape()) == ["p3", "p4", "p5", "p6", "p7"]
    for name, shape in model.output_shape().items():
        stride = 2 ** int(name[1])
        assert shape.stride == stride
        assert shape.channels == 64
        assert maps[name].shape == (1, 64, 256 // stride, 128 // stride)


def test_resample():
    x = torch.arange(8.0).view(1, 1, 2, 4)
    assert resample(x, (1, 2)).tolist() == [[[[5, 7]]]]  # the maximum of 2 x 2
    assert resample(x, (4, 8))[0, 0, :2, :4].tolist() == [[0, 0, 1, 1]] * 2
    assert resample(x, (2, 4)) is x


def test_merging_by_hand():
    fine = torch.tensor([[[[1.0, 2], [3, 4]], [[1, 1], [1, 1]]]])
    coarse = torch.tensor([[[[0.0, -1], [-2, -3]], [[30, 0], [0, 0]]]])
    assert torch.equal(merge("sum", fine, coarse), fine + coarse)
    found = merge("attention", fine, coarse)
    # largest values 0 and 30: half of the fine channel, all of it
    assert found[0, 0].tolist() == [[0.5, 0], [-0.5, -1]]
    torch.testing.assert_close(found[0, 1], torch.tensor([[31.0, 1], [1, 1]]))


def test_the_table_is_complete():
    """Five outputs, every incoming level used, a fine and a coarse input, in this order."""
    known = {f"p{level}": level for level in LEVELS}
    used = set()
    for cell in CELLS:
        fine, coarse = cell.inputs
        assert known[fine] <= known[coarse]  # a KeyError: used before it was made
        used |= {*cell.inputs, cell.also}
        assert not cell.also or known[cell.also] == cell.level
        known[cell.name] = cell.level
    outputs = {f"p{level}_out" for level in LEVELS}
    assert len(CELLS) == 7
    assert outputs <= known.keys()
    assert used - {""} == known.keys() - {"p6_out"}  # the last one is an output alone


def test_cells_against_their_definition():
    """The paper's architecture, written out."""
    torch.manual_seed(0)
    cells = MergingCells(4, "").double()
    p3, p4, p5, p6, p7 = (torch.randn(1, 4, 2**k, 2**k).double() for k in (5, 4, 3, 2, 1))

    def up(x, times):
        return x.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)

    def down(x, times):
        return x.unfold(2, times, times).unfold(3, times, times).amax(dim=(4, 5))

    def attend(coarse, fine):
        return coarse + fine * coarse.flatten(2).max(dim=2).values.sigmoid()[..., None, None]

    def out(name, x):
        return cells.convs[name](x.relu())

    first = out("p4_first", attend(up(p6, 4), p4))
    second = out("p4_second", p4 + first)
    p3_out = out("p3_out", p3 + up(second, 2))
    p4_out = out("p4_out", second + down(p3_out, 2))
    p5_out = out("p5_out", attend(down(p4_out, 2), down(p3_out, 4)) + p5)
    p7_out = out("p7_out", attend(down(p5_out, 4), down(second, 8)) + p7)
    p6_out = out("p6_out", attend(up(p7_out, 2), down(p5_out, 2)))
    with torch.no_grad():
        found = cells({"p3": p3, "p4": p4, "p5": p5, "p6": p6, "p7": p7})
    for name, expected in zip(
        ("p3", "p4", "p5", "p6", "p7"), (p3_out, p4_out, p5_out, p6_out, p7_out), strict=True
    ):
        torch.testing.assert_close(found[name], expected)


def test_trains_in_front_of_a_detector():
    keys = ("MODEL.ROI_HEADS.NUM_CLASSES", 20, "MODEL.WEIGHTS", "")
    keys += ("PSIS.SHAPEMASK.SHAPE_PRIOR", False, "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 8)
    model = tiny_model(*NARROW, *keys, config="shapemask_R101_NASFPN.yaml")
    # P7 is one cell of such images: batch norm needs two of them.
    losses = training_losses(model, partial_batch([[True, False], [True]]))
    sum(losses.values()).backward()
    for name, parameter in model.backbone.named_parameters():
        # the classifier's levels are all in use, the mask's are what the boxes need
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


class ThreeMaps(Backbone):
    """Three strided convolutions for a bottom-up network."""

    def __init__(self):
        super().__init__()
        self.convs = torch.nn.ModuleList(torch.nn.Conv2d(3, 4, 1, stride=s) for s in (8, 16, 32))

    def output_shape(self):
        return {f"c{s}": ShapeSpec(channels=4, stride=s) for s in (8, 16, 32)}

    def forward(self, x):
        return {f"c{conv.stride[0]}": conv(x) for conv in self.convs}


def test_exports():
    model = NASFPN(ThreeMaps(), ["c8", "c16", "c32"], channels=4, norm="", repeats=2).eval()
    images = torch.randn(1, 3, 128, 128)
    program = torch.export.export(model, (images,))
    with torch.no_grad():
        expected, found = model(images), program.module()(images)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_other_features_are_refused():
    with pytest.raises(UserError, match=r"takes \[res3, res4, res5\]"):
        backbone("MODEL.FPN.IN_FEATURES", ["res4", "res5"])
    with pytest.raises(UserError, match="REPEATS 0"):
        backbone("PSIS.NASFPN.REPEATS", 0)
