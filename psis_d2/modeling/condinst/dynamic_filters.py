"""Filters predicted at a location, and the small network that they make (CondInst, ECCV 2020).

Legend: n instances, B images, C mask features, P parameters, D tower channels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Queries:
    """Where masks are asked for: n instances, those of an image side by side, images in order."""

    images: Tensor
    """int64 [n], rows of the batch."""
    locations: Tensor
    """int64 [n], the detector's anchor rows: filters are predicted there."""
    centers: Tensor
    """float [n, 2], their x and y in pixels."""
    sizes: Tensor
    """float [n], the size of interest of their level in pixels: the unit of coordinates."""
    classes: Tensor
    """int64 [n]."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item) -> "Queries":
        return Queries(*(value[item] for value in vars(self).values()))


@dataclass(frozen=True)
class DynamicLayers:
    """Shapes of a network of 1x1 convolutions with ReLU between them.

    Its input are two relative coordinates and C mask features, its output is a mask logit; with
    several classes, there is an output for each, and only that of the instance's class is computed.

    An instance's parameters are, in this order, the weights of all layers and the biases of all
    layers; a weight is laid out (out, in).
    """

    features: int
    """C."""
    dim: int
    """Channels between the layers."""
    depth: int
    """Number of layers, at least 1."""
    classes: int = 1
    """Outputs: 1 is class-agnostic."""

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(out, in) of every layer."""
        channels = [self.features + 2, *[self.dim] * (self.depth - 1), self.classes]
        return list(zip(channels[1:], channels[:-1], strict=True))

    @property
    def num_params(self) -> int:
        """P."""
        return sum(out * (into + 1) for out, into in self.shapes)

    def split(self, params: Tensor, classes: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Weights [n, out, in] and biases [n, out] of every layer; the last layer has one output.

        Args:
            params: float [n, P].
            classes: int64 [n]; ignored if the network is class-agnostic.
        """
        sizes = [out * into for out, into in self.shapes] + [out for out, _ in self.shapes]
        parts = params.split(sizes, dim=1)
        layers = [
            (weight.view(-1, out, into), bias)
            for weight, bias, (out, into) in zip(
                parts[: self.depth], parts[self.depth :], self.shapes, strict=True
            )
        ]
        if self.classes > 1:
            weight, bias = layers[-1]
            own = torch.arange(len(params), device=params.device), classes
            layers[-1] = weight[own][:, None], bias[own][:, None]
        return layers


class Controller(nn.Module):
    """Predicts the parameters of instances: a 3x3 convolution, at their locations only.

    The rest of a map has no use, and it is thousands of locations for some dozens of instances.

    Args:
        in_channels: D.
        num_params: P.
    """

    def __init__(self, in_channels: int, num_params: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, num_params, kernel_size=3, padding=1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)

    def forward(self, maps: list[Tensor], images: Tensor, locations: Tensor) -> Tensor:
        """Parameters, float [n, P].

        Args:
            maps: float [B, D, H, W] of each level.
            images, locations: see :class:`Queries`.
        """
        return self.of_patches(gather_patches(maps, images, locations))

    def of_patches(self, patches: Tensor) -> Tensor:
        """The same, float [n, P], of patches that were gathered, float [n, D, 3, 3]."""
        return F.linear(patches.flatten(1), self.conv.weight.flatten(1), self.conv.bias).float()


def gather_patches(maps: list[Tensor], images: Tensor, locations: Tensor) -> Tensor:
    """The 3x3 neighborhoods of locations, zeros outside of the maps.

    Args:
        maps: float [B, D, H, W] of each level.
        images: int64 [n].
        locations: int64 [n], counted through the levels, in each level row by row.

    Returns:
        float [n, D, 3, 3].
    """
    window = torch.arange(3, device=images.device)
    patches, rows, first = [], [], 0
    for level in maps:
        height, width = level.shape[-2:]
        of_level = (locations >= first) & (locations < first + height * width)
        rows.append(of_level.nonzero()[:, 0])
        cell = locations[rows[-1]] - first
        y, x = (cell // width)[:, None] + window, (cell % width)[:, None] + window
        padded = F.pad(level, (1, 1, 1, 1)).permute(0, 2, 3, 1)
        patches.append(padded[images[rows[-1]][:, None, None], y[:, :, None], x[:, None]])
        first += height * width
    return torch.cat(patches)[torch.cat(rows).argsort()].permute(0, 3, 1, 2)


def dynamic_logits(
    layers: list[tuple[Tensor, Tensor]], features: Tensor, queries: Queries, stride: int
) -> Tensor:
    """Every instance's own network on its image's mask features: n 1x1 convolutions in groups.

    Coordinates are those of a cell's center relative to the instance's location, x and y, in units
    of its size of interest. The first layer is computed without a copy of the features for each
    instance, and its coordinates, which are sums of a term of the column and one of the row,
    without maps of them.

    Args:
        layers: weights float [n, out, in], biases [n, out] of :meth:`DynamicLayers.split`.
        features: float [B, C, H, W].
        queries: n instances.
        stride: side of a cell in pixels.

    Returns:
        float [n, H, W].
    """
    height, width = features.shape[-2:]
    (weight, bias), *rest = layers
    out = weight.shape[1]
    if len(features) == 1:  # nothing to count: no look at the values, which a tracer would freeze
        counts = [len(queries)]
    else:
        # Not bincount, for which a GPU is waited for three times.
        index = torch.arange(len(features), device=queries.images.device)
        counts = (queries.images == index[:, None]).sum(dim=1).tolist()
    of_features = torch.cat(
        [
            (part.flatten(0, 1) @ image.flatten(1)).view(len(part), out, height, width)
            for part, image in zip(weight[:, :, 2:].split(counts), features, strict=True)
        ]
    )
    x, y = (
        ((torch.arange(n, device=features.device) + 0.5) * stride - queries.centers[:, k, None])
        / queries.sizes[:, None]
        for k, n in enumerate((width, height))
    )
    of_columns = weight[:, :, 0, None] * x[:, None] + bias[:, :, None]
    of_rows = weight[:, :, 1, None] * y[:, None]
    logits = (of_features + of_columns[:, :, None] + of_rows[..., None]).flatten(2)
    for weight, bias in rest:
        logits = torch.baddbmm(bias[..., None], weight, logits.relu())
    return logits.view(len(queries), height, width)
