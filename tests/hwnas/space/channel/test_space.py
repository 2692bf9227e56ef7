from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hwnas.core.errors import ConfigError
from hwnas.space.blocks import InvertedResidual, Normalize, hidden_width
from hwnas.space.chain_space import all_genotypes
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.channel.spec import CHANNEL_SPACES, ChannelSpec, StageSpec
from hwnas.space.genotype import Genotype
from hwnas.space.memory_format import channels_last
from hwnas.space.operators import macs_of_operator, module_of_operator
from hwnas_profilers.workload import OperatorKey

if TYPE_CHECKING:
    from collections.abc import Callable

    MacCounter = Callable[[nn.Module, torch.Tensor], int]

pytestmark = pytest.mark.usefixtures("one_thread")

XS = ChannelSpace(CHANNEL_SPACES["rnas-cl-xs"])
# Sizes that strides do not divide, another kernel, both strides within one stage.
ODD = ChannelSpace(
    ChannelSpec(
        name="odd",
        image_shape=(3, 15, 11),
        classes=4,
        stem=6,
        stem_stride=2,
        stages=(
            StageSpec(blocks=2, widths=(6, 5)),
            StageSpec(blocks=2, widths=(10, 6, 3), stride=2),
        ),
        kernel=5,
        expansion=3,
    )
)
SPACES_UNDER_TEST = pytest.mark.parametrize("space", [XS, ODD], ids=["xs", "odd"])


def drawn(space: ChannelSpace, seed: int) -> Genotype:
    return space.random_genotype(np.random.default_rng(seed))


# Genotypes


def test_the_corners_are_the_widest_and_the_narrowest() -> None:
    for index, options in enumerate(ODD.options):
        assert ODD.largest.widths[index] == max(options)
        assert ODD.smallest.widths[index] == min(options)


@SPACES_UNDER_TEST
@given(seed=st.integers(0, 2**32))
def test_choices_and_genotypes_are_the_same_thing(space: ChannelSpace, seed: int) -> None:
    genotype = drawn(space, seed)
    assert space.genotype_of_choices(space.choices(genotype)) == genotype
    assert space.genotype(genotype.widths) == genotype
    assert hash(space.genotype(list(genotype.widths))) == hash(genotype)


@pytest.mark.parametrize(
    ("widths", "says", "hint"),
    [
        ([6, 6, 10], "odd has 4 searched blocks, not 3", ""),
        ([6, 6, 10, 10, 10], "odd has 4 searched blocks, not 5", ""),
        ([], "odd has 4 searched blocks, not 0", ""),
        ([6, 6, 10, 7], "block 4 of odd cannot have width 7", "its options are 10, 6, 3"),
        ([6, 0, 10, 10], "block 2 of odd cannot have width 0", "its options are 6, 5"),
        ([-6, 6, 10, 10], "block 1 of odd cannot have width -6", "its options are 6, 5"),
    ],
)
def test_widths_that_the_space_does_not_have_are_refused(
    widths: list[int], says: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        ODD.genotype(widths)
    assert caught.value.hint == hint
    for use in (ODD.choices, ODD.network, ODD.macs, ODD.parameters, ODD.operators_of):
        with pytest.raises(ConfigError, match=says):
            use(Genotype(space="odd", widths=tuple(widths)))


def test_a_genotype_of_another_space_is_refused() -> None:
    for use in (ODD.choices, ODD.network, ODD.macs):
        with pytest.raises(ConfigError, match="a genotype of rnas-cl-xs is none of odd"):
            use(XS.largest)


def test_random_genotypes_take_every_option_about_as_often() -> None:
    generator = np.random.default_rng(0)
    drawn = [ODD.choices(ODD.random_genotype(generator)) for _ in range(3_000)]
    for index, options in enumerate(ODD.options):
        counts = np.bincount([choices[index] for choices in drawn], minlength=len(options))
        expected = len(drawn) / len(options)
        assert ((counts - expected) ** 2 / expected).sum() < 16  # chi-squared, p < 0.001
    # Blocks are drawn independently.
    correlation = np.corrcoef(np.array(drawn).T)
    assert np.abs(correlation - np.eye(4)).max() < 0.1


def test_random_genotypes_are_repeated_by_their_generator() -> None:
    assert drawn(XS, 5) == drawn(XS, 5)
    assert len({drawn(XS, seed) for seed in range(20)}) > 15


def test_all_genotypes_are_all_and_each_once() -> None:
    genotypes = all_genotypes(ODD)
    assert len(set(genotypes)) == len(genotypes) == 2 * 2 * 3 * 3
    assert {ODD.largest, ODD.smallest} < set(genotypes)


# Operators


@SPACES_UNDER_TEST
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32))
def test_operators_composed_have_the_shapes_of_the_network(space: ChannelSpace, seed: int) -> None:
    genotype = drawn(space, seed)
    features = torch.rand(2, *space.spec.image_shape)
    expected = space.network(genotype).eval()(features).shape
    for key in space.operators_of(genotype):
        assert tuple(features.shape[1:]) == key.in_shape
        features = module_of_operator(key)(features)
        assert features.numel() == 2 * np.prod(key.out_shape)
    assert features.shape == expected == (2, space.spec.classes)


