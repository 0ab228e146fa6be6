"""Kept feature maps: those of the image alone, computed once, never those of other weights."""

from psis_d2.errors import UserError
from psis_d2.modeling.kept_features import keep_features

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import nn


class Net(Backbone):
    """Two maps, of stride 2 and 4; a bias, so that padding does not stay zero."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 2, 3, stride=2, padding=1)
        self.second = nn.Conv2d(2, 5, 3, stride=2, padding=1)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        a = self.first(x)
        return {"a": a, "b": self.second(a)}

    @property
    def size_divisibility(self):
        return 4

    def output_shape(self):
        return {"a": ShapeSpec(channels=2, stride=2), "b": ShapeSpec(channels=5, stride=4)}


def frozen() -> Net:
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


def padded(image, height, width):
    out = torch.zeros(3, height, width)
    out[:, : image.shape[1], : image.shape[2]] = image
    return out


def test_features_are_those_of_the_image_alone_and_are_computed_once(tmp_path):
    net, plain = frozen(), frozen()
    keep_features(net, str(tmp_path))
    small, large = torch.rand(3, 6, 8) + 0.1, torch.rand(3, 12, 16) + 0.1
    found = net(torch.stack([padded(small, 12, 16), large]))
    assert net.calls == 2 and {k: tuple(v.shape) for k, v in found.items()} == {
        "a": (2, 2, 6, 8),
        "b": (2, 5, 3, 4),
    }
    alone = plain(padded(small, 8, 8)[None])  # 6 rows are a multiple of 4 only when padded to 8
    assert torch.equal(found["a"][0, :, :4, :4], alone["a"][0])
    assert found["a"][0, :, 4:].abs().sum() == 0 == found["b"][0, :, :, 2:].abs().sum()
    assert torch.equal(found["b"][1], plain(large[None])["b"][0])

    again = net(padded(small, 16, 8)[None])
    assert net.calls == 2
    assert torch.equal(again["b"][0, :, :2, :2], found["b"][0, :, :2, :2])


def test_other_weights_have_other_features(tmp_path):
    image = torch.rand(1, 3, 8, 8) + 0.1
    first = frozen()
    keep_features(first, str(tmp_path))
    before = first(image)
    second = frozen()
    nn.init.ones_(second.second.bias)  # as if a checkpoint were loaded after keep_features
    keep_features(second, str(tmp_path))
    after = second(image)
    assert second.calls == 1 and not torch.equal(before["b"], after["b"])
    third = frozen()
    keep_features(third, str(tmp_path))
    assert torch.equal(third(image)["b"], before["b"]) and third.calls == 0


def test_the_model_keeps_its_weights_names(tmp_path):
    net = frozen()
    names = list(net.state_dict())
    keep_features(net, str(tmp_path))
    net(torch.ones(1, 3, 4, 4))
    assert list(net.state_dict()) == names


def test_an_image_of_zeros(tmp_path):
    net, plain = frozen(), frozen()
    keep_features(net, str(tmp_path))
    found = net(torch.zeros(1, 3, 8, 8))["a"]
    assert torch.equal(found[0, :, :2, :2], plain(torch.zeros(1, 3, 4, 4))["a"][0])


def test_a_backbone_that_learns_is_refused(tmp_path):
    with pytest.raises(UserError, match="set PSIS.TRAIN_ONLY mask_head, or PSIS.KEEP_FEATURES ''"):
        keep_features(Net(), str(tmp_path))


@pytest.mark.parametrize("kept", [0, 100])
def test_a_file_that_is_cut_off_is_made_again_with_a_warning(tmp_path, caplog, kept):
    net, image = frozen(), torch.rand(1, 3, 8, 8) + 0.1
    keep_features(net, str(tmp_path))
    whole = net(image)
    (path,) = (p for p in tmp_path.rglob("*") if p.is_file())
    content = path.read_bytes()
    path.write_bytes(content[:kept])
    with caplog.at_level("WARNING", logger="psis_d2"):
        again = net(image)
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert str(path) in caplog.text and path.read_bytes() == content
