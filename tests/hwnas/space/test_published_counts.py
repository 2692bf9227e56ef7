"""The spaces are the published ones: their parameters and multiply-accumulates are.

The published counts are of networks whose convolutions have biases. Ours leave them out, as batch
normalization cancels them; here they are added back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from hwnas.space.channel_space import ChannelSpace
from hwnas.space.channel_spec import CHANNEL_SPACES

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
                                              ("l", 17)])  # fmt: skip
def test_a_space_has_the_published_depth(name: str, blocks: int) -> None:
    assert len(space_of(name).options) == blocks


def test_tutor_students_are_every_convolution() -> None:
    space = space_of("s7")
    with torch.device("meta"):
        network = space.network(space.smallest)
    convolutions = [each for each in network.modules() if isinstance(each, nn.Conv2d)]
    assert len(network.tap_names) == len(convolutions) == 1 + 3 * 21
