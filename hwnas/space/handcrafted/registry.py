"""Every hand-crafted network by name.

Each is a function that can be called without arguments, so that `hwnas teacher --source
hwnas.space.handcrafted:resnet18 --weights FILE` takes it for a teacher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwnas.core.errors import ConfigError, nearest
from hwnas.space.handcrafted.densenet import densenet
from hwnas.space.handcrafted.mobilenet import mobilenet_v2
from hwnas.space.handcrafted.resnet import resnet
from hwnas.space.handcrafted.vgg import vgg

if TYPE_CHECKING:
    from collections.abc import Callable

    from hwnas.space.handcrafted.parts import HandcraftedNetwork

CIFAR = (3, 32, 32)


def resnet20(
    image_shape: tuple[int, int, int] = CIFAR, classes: int = 10, width: float = 1.0
) -> HandcraftedNetwork:
    """Build ResNet-20: 0.27 M parameters for CIFAR-10."""
    return resnet(image_shape, classes, width, stages=((16, 3), (32, 3), (64, 3)))


def resnet18(
    image_shape: tuple[int, int, int] = CIFAR, classes: int = 10, width: float = 1.0
) -> HandcraftedNetwork:
    """Build ResNet-18: 11.17 M parameters for CIFAR-10."""
    return resnet(image_shape, classes, width, stages=((64, 2), (128, 2), (256, 2), (512, 2)))


def resnet34(
    image_shape: tuple[int, int, int] = CIFAR, classes: int = 10, width: float = 1.0
) -> HandcraftedNetwork:
    """Build ResNet-34: 21.28 M parameters for CIFAR-10."""
    return resnet(image_shape, classes, width, stages=((64, 3), (128, 4), (256, 6), (512, 3)))


def vgg16(
    image_shape: tuple[int, int, int] = CIFAR, classes: int = 10, width: float = 1.0
) -> HandcraftedNetwork:
    """Build VGG-16 with batch normalization: 14.73 M parameters for CIFAR-10."""
    stages = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    return vgg(image_shape, classes, width, stages=stages)


def densenet40(
    image_shape: tuple[int, int, int] = CIFAR, classes: int = 10, width: float = 1.0
) -> HandcraftedNetwork:
    """Build DenseNet of 40 layers and growth 12: 1.02 M parameters for CIFAR-10."""
    return densenet(
        image_shape, classes, width,
        growth=12, stages=(12, 12, 12), stem=16, bottleneck=False, compression=1.0,
    )  # fmt: skip


def densenet_bc100(
    image_shape: tuple[int, int, int] = CIFAR, classes: int = 10, width: float = 1.0
) -> HandcraftedNetwork:
    """Build DenseNet-BC of 100 layers and growth 12: 0.77 M parameters for CIFAR-10."""
    return densenet(
        image_shape, classes, width,
        growth=12, stages=(16, 16, 16), stem=24, bottleneck=True, compression=0.5,
    )  # fmt: skip


def densenet121(
    image_shape: tuple[int, int, int] = CIFAR, classes: int = 10, width: float = 1.0
) -> HandcraftedNetwork:
    """Build DenseNet-121: 6.96 M parameters for CIFAR-10."""
    return densenet(
        image_shape, classes, width,
        growth=32, stages=(6, 12, 24, 16), stem=64, bottleneck=True, compression=0.5,
    )  # fmt: skip


def mobilenetv2(
    image_shape: tuple[int, int, int] = CIFAR, classes: int = 10, width: float = 1.0
) -> HandcraftedNetwork:
    """Build MobileNetV2: 2.24 M parameters for CIFAR-10."""
    return mobilenet_v2(image_shape, classes, width)


HANDCRAFTED: dict[str, Callable[[tuple[int, int, int], int, float], HandcraftedNetwork]] = {
    "resnet20": resnet20,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "vgg16": vgg16,
    "densenet40": densenet40,
    "densenet-bc100": densenet_bc100,
    "densenet121": densenet121,
    "mobilenetv2": mobilenetv2,
}
"""The networks that were made by hand, in the order of their families."""


def network(
    name: str,
    image_shape: tuple[int, int, int] = CIFAR,
    classes: int = 10,
    width: float = 1.0,
) -> HandcraftedNetwork:
    """Build a hand-crafted network, newly initialized.

    Args:
        name: One of `HANDCRAFTED`.
        image_shape: (channels, height, width) of an image.
        classes: Classes to tell apart.
        width: What its channels are multiplied by.

    Raises:
        ConfigError: No network has that name, or the width is none.
    """
    check_name(name)
    return HANDCRAFTED[name](image_shape, classes, width)


def check_name(name: str) -> None:
    """Refuse what is no hand-crafted network.

    Raises:
        ConfigError: No network has that name.
    """
    if name not in HANDCRAFTED:
        similar = nearest(name, HANDCRAFTED)
        known = f"known: {', '.join(HANDCRAFTED)}"
        hint = f"did you mean `{similar[0]}`? {known}" if similar else known
        raise ConfigError(f"unknown hand-crafted network `{name}`", hint=hint)
