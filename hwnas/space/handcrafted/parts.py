"""What the hand-crafted networks share: their chain, a convolution with its norm, a width."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, final

from torch import nn

from hwnas.core.errors import ConfigError
from hwnas.space.blocks import Head, Normalize
from hwnas.space.supernet import SlimNetwork

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

_CHANNEL_STEP = 4
"""Scaled widths are multiples of it, as the widths of our spaces are."""


@final
class HandcraftedNetwork(SlimNetwork):
    """A network that was made by hand: normalization, a stem, blocks, average and classifier.

    Args:
        image_channels: Channels of an image.
        stem: What comes before the first block.
        blocks: The blocks, by name.
        features: Channels that the last block gives.
        classes: Classes to tell apart.
    """

    def __init__(
        self,
        image_channels: int,
        stem: nn.Module,
        blocks: Iterable[tuple[str, nn.Module]],
        *,
        features: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.pixels = Normalize(image_channels)
        self.stem = stem
        self.blocks = nn.Sequential(OrderedDict(blocks))
        self.head = Head(features, classes)
        self.tap_names = ("stem", *(name for name, _ in self.blocks.named_children()))

    @property
    def normalize(self) -> Normalize:
        """Where pixels of [0, 1] are shifted and scaled."""
        return self.pixels

    def forward(self, images: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        """Compute logits; the taps are the stem and every block after it."""
        logits: Tensor = self.head(self.features(images, taps))
        return logits

    def features(self, images: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        """Compute what the last block gives; the taps are those of `forward`."""
        features: Tensor = self.stem(self.pixels(images))
        if taps is not None:
            taps.append(features)
        for block in self.blocks:
            features = block(features)
            if taps is not None:
                taps.append(features)
        return features


def conv_unit(
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    activation: nn.Module | None = None,
) -> nn.Sequential:
    """Make a convolution with batch normalization and, where given, an activation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Side of the kernel; padded so that stride 1 keeps the size.
        stride: Spatial stride.
        groups: Groups of the convolution; `in_channels` makes it depthwise.
        bias: Whether the convolution has biases, which the normalization takes out again.
        activation: What comes last.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias),
        nn.BatchNorm2d(out_channels),
    ]
    return nn.Sequential(*layers, *([activation] if activation is not None else []))


def scaled_width(channels: int, width: float) -> int:
    """Scale a number of channels: to the nearest multiple of 4, and at least 4.

    At width 1 it stays what it was, whatever it divides by.

    >>> scaled_width(64, 0.5), scaled_width(64, 0.3), scaled_width(12, 1.0), scaled_width(16, 0.01)
    (32, 20, 12, 4)
    """
    if width == 1.0:
        return channels
    return max(_CHANNEL_STEP, math.floor(channels * width / _CHANNEL_STEP + 0.5) * _CHANNEL_STEP)


def check_width(width: float) -> None:
    """Refuse what is no width multiplier.

    Raises:
        ConfigError: It is not a positive number.
    """
    if not (math.isfinite(width) and width > 0):
        raise ConfigError(f"`width` multiplies channels: a positive number, not {width}")


def halving(size: int, pool: nn.Module) -> tuple[int, nn.Module]:
    """Return the side that pooling by 2 leaves, and the pool.

    Networks made for 32 pixels halve five times; where one pixel is left of a smaller image, it
    stays.

    Args:
        size: Side of the feature map, the shorter one.
        pool: Pools by 2.
    """
    return (size // 2, pool) if size > 1 else (size, nn.Identity())
