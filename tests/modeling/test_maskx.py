"""MaskX R-CNN: which weights T reads, where gradients go, logits by hand, what it costs."""

import psis_d2  # noqa: F401
from psis_d2.data.splits import NAMED_SPLITS
from psis_d2.errors import UserError
from psis_d2.modeling.context import RegionContext
from psis_d2.modeling.mask_heads.blocks import MaskMLP
from psis_d2.modeling.mask_heads.fcn import FCNMaskHead
from psis_d2.modeling.mask_heads.maskx import (
    MaskXMaskHead,
    detection_weights,
    transfer_function,
)

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from torch.utils._python_dispatch import TorchDispatchMode

from model_builders import (
    MASKX,
    MLP,
    partial_batch,
    tiny_config,
    tiny_model,
    training_losses,
)

MIXED = [[True, False, True], [False, True]]
SHAPE = ShapeSpec(channels=16, height=14, width=14)


def box_predictor(num_classes: int, features: int = 2, agnostic: bool = False):
    torch.manual_seed(0)
    return FastRCNNOutputLayers(
        ShapeSpec(channels=features),
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        num_classes=num_classes,
        cls_agnostic_bbox_reg=agnostic,
    )


def small_head(num_classes: int = 3, features: int = 2, **overrides) -> MaskXMaskHead:
    """Two channels, no convolution in the trunk, T of one layer."""
    arguments = {
        "conv_dim": 2,
        "num_convs": 0,
        "source": "cls",
        "embedding_dim": features,
        "num_layers": 1,
        **overrides,
    }
    return MaskXMaskHead(ShapeSpec(channels=2, height=2, width=2), **arguments)


def regions_of_classes(classes, predictor, channels: int = 2, size: int = 2, seed: int = 0):
    """A test-time context of one image with random features."""
    generator = torch.Generator().manual_seed(seed)
    n = len(classes)
    boxes = Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]]).expand(n, 4))
    regions = Instances((16, 16), pred_boxes=boxes, pred_classes=torch.tensor(classes).long())
    features = torch.rand(n, channels, size, size, generator=generator)
    return RegionContext(
        regions=[regions], features=features, pool=lambda _: features, box_predictor=predictor
    )


def test_rows_of_the_box_predictor():
    predictor = box_predictor(num_classes=3)
    with torch.no_grad():
        predictor.cls_score.weight.copy_(torch.arange(8.0).view(4, 2))  # background is (6, 7)
        predictor.bbox_pred.weight.copy_(torch.arange(24.0).view(12, 2) + 100)
    classes = torch.tensor([2, 0])
    cls = [[4.0, 5], [0, 1]]
    # class 2 owns rows 8 to 11 of the regression, class 0 rows 0 to 3
    box = [[116.0 + k for k in range(8)], [100.0 + k for k in range(8)]]
    both = [a + b for a, b in zip(cls, box, strict=True)]
    assert detection_weights(predictor, classes, "cls").tolist() == cls
    assert detection_weights(predictor, classes, "box").tolist() == box
    assert detection_weights(predictor, classes, "cls+box").tolist() == both


def test_cls_works_with_class_agnostic_regression():
    predictor = box_predictor(num_classes=3, agnostic=True)
    weights = detection_weights(predictor, torch.tensor([1]), "cls")
    assert torch.equal(weights, predictor.cls_score.weight[1:2])


def test_logits_by_hand():
    """T = [[1, 0], [0, 2]] on rows (1, 2) and (3, 4); the upsampling copies every cell."""
    head, predictor = small_head(), box_predictor(num_classes=3)
    with torch.no_grad():
        predictor.cls_score.weight.copy_(torch.tensor([[1.0, 2], [9, 9], [3, 4], [7, 7]]))
        head.transfer[0].weight.copy_(torch.tensor([[1.0, 0], [0, 2]]))
        head.upsample[0].weight.copy_(torch.eye(2)[:, :, None, None].expand(2, 2, 2, 2))
    context = regions_of_classes([2, 0, 2], predictor)
    logits = head.predict(context)
    # kernels: class 0 (1, 4), class 2 (3, 8), no bias
    x = context.features
    expected = torch.stack([3 * x[0, 0] + 8 * x[0, 1], x[1, 0] + 4 * x[1, 1]])
    expected = torch.stack([*expected, 3 * x[2, 0] + 8 * x[2, 1]])
    expected = expected.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    torch.testing.assert_close(logits[:, 0], expected)


