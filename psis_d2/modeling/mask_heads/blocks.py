"""Layers that several mask heads are built from."""

import fvcore.nn.weight_init as weight_init
from detectron2.layers import Conv2d, ConvTranspose2d, get_norm
from torch import nn


def conv_tower(in_channels: int, dim: int, num_convs: int, norm: str = "") -> nn.Sequential:
    """`num_convs` times 3x3 convolution, norm, ReLU, at one resolution and MSRA-initialised.

    Args:
        in_channels: channels of the input.
        dim: channels of every layer.
        num_convs: how many; 0 gives the identity.
        norm: a Detectron2 norm name, "" for none.
    """
    layers = []
    for k in range(num_convs):
        conv = Conv2d(
            in_channels if k == 0 else dim,
            dim,
            kernel_size=3,
            padding=1,
            bias=not norm,
            norm=get_norm(norm, dim),
            activation=nn.ReLU(),
        )
        weight_init.c2_msra_fill(conv)
        layers.append(conv)
    return nn.Sequential(*layers)


def plain_convs(channels: list[int]) -> nn.Sequential:
    """3x3 convolutions through the given channel counts, ReLU between but not after them."""
    layers: list[nn.Module] = []
    for k, (before, after) in enumerate(zip(channels[:-1], channels[1:], strict=True)):
        conv = Conv2d(before, after, kernel_size=3, padding=1)
        weight_init.c2_msra_fill(conv)
        layers += [conv] if k == 0 else [nn.ReLU(), conv]
    return nn.Sequential(*layers)


class UpsamplePredictor(nn.Sequential):
    """Mask R-CNN's last layers: 2x2 transposed convolution, ReLU, 1x1 predictor.

    [R, in_channels, P, P] to logits [R, num_outputs, 2P, 2P].
    """

    def __init__(self, in_channels: int, dim: int, num_outputs: int):
        deconv = ConvTranspose2d(in_channels, dim, kernel_size=2, stride=2)
        predictor = Conv2d(dim, num_outputs, kernel_size=1)
        weight_init.c2_msra_fill(deconv)
        # MSRA makes a class-agnostic predictor diverge; Mask R-CNN starts it near zero.
        nn.init.normal_(predictor.weight, std=0.001)
        nn.init.zeros_(predictor.bias)
        super().__init__(deconv, nn.ReLU(), predictor)
