"""VGG with batch normalization at CIFAR scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from hwnas.space.handcrafted.parts import (
    HandcraftedNetwork,
    check_width,
    conv_unit,
    halving,
    scaled_width,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def vgg(
    image_shape: tuple[int, int, int],
    classes: int,
    width: float,
    *,
    stages: Sequence[tuple[int, int]],
) -> HandcraftedNetwork:
    """Build a VGG: 3x3 convolutions, max pooling after each stage.

    Args:
        image_shape: (channels, height, width) of an image.
        classes: Classes to tell apart.
        width: What all channels are multiplied by.
        stages: Channels and number of convolutions of each stage.

    References:
        Simonyan and Zisserman, Very Deep Convolutional Networks (arXiv 1409.1556), table 1.
        Departures: batch normalization after every convolution, and one linear layer in place of
        three, as usual at CIFAR scale.
    """
    check_width(width)
    stages = [(scaled_width(channels, width), count) for channels, count in stages]
    stem = conv_unit(image_shape[0], stages[0][0], 3, bias=True, activation=nn.ReLU())
    return HandcraftedNetwork(
        image_shape[0],
        stem,
        _blocks(stages, min(image_shape[1:])),
        features=stages[-1][0],
        classes=classes,
    )


def _blocks(stages: Sequence[tuple[int, int]], size: int) -> Iterator[tuple[str, nn.Module]]:
    before, place = stages[0][0], 0
    for stage, (channels, count) in enumerate(stages):
        for index in range(count):
            if stage == index == 0:
                continue  # the stem
            place += 1
            unit = conv_unit(before, channels, 3, bias=True, activation=nn.ReLU())
            before = channels
            if index == count - 1:
                size, pool = halving(size, nn.MaxPool2d(2))
                unit.append(pool)
            yield f"block{place}", unit
