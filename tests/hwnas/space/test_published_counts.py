"""The spaces are the published ones: their parameters and multiply-accumulates are.

The published counts are of networks whose convolutions have biases. Ours leave them out, as batch
normalization cancels them; here they are added back.

For the ImageNet space neither the paper's notes nor the released code give a count of parameters or
multiply-accumulates; the code gives the shape of every layer, for 32x32 images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from hwnas.space.channel.space import ChannelSpace
from hwnas.space.channel.spec import CHANNEL_SPACES, ChannelSpec
from hwnas.space.spec import space_spec

if TYPE_CHECKING:
    from hwnas.space.genotype import Genotype


def space_of(name: str) -> ChannelSpace:
    return ChannelSpace(CHANNEL_SPACES[f"rnas-cl-{name}"])


def parameters_with_biases(space: ChannelSpace, genotype: Genotype) -> int:
    with torch.device("meta"):
        network = space.network(genotype)
    biases = sum(each.out_channels for each in network.modules() if isinstance(each, nn.Conv2d))
    return space.parameters(genotype) + biases


# Millions of parameters, rounded as published: widest, narrowest.
@pytest.mark.parametrize(
    ("name", "widest", "narrowest", "digits"),
    [
        ("s3", 0.183, 0.113, 3),
        ("s5", 0.333, 0.206, 3),
        ("s7", 0.483, 0.300, 3),
        ("m", 3.03, 2.64, 2),
        ("l", 11.76, 10.97, 2),
    ],
)
def test_the_corners_of_a_space_have_the_published_parameters(
    name: str, widest: float, narrowest: float, digits: int
) -> None:
    space = space_of(name)
    assert round(parameters_with_biases(space, space.largest) / 1e6, digits) == widest
    assert round(parameters_with_biases(space, space.smallest) / 1e6, digits) == narrowest


# Millions of multiply-accumulates.
@pytest.mark.parametrize(("name", "narrowest", "widest"), [("m", 281, 317), ("l", 1164, 1237)])
def test_the_corners_of_a_large_space_have_the_published_macs(
    name: str, narrowest: int, widest: int
) -> None:
    space = space_of(name)
    assert round(space.macs(space.smallest) / 1e6) == narrowest
    assert round(space.macs(space.largest) / 1e6) == widest


# S7 as found in the released code; S3 and S5 with the same widths but for the last stage's.
@pytest.mark.parametrize(
    ("name", "last", "params_millions", "macs_millions"),
    [
        ("s3", [52] * 3, 0.118, 5.9),
        ("s5", [52] * 5, 0.215, 9.8),
        ("s7", [52, 52, 52, 52, 56, 56, 52], 0.323, 13.8),
    ],
)
def test_the_network_found_in_a_small_space_has_the_published_size(
    name: str, last: list[int], params_millions: float, macs_millions: float
) -> None:
    space = space_of(name)
    genotype = space.genotype([16] * len(last) + [20] * len(last) + last)
    assert round(parameters_with_biases(space, genotype) / 1e6, 3) == params_millions
    assert round(space.macs(genotype) / 1e6, 1) == macs_millions


@pytest.mark.parametrize(("name", "blocks"), [("s3", 9), ("s5", 15), ("s7", 21), ("m", 17),
                                              ("l", 17), ("imagenet", 18)])  # fmt: skip
def test_a_space_has_the_published_depth(name: str, blocks: int) -> None:
    assert len(space_of(name).options) == blocks


@pytest.mark.parametrize(("name", "layers"), [("s7", 1 + 3 * 21), ("imagenet", 56)])
def test_tutor_students_are_every_convolution(name: str, layers: int) -> None:
    space = space_of(name)
    with torch.device("meta"):
        network = space.network(space.smallest)
    # The released code writes the layer behind the average as a 1x1 convolution.
    convolutions = [
        each
        for part, each in network.named_modules()
        if isinstance(each, nn.Conv2d) or part == "head.features"
    ]
    assert len(network.tap_names) == len(convolutions) == layers


def test_the_layers_of_the_imagenet_space_have_the_published_shapes() -> None:
    spec = space_spec("rnas-cl-imagenet", image_shape=(3, 32, 32))
    assert isinstance(spec, ChannelSpec)
    space = ChannelSpace(spec)
    taps: list[torch.Tensor] = []
    with torch.no_grad():
        space.network(space.largest).eval()(torch.rand(1, 3, 32, 32), taps=taps)
    shapes = [(tap.shape[1], tap.shape[2]) for tap in taps]

    def stage(blocks: int, before: int, width: int, size_in: int, size: int) -> list[Any]:
        first = [(6 * before, size_in), (6 * before, size), (width, size)]
        return first + [(6 * width, size), (6 * width, size), (width, size)] * (blocks - 1)

    assert shapes == [
        *[(16, 16)] * 3,
        *stage(3, 16, 28, 16, 8),
        *stage(3, 28, 40, 8, 4),
        *stage(3, 40, 96, 4, 2),
        *stage(4, 96, 128, 2, 2),
        *stage(4, 128, 216, 2, 1),
        (1296, 1),
        (1984, 1),
    ]


def test_the_imagenet_space_has_the_published_options() -> None:
    space = space_of("imagenet")
    assert (space.spec.image_shape, space.spec.classes) == ((3, 224, 224), 100)
    found = [(len(stage.widths), stage.widths[0], stage.widths[-1]) for stage in space.spec.stages]
    assert found == [
        (2, 16, 12),
        (4, 28, 16),
        (4, 40, 16),
        (7, 96, 48),
        (8, 128, 72),
        (14, 216, 112),
    ]