def test_mlp_logits_are_added_to_every_region():
    head, predictor = small_head(mlp_branch=True), box_predictor(num_classes=3)
    context = regions_of_classes([2, 0], predictor)
    upsampled = head.upsample(context.features)
    mlp = head.mlp(upsampled)
    with_mlp = head.predict(context)
    head.mlp = None
    torch.testing.assert_close(with_mlp - head.predict(context), mlp)


@pytest.mark.parametrize("dim", [0, 1])
def test_mlp_is_one_linear_layer_on_the_flattened_map(dim):
    torch.manual_seed(0)
    mlp, x = MaskMLP(in_channels=3, size=2, dim=dim), torch.randn(2, 3, 2, 2)
    assert mlp.fc.weight.shape == (4, 4 * (dim or 3))
    assert mlp.fc.weight.std().item() == pytest.approx(0.001, rel=0.6)
    if dim:
        weight = mlp.reduce.weight[:, :, 0, 0]
        maps = torch.einsum("dc,rchw->rdhw", weight, x)
    else:
        maps = x
    expected = maps.reshape(2, -1) @ mlp.fc.weight.T
    torch.testing.assert_close(mlp(x), expected.view(2, 1, 2, 2))


def test_fcn_head_with_an_mlp():
    head = FCNMaskHead(tiny_config(*MLP), SHAPE).eval()
    context = regions_of_classes([0, 1], None, channels=16, size=14)
    logits = head.predict(context)
    upsampled = head.predictor.upsample(head.trunk(context.features))
    expected = head.predictor[-1](upsampled) + head.mlp(upsampled)
    torch.testing.assert_close(logits, expected)
    logits.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in head.mlp.parameters())


@pytest.mark.parametrize("stop", [True, False])
def test_mask_loss_and_the_box_predictor(stop):
    model = tiny_model(*MASKX, "PSIS.MASKX.STOP_GRADIENT", stop)
    predictor = model.roi_heads.box_predictor
    losses = training_losses(model, partial_batch(MIXED))
    losses.pop("loss_mask").backward(retain_graph=True)
    largest = {
        n: 0 if p.grad is None else p.grad.abs().max() for n, p in predictor.named_parameters()
    }
    assert largest["cls_score.bias"] == largest["bbox_pred.bias"] == 0  # never read
    assert (largest["cls_score.weight"] == 0) == stop
    assert (largest["bbox_pred.weight"] == 0) == stop
    transfer = model.roi_heads.mask_head.transfer
    assert all(p.grad.abs().max() > 0 for p in transfer.parameters())
    # the detection losses teach it all the same
    sum(losses.values()).backward()
    assert all(p.grad.abs().max() > 0 for p in predictor.parameters())


@pytest.mark.parametrize("source", ["cls", "box", "cls+box"])
@pytest.mark.parametrize("stop", [True, False])
def test_gradient_to_the_layers_that_are_read(source, stop):
    dims = {"cls": 2, "box": 8, "cls+box": 10}
    head = small_head(source=source, embedding_dim=dims[source], stop_gradient=stop)
    predictor = box_predictor(num_classes=3)
    head.predict(regions_of_classes([2, 0], predictor)).square().sum().backward()
    for layer, part in (("cls_score", "cls"), ("bbox_pred", "box")):
        gradient = getattr(predictor, layer).weight.grad
        read = part in source and not stop
        assert (gradient is not None and bool(gradient.any())) == read


