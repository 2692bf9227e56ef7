"""Residual networks at CIFAR scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from hwnas.space.handcrafted.parts import HandcraftedNetwork, check_width, conv_unit, scaled_width

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, ReLU after the sum.

    The shortcut is a 1x1 convolution where shapes differ (option B of the paper).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = conv_unit(in_channels, out_channels, 3, stride=stride, activation=nn.ReLU())
        self.second = conv_unit(out_channels, out_channels, 3)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = (
            nn.Identity() if same else conv_unit(in_channels, out_channels, 1, stride=stride)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, channels, height, width) on."""
        return torch.relu(self.second(self.first(features)) + self.shortcut(features))


def resnet(
    image_shape: tuple[int, int, int],
    classes: int,
    width: float,
    *,
    stages: Sequence[tuple[int, int]],
) -> HandcraftedNetwork:
    """Build a residual network of basic blocks; every stage but the first halves the size.

    Args:
        image_shape: (channels, height, width) of an image.
        classes: Classes to tell apart.
        width: What all channels are multiplied by.
        stages: Channels and number of blocks of each stage.

    References:
        He et al., Deep Residual Learning (arXiv 1512.03385), 4.2. Departures: for small images the
        stem is one 3x3 convolution of stride 1, without pooling, in the ImageNet shapes (18, 34)
        too; shortcuts are option B everywhere, where theirs for CIFAR are option A.
    """
    check_width(width)
    stages = [(scaled_width(channels, width), count) for channels, count in stages]
    return HandcraftedNetwork(
        image_shape[0],
        conv_unit(image_shape[0], stages[0][0], 3, activation=nn.ReLU()),
        _blocks(stages),
        features=stages[-1][0],
        classes=classes,
    )


def _blocks(stages: Sequence[tuple[int, int]]) -> Iterator[tuple[str, nn.Module]]:
    before, place = stages[0][0], 0
    for stage, (channels, count) in enumerate(stages):
        for index in range(count):
            place += 1
            stride = 2 if stage > 0 and index == 0 else 1
            yield f"block{place}", BasicBlock(before, channels, stride)
            before = channels