@SPACES_UNDER_TEST
def test_operators_composed_compute_what_the_network_computes(space: ChannelSpace) -> None:
    network = space.network(drawn(space, 7)).eval()
    images = torch.rand(3, *space.spec.image_shape)
    features = images
    parts = [network.stem, *network.blocks, network.head]
    with torch.no_grad():
        for key, part in zip(space.operators_of(drawn(space, 7)), parts, strict=True):
            module = module_of_operator(key)
            module.load_state_dict(part.state_dict())  # same names, same shapes
            features = module(features)
        torch.testing.assert_close(features, network(images))


@SPACES_UNDER_TEST
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32))
def test_macs_are_those_that_happen(
    space: ChannelSpace, counted_macs: MacCounter, seed: int
) -> None:
    genotype = drawn(space, seed)
    image = torch.rand(1, *space.spec.image_shape)
    assert space.macs(genotype) == counted_macs(space.network(genotype), image)


@SPACES_UNDER_TEST
def test_macs_of_every_operator_are_those_that_happen(
    space: ChannelSpace, counted_macs: MacCounter
) -> None:
    for operator in space.operators():
        inputs = torch.rand(1, *operator.key.in_shape)
        assert macs_of_operator(operator.key) == counted_macs(operator.build(), inputs), operator


@SPACES_UNDER_TEST
@given(seed=st.integers(0, 2**32))
def test_a_network_runs_operators_of_its_space(space: ChannelSpace, seed: int) -> None:
    genotype = drawn(space, seed)
    keys = space.operators_of(genotype)
    known = {operator.key for operator in space.operators()}
    assert set(keys) <= known
    assert [key.kind for key in keys] == ["stem", *["mbconv"] * len(genotype.widths), "head"]
    assert [key.out_shape[0] for key in keys[1:-1]] == list(genotype.widths)
    for before, after in itertools.pairwise(keys):
        assert before.out_shape == after.in_shape


@SPACES_UNDER_TEST
def test_transitions_hold_every_operator_and_no_other(space: ChannelSpace) -> None:
    by_networks = {key for seed in range(300) for key in space.operators_of(drawn(space, seed))}
    in_links = {key for link in space.transitions for row in link for (key,) in row}
    listed = [operator.key for operator in space.operators()]
    assert by_networks == in_links == set(listed)
    assert len(listed) == len(in_links)


def test_operators_of_another_batch_are_other_operators() -> None:
    batched = ChannelSpace(XS.spec, batch=4)
    alone = {operator.key for operator in XS.operators()}
    for operator in batched.operators():
        assert operator.key not in alone
        assert replace(operator.key, batch=1) in alone
        assert operator.input_shape == (4, *operator.key.in_shape)