def test_an_unseen_class_follows_its_box_head_row():
    """The live parameters are read: what detection learns moves the kernel at once."""
    head = small_head(source="cls+box", embedding_dim=10, num_layers=2)
    predictor, classes = box_predictor(num_classes=20), torch.tensor([3, 15])  # 15 is unseen
    before = head.class_kernels(predictor, classes)
    with torch.no_grad():
        predictor.cls_score.weight[15] += 1
    after = head.class_kernels(predictor, classes)
    assert torch.equal(after[0], before[0])
    assert not torch.allclose(after[1], before[1])
    with torch.no_grad():
        predictor.bbox_pred.weight[4 * 15] += 1
    assert not torch.allclose(head.class_kernels(predictor, classes)[1], after[1])


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest tensor that is made beside those that are there."""

    def __init__(self, existing):
        super().__init__()
        self.existing = {t.untyped_storage().data_ptr() for t in existing}
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            # A view of what is there costs nothing; backward has None where no gradient is due.
            if tensor is not None and tensor.untyped_storage().data_ptr() not in self.existing:
                self.elements = max(self.elements, tensor.numel())
        return result


def test_only_needed_kernels_are_predicted():
    classes = [5, 2, 5, 5, 11]
    largest, rows = {}, {}
    for num_classes in (20, 3000):
        torch.manual_seed(0)
        head = small_head(features=4, source="cls+box", embedding_dim=20)
        predictor = box_predictor(num_classes, features=4)
        head.transfer.register_forward_hook(
            lambda module, args, output, n=num_classes: rows.update({n: len(args[0])})
        )
        context = regions_of_classes(classes, predictor)
        with LargestTensor(predictor.parameters()) as spy:
            logits = head.predict(context)
            logits.square().sum().backward()
        assert logits.shape == (5, 1, 4, 4)
        largest[num_classes] = spy.elements
    assert rows == {20: 3, 3000: 3}
    assert largest[20] == largest[3000] < 3000


@pytest.mark.parametrize(
    ("layers", "activation", "kinds"),
    [
        (1, "ReLU", ["Linear"]),
        (2, "ReLU", ["Linear", "ReLU", "Linear"]),
        (3, "LeakyReLU", ["Linear", "LeakyReLU", "Linear", "LeakyReLU", "Linear"]),
    ],
)
def test_structures_of_the_transfer_function(layers, activation, kinds):
    transfer = transfer_function(7, 5, layers, activation)
    assert [type(m).__name__ for m in transfer] == kinds
    assert transfer[0].in_features == 7
    assert all(m.out_features == 5 for m in transfer if isinstance(m, torch.nn.Linear))
    assert all(m.negative_slope == 0.1 for m in transfer if isinstance(m, torch.nn.LeakyReLU))
    assert transfer(torch.randn(4, 7)).shape == (4, 5)


def build_head(*keys) -> MaskXMaskHead:
    return MaskXMaskHead(tiny_config(*MASKX, *keys), SHAPE)


def test_width_of_the_embedding_follows_the_box_head():
    for keys, width in (
        ((), 5 * 32),
        (("PSIS.MASKX.INPUT", "cls"), 32),
        (("MODEL.ROI_BOX_HEAD.NUM_FC", 0, "MODEL.ROI_BOX_HEAD.NUM_CONV", 1), 5 * 256 * 7 * 7),
    ):
        assert build_head(*keys).transfer[0].in_features == width


def test_the_box_head_is_asked_without_drawing_random_numbers():
    torch.manual_seed(0)
    MaskXMaskHead.from_config(tiny_config(*MASKX), SHAPE)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


def test_randn_is_the_same_in_every_process_and_not_trained():
    heads = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        heads.append(build_head("PSIS.MASKX.INPUT", "randn"))
    assert heads[0].embeddings.shape == (20, 300)
    assert torch.equal(heads[0].embeddings, heads[1].embeddings)
    assert "embeddings" in heads[0].state_dict()
    assert not heads[0].embeddings.requires_grad


def test_embedding_file(tmp_path):
    names = NAMED_SPLITS["shapes"] + NAMED_SPLITS["shapes-swapped"]
    file = tmp_path / "vectors.txt"
    file.write_text("".join(f"{name} {k} 1 -2e-1\n" for k, name in enumerate(names)))
    head = build_head("PSIS.MASKX.INPUT", str(file))
    assert sorted(head.embeddings[:, 0].tolist()) == list(range(20))
    context = regions_of_classes([3, 15], None, channels=16, size=14)
    assert head.predict(context).shape == (2, 1, 28, 28)
    file.write_text("ring 1 2\n")
    with pytest.raises(UserError, match="no vector for disk.*add a line"):
        build_head("PSIS.MASKX.INPUT", str(file))


@pytest.mark.parametrize("source", ["box", "cls+box"])
def test_box_needs_class_specific_regression(source):
    keys = ("PSIS.MASKX.INPUT", source, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
    with pytest.raises(UserError, match="set MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG False"):
        build_head(*keys)
    build_head(*keys, "PSIS.MASKX.INPUT", "cls")


def test_unknown_input():
    with pytest.raises(UserError, match="PSIS.MASKX.INPUT is 'glove'; choose one of cls, box"):
        build_head("PSIS.MASKX.INPUT", "glove")
