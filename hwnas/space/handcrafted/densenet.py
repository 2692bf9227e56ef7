"""Densely connected networks at CIFAR scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from hwnas.space.handcrafted.parts import HandcraftedNetwork, check_width, halving, scaled_width

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

_BOTTLENECK = 4
"""Channels of a bottleneck, in growths."""


class DenseLayer(nn.Module):
    """Normalization, ReLU, 3x3 convolution; its output stands beside its input.

    With a bottleneck, a 1x1 convolution (normalized and activated likewise) comes first.
    """

    def __init__(self, in_channels: int, growth: int, *, bottleneck: bool) -> None:
        super().__init__()
        inner = _BOTTLENECK * growth if bottleneck else in_channels
        self.bottleneck = _normalized(in_channels, inner, 1) if bottleneck else nn.Identity()
        self.grow = _normalized(inner, growth, 3)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to `growth` channels more, the new ones last."""
        return torch.cat([features, self.grow(self.bottleneck(features))], dim=1)


def densenet(
    image_shape: tuple[int, int, int],
    classes: int,
    width: float,
    *,
    growth: int,
    stages: Sequence[int],
    stem: int,
    bottleneck: bool,
    compression: float,
) -> HandcraftedNetwork:
    """Build a densely connected network; between stages a transition halves the size.

    Args:
        image_shape: (channels, height, width) of an image.
        classes: Classes to tell apart.
        width: What growth and stem are multiplied by; all other channels follow from them.
        growth: Channels that each layer adds.
        stages: Layers of each stage.
        stem: Channels of the first convolution.
        bottleneck: Whether layers have bottlenecks.
        compression: Share of its input channels that a transition keeps, rounded down.

    References:
        Huang et al., Densely Connected Convolutional Networks (arXiv 1608.06993), 3: `-BC` is
        bottleneck and a compression of 1/2. Departure: for small images the stem is one 3x3
        convolution of stride 1, without pooling, in the ImageNet shape (121) too.
    """
    check_width(width)
    growth, stem = scaled_width(growth, width), scaled_width(stem, width)
    blocks: list[tuple[str, nn.Module]] = []
    channels, size = stem, min(image_shape[1:])
    for stage, layers in enumerate(stages):
        if stage > 0:
            size, pool = halving(size, nn.AvgPool2d(2))
            kept = int(channels * compression)
            blocks.append((f"transition{stage}", _normalized(channels, kept, 1).append(pool)))
            channels = kept
        dense = _dense(channels, growth, layers, bottleneck=bottleneck)
        blocks.append((f"stage{stage + 1}", nn.Sequential(*dense)))
        channels += layers * growth
    blocks.append(("norm", nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())))
    return HandcraftedNetwork(
        image_shape[0],
        nn.Conv2d(image_shape[0], stem, 3, padding=1, bias=False),
        blocks,
        features=channels,
        classes=classes,
    )


def _dense(channels: int, growth: int, layers: int, *, bottleneck: bool) -> Iterator[nn.Module]:
    for index in range(layers):
        yield DenseLayer(channels + index * growth, growth, bottleneck=bottleneck)


def _normalized(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Normalization and ReLU before the convolution."""
    return nn.Sequential(
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
    )
