"""MobileNetV2 at CIFAR scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from hwnas.space.handcrafted.parts import HandcraftedNetwork, check_width, conv_unit, scaled_width

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

# Expansion, channels, blocks and stride of the first of each stage (table 2 of the paper).
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),  # 2 in the paper, for images of 224 pixels
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM, _FEATURES = 32, 1280


class LinearBottleneck(nn.Module):
    """1x1 expansion, depthwise 3x3 convolution, linear 1x1 projection; ReLU6 after the first two.

    The input is added where the shape is the same.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.expand = (
            conv_unit(in_channels, inner, 1, activation=nn.ReLU6())
            if expansion > 1
            else nn.Identity()
        )
        self.depthwise = conv_unit(
            inner, inner, 3, stride=stride, groups=inner, activation=nn.ReLU6()
        )
        self.project = conv_unit(inner, out_channels, 1)
        self.has_residual = stride == 1 and in_channels == out_channels

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, channels, height, width) on."""
        projected: Tensor = self.project(self.depthwise(self.expand(features)))
        return projected + features if self.has_residual else projected


def mobilenet_v2(
    image_shape: tuple[int, int, int], classes: int, width: float
) -> HandcraftedNetwork:
    """Build a MobileNetV2.

    Args:
        image_shape: (channels, height, width) of an image.
        classes: Classes to tell apart.
        width: What all channels are multiplied by; the last 1280 only by more than 1.

    References:
        Sandler et al., MobileNetV2 (arXiv 1801.04381), table 2 and 6.1. Departures: stem and second
        stage have stride 1, as usual for images of 32 pixels; widths are rounded to multiples of 4,
        theirs to multiples of 8; no dropout.
    """
    check_width(width)
    stem = scaled_width(_STEM, width)
    features = scaled_width(_FEATURES, max(width, 1.0))
    return HandcraftedNetwork(
        image_shape[0],
        conv_unit(image_shape[0], stem, 3, activation=nn.ReLU6()),
        _blocks(stem, width, features),
        features=features,
        classes=classes,
    )


def _blocks(before: int, width: float, features: int) -> Iterator[tuple[str, nn.Module]]:
    place = 0
    for expansion, base, count, stride in _STAGES:
        channels = scaled_width(base, width)
        for index in range(count):
            place += 1
            block = LinearBottleneck(before, channels, expansion, stride if index == 0 else 1)
            yield f"block{place}", block
            before = channels
    yield "features", conv_unit(before, features, 1, activation=nn.ReLU6())