def test_a_whole_network_can_be_measured() -> None:
    workload = XS.workload(XS.smallest)
    module = workload.build()
    assert not module.training
    assert module(torch.rand(workload.input_shape)).shape == (1, 10)
    assert "rnas-cl-xs 8-8-16-16-32-32" in workload.name


def test_an_operator_of_another_space_is_refused() -> None:
    with pytest.raises(ConfigError, match="no operator of kind `lstm`") as caught:
        module_of_operator(OperatorKey(kind="lstm", in_shape=(1, 1, 1), out_shape=(1, 1, 1)))
    assert "known: stem" in caught.value.hint


# The large spaces take long to run; their published counts check them.
@pytest.mark.parametrize("name", ["rnas-cl-xs", "rnas-cl-s3", "rnas-cl-s5", "rnas-cl-s7"])
def test_a_named_space_has_networks_that_run(name: str) -> None:
    space = ChannelSpace(CHANNEL_SPACES[name])
    with torch.no_grad():
        logits = space.network(space.smallest).eval()(torch.rand(2, *space.spec.image_shape))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


def test_parameters_are_those_of_the_network() -> None:
    genotype = drawn(ODD, 3)
    network = ODD.network(genotype)
    assert ODD.parameters(genotype) == sum(each.numel() for each in network.parameters())


# Blocks


@pytest.mark.parametrize(
    ("width", "expansion", "hidden"),
    [(16, 6, 96), (12, 6, 72), (10, 6, 64), (14, 6, 88), (1, 2, 8)],
)
def test_hidden_widths_are_multiples_of_eight(width: int, expansion: int, hidden: int) -> None:
    assert hidden_width(width, expansion) == hidden


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "stride", "shortcut"),
    [(8, 8, 1, True), (8, 4, 1, False), (8, 8, 2, False)],
)
def test_the_input_is_added_where_shapes_are_equal(
    in_channels: int, out_channels: int, stride: int, shortcut: bool
) -> None:
    block = InvertedResidual(in_channels, out_channels, hidden=16, kernel=3, stride=stride).eval()
    nn.init.zeros_(block.get_parameter("project.0.weight"))
    features = torch.rand(1, in_channels, 4, 4)
    output = block(features)
    assert torch.equal(output, features) if shortcut else not output.any()


def test_normalization_is_within_the_network() -> None:
    normalize = Normalize(2)
    normalize.set_statistics([0.5, 0.1], [0.25, 0.0])
    images = torch.rand(4, 2, 3, 3)
    out = normalize(images)
    torch.testing.assert_close(out[:, 0], (images[:, 0] - 0.5) / 0.25)
    # A channel that never varies is shifted, not blown up.
    torch.testing.assert_close(out[:, 1], images[:, 1] - 0.1)
    assert set(normalize.state_dict()) == {"mean", "std"}


def test_taps_are_named_and_ordered() -> None:
    network = ODD.network(ODD.largest).eval()
    taps: list[torch.Tensor] = []
    images = torch.rand(2, 3, 15, 11)
    with torch.no_grad():
        logits = network(images, taps=taps)
        torch.testing.assert_close(logits, network(images))
    assert len(taps) == len(network.tap_names) == 1 + 3 * 4
    channels = dict(zip(network.tap_names, (tap.shape[1] for tap in taps), strict=True))
    assert channels["stem"] == 6
    assert channels["block3.expand"] == channels["block3.depthwise"] == hidden_width(6, 3)
    assert channels["block3.project"] == 10


def test_the_memory_layout_changes_no_result() -> None:
    network = ODD.network(ODD.largest).eval()
    images = torch.rand(2, 3, 15, 11)
    with torch.no_grad():
        before = network(images)
        after = channels_last(network)(images)
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)
