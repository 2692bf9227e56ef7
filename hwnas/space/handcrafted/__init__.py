"""Networks that were made by hand, at CIFAR scale: what searched ones are compared with."""

from hwnas.space.handcrafted.registry import (
    densenet40,
    densenet121,
    densenet_bc100,
    mobilenetv2,
    network,
    resnet18,
    resnet20,
    resnet34,
    vgg16,
)

__all__ = [
    "densenet40",
    "densenet121",
    "densenet_bc100",
    "mobilenetv2",
    "network",
    "resnet18",
    "resnet20",
    "resnet34",
    "vgg16",
]
