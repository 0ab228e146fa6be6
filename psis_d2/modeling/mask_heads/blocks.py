"""Layers that several mask heads are built from."""

from psis_d2.modeling.norms import region_norm

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.layers import Conv2d, ConvTranspose2d, get_norm
from torch import Tensor, nn


def conv_tower(
    in_channels: int, dim: int, num_convs: int, norm: str = "", dilation: int = 1
) -> nn.Sequential:
    """`num_convs` times 3x3 convolution, norm, ReLU, at one resolution and MSRA-initialized.

    Args:
        in_channels: channels of the input.
        dim: channels of every layer.
        num_convs: how many; 0 gives the identity.
        norm: a Detectron2 norm name, "" for none.
        dilation: of every convolution.
    """
    layers = []
    for k in range(num_convs):
        conv = Conv2d(
            in_channels if k == 0 else dim,
            dim,
            kernel_size=3,
            padding=dilation,
            dilation=dilation,
            bias=not norm,
            norm=get_norm(region_norm(norm), dim),
            activation=nn.ReLU(inplace=True),
        )
        weight_init.c2_msra_fill(conv)
        layers.append(conv)
    return nn.Sequential(*layers)


def plain_convs(channels: list[int], dilation: int = 1) -> nn.Sequential:
    """3x3 convolutions through the given channel counts, ReLU between but not after them."""
    layers: list[nn.Module] = []
    for k, (before, after) in enumerate(zip(channels[:-1], channels[1:], strict=True)):
        conv = Conv2d(before, after, kernel_size=3, padding=dilation, dilation=dilation)
        weight_init.c2_msra_fill(conv)
        layers += [conv] if k == 0 else [nn.ReLU(), conv]
    return nn.Sequential(*layers)


def upsample_layers(in_channels: int, dim: int, norm: str = "") -> nn.Sequential:
    """2x2 transposed convolution of stride 2, norm, ReLU: [R, in_channels, P, P] to twice the side.

    Args:
        in_channels: channels of the input.
        dim: channels of the result.
        norm: a Detectron2 norm name, "" for none.
    """
    deconv = ConvTranspose2d(in_channels, dim, kernel_size=2, stride=2, bias=not norm)
    weight_init.c2_msra_fill(deconv)
    return nn.Sequential(
        deconv, *([get_norm(region_norm(norm), dim)] if norm else []), nn.ReLU(inplace=True)
    )


class UpsamplePredictor(nn.Sequential):
    """Mask R-CNN's last layers: 2x2 transposed convolution, ReLU, 1x1 predictor.

    [R, in_channels, P, P] to logits [R, num_outputs, 2P, 2P].

    Args:
        in_channels, dim, num_outputs: channels of input, hidden layer and result.
        norm: a Detectron2 norm name, "" for none.
        init: of the predictor's weights: "normal", near zero, or "msra".
    """

    def __init__(
        self, in_channels: int, dim: int, num_outputs: int, norm: str = "", init: str = "normal"
    ):
        predictor = Conv2d(dim, num_outputs, kernel_size=1)
        if init == "msra":
            weight_init.c2_msra_fill(predictor)
        else:
            # MSRA makes a class-agnostic predictor diverge; Mask R-CNN starts it near zero.
            nn.init.normal_(predictor.weight, std=0.001)
        nn.init.zeros_(predictor.bias)
        super().__init__(*upsample_layers(in_channels, dim, norm), predictor)

    def upsample(self, x: Tensor) -> Tensor:
        """What the predictor reads, [R, dim, 2P, 2P]."""
        for layer in list(self)[:-1]:
            x = layer(x)
        return x

    def own(self, upsampled: Tensor, classes: Tensor) -> Tensor:
        """Logits of each region's own class alone.

        The predictor's rows of these classes meet the maps. The logits of all classes, and their
        gradient, are gigabytes where there are thousands.

        Args:
            upsampled: float [R, dim, 2P, 2P], of :meth:`upsample`.
            classes: int64 [R].

        Returns:
            float [R, 1, 2P, 2P].
        """
        predictor = self[-1]
        weight = predictor.weight.flatten(1)[classes]
        logits = torch.einsum("rc,rchw->rhw", weight, upsampled)
        return (logits + predictor.bias[classes, None, None])[:, None]


class MaskMLP(nn.Module):
    """The class-agnostic MLP that is fused with an FCN (Hu et al., CVPR 2018, sec. 3.4).

    The released code's: one fully connected layer from the whole upsampled map, with `in_channels`
    * `size`^4 weights. A `dim` of its own factorizes that layer: first a 1x1 convolution, with
    nothing between the two.

    Args:
        in_channels: channels of the upsampled map.
        size: its side M.
        dim: channels that the fully connected layer reads, 0 for all of them.
    """

    def __init__(self, in_channels: int, size: int, dim: int = 0):
        super().__init__()
        self.size = size
        self.reduce: nn.Module = nn.Identity()
        if dim:
            self.reduce = Conv2d(in_channels, dim, kernel_size=1)
            weight_init.c2_xavier_fill(self.reduce)
        self.fc = nn.Linear((dim or in_channels) * size * size, size * size)
        nn.init.normal_(self.fc.weight, std=0.001)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Upsampled map [R, in_channels, M, M] to logits [R, 1, M, M], for all classes alike."""
        return self.fc(self.reduce(x).flatten(1)).view(-1, 1, self.size, self.size)
