from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.core.errors import ConfigError
from hwnas.space.blocks import InvertedResidual
from hwnas.space.chain_space import all_genotypes
from hwnas.space.genotype import Genotype
from hwnas.space.mbconv_space import MBConvSpace
from hwnas.space.mbconv_spec import MBCONV_SPACES, MBConvSpec, MBConvStage
from hwnas.space.operators import module_of_operator

pytestmark = pytest.mark.usefixtures("one_thread")

# Sizes that strides do not divide, widths that are no multiples of 8, two stages of equal width.
SMALL = MBConvSpace(
    MBConvSpec(
        name="small",
        image_shape=(2, 13, 9),
        classes=4,
        stem=6,
        stem_stride=2,
        stages=(
            MBConvStage(blocks=2, width=6),
            MBConvStage(blocks=3, width=10, stride=2),
            MBConvStage(blocks=1, width=10),
        ),
        kernels=(3, 5),
        expansions=(1, 4),
    )
)
CHOICES = st.tuples(*(st.integers(0, len(options) - 1) for options in SMALL.options))


# Genotypes


@given(choices=CHOICES)
def test_choices_and_genotypes_are_the_same_thing(choices: tuple[int, ...]) -> None:
    genotype = SMALL.genotype_of_choices(choices)
    assert SMALL.choices(genotype) == choices
    assert SMALL.genotype(list(genotype.blocks)) == genotype
    assert hash(SMALL.genotype(genotype.blocks)) == hash(genotype)
    assert genotype.widths == (6, 6, 10, 10, 10, 10)


def test_the_corners_cost_the_most_and_the_least() -> None:
    assert SMALL.largest.blocks == ("k5-e4-se",) * 6
    assert SMALL.smallest.blocks == ("k3-e1", "skip", "k3-e1", "skip", "skip", "k3-e1")
    generator = np.random.default_rng(0)
    for _ in range(50):
        genotype = SMALL.random_genotype(generator)
        for count in (SMALL.macs, SMALL.parameters):
            assert count(SMALL.smallest) <= count(genotype) <= count(SMALL.largest)


def test_random_genotypes_take_every_option_about_as_often() -> None:
    generator = np.random.default_rng(0)
    drawn = [SMALL.choices(SMALL.random_genotype(generator)) for _ in range(2_000)]
    for index, options in enumerate(SMALL.options):
        counts = np.bincount([choices[index] for choices in drawn], minlength=len(options))
        expected = len(drawn) / len(options)
        assert ((counts - expected) ** 2 / expected).sum() < 26  # chi-squared of 8, p < 0.001


def test_all_genotypes_are_all_and_each_once() -> None:
    tiny = MBConvSpace(
        replace(SMALL.spec, stages=SMALL.spec.stages[:1], kernels=(3,), expansions=(1, 4))
    )
    genotypes = all_genotypes(tiny)
    assert len(set(genotypes)) == len(genotypes) == 4 * 5
    assert {tiny.largest, tiny.smallest} < set(genotypes)


@pytest.mark.parametrize(
    ("blocks", "says", "hint"),
    [
        (["k3-e1"] * 5, "small has 6 searched blocks, not 5", ""),
        ([], "small has 6 searched blocks, not 0", ""),
        (["k3-e1"] * 5 + ["k3-e2"], "block 6 of small cannot be `k3-e2`", "did you mean `k3-e"),
        (["skip"] + ["k3-e1"] * 5, "block 1 of small cannot be `skip`", "its options are k5-e4-se"),
    ],
)
def test_blocks_that_the_space_does_not_have_are_refused(
    blocks: list[str], says: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        SMALL.genotype(blocks)
    assert caught.value.hint.startswith(hint)
    genotype = replace(SMALL.largest, blocks=tuple(blocks))
    for use in (SMALL.choices, SMALL.network, SMALL.macs, SMALL.parameters, SMALL.operators_of):
        with pytest.raises(ConfigError, match=says):
            use(genotype)


@pytest.mark.parametrize("choices", [(8, 0, 0, 0, 0, 0), (0, 9, 0, 0, 0, 0), (0, -1, 0, 0, 0, 0)])
def test_an_option_that_a_block_does_not_have_is_refused(choices: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"block [12] of small has no option (8|9|-1)"):
        SMALL.genotype_of_choices(choices)


def test_a_genotype_that_contradicts_itself_is_refused() -> None:
    genotype = replace(SMALL.largest, widths=(6, 6, 10, 10, 10, 12))
    with pytest.raises(ConfigError, match="contradicts itself") as caught:
        SMALL.choices(genotype)
    assert "[6, 6, 10, 10, 10, 10]" in caught.value.hint


def test_a_genotype_of_another_space_is_refused() -> None:
    with pytest.raises(ConfigError, match="a genotype of other is none of small"):
        SMALL.network(Genotype(space="other", widths=(6,), blocks=("k3-e1",)))


# Operators


@pytest.mark.parametrize("name", ["mbconv-32", "mbconv-224"])
def test_a_named_space_has_its_operators(name: str) -> None:
    space = MBConvSpace(MBCONV_SPACES[name])
    operators = space.operators()
    # A stage's first block and all its others: 18 each. And the stem and the head.
    assert len({operator.key for operator in operators}) == len(operators) == 5 * 2 * 18 + 2
    assert [len(options) for options in space.options] == [18, 19] + [18, 19, 19] * 4
    smallest = {key.in_shape[1:] for key in space.operators_of(space.smallest)[-2:]}
    assert smallest <= {(4, 4), (7, 7), (8, 8), (14, 14)}


@given(choices=CHOICES)
def test_a_network_runs_operators_of_its_space(choices: tuple[int, ...]) -> None:
    genotype = SMALL.genotype_of_choices(choices)
    keys = SMALL.operators_of(genotype)
    assert set(keys) <= {operator.key for operator in SMALL.operators()}
    run = [block for block in genotype.blocks if block != "skip"]
    assert [key.kind for key in keys] == ["stem", *["mbconv"] * len(run), "head"]
    for block, key in zip(run, keys[1:-1], strict=True):
        assert f"k{key.kernel}-" in block
        assert block.endswith("-se") == (key.variant == "hswish-se")
        assert ("-e1" in block) == (key.hidden == 0)
    for before, after in itertools.pairwise(keys):
        assert before.out_shape == after.in_shape


def test_transitions_hold_every_operator_and_no_other() -> None:
    generator = np.random.default_rng(0)
    by_networks = {
        key for _ in range(500) for key in SMALL.operators_of(SMALL.random_genotype(generator))
    }
    in_links = {key for link in SMALL.transitions for row in link for key in row}
    listed = [operator.key for operator in SMALL.operators()]
    assert by_networks == in_links - {None} == set(listed)
    assert len(listed) == len(by_networks)
    sizes = [1, 1, *(len(options) for options in SMALL.options), 1]
    assert [(len(link), len(link[0])) for link in SMALL.transitions] == list(
        itertools.pairwise(sizes)
    )


def test_operators_of_another_batch_and_precision_are_other_operators() -> None:
    other = MBConvSpace(SMALL.spec, batch=4, dtype="fp16")
    alone = {operator.key for operator in SMALL.operators()}
    assert all(key.dtype == "fp32" for key in alone)
    for operator in other.operators():
        assert operator.key not in alone
        assert replace(operator.key, batch=1, dtype="fp32") in alone
        assert operator.input_shape == (4, *operator.key.in_shape)


# Networks


@settings(max_examples=25)
@given(choices=CHOICES)
def test_operators_composed_compute_what_the_network_computes(choices: tuple[int, ...]) -> None:
    genotype = SMALL.genotype_of_choices(choices)
    network = SMALL.network(genotype).eval()
    run = [block for block in network.blocks if isinstance(block, InvertedResidual)]
    features = images = torch.rand(2, *SMALL.spec.image_shape)
    parts = [network.stem, *run, network.head]
    with torch.no_grad():
        for key, part in zip(SMALL.operators_of(genotype), parts, strict=True):
            assert tuple(features.shape[1:]) == key.in_shape
            module = module_of_operator(key)
            module.load_state_dict(part.state_dict())  # same names, same shapes
            features = module(features)
        torch.testing.assert_close(features, network(images))
    assert features.shape == (2, 4)
    assert SMALL.parameters(genotype) == sum(each.numel() for each in network.parameters())


def test_a_blocks_weights_have_one_name_whatever_is_skipped_before_it() -> None:
    whole = SMALL.network(SMALL.genotype(["k3-e4"] * 6)).state_dict()
    cut = SMALL.network(SMALL.genotype(["k3-e4", "skip"] + ["k3-e4"] * 4)).state_dict()
    missing = {name for name in whole if name not in cut}
    assert missing
    assert all(name.startswith("blocks.1.") for name in missing)
    assert all(value.shape == whole[name].shape for name, value in cut.items())


def test_a_whole_network_can_be_measured_as_a_chain_of_operators() -> None:
    genotype = SMALL.genotype(["k3-e1", "skip", "k5-e4-se", "k3-e4", "skip", "k3-e1"])
    workload = SMALL.workload(genotype)
    assert workload.name == "small k3-e1 skip k5-e4-se k3-e4 skip k3-e1"
    module = workload.build()
    assert not module.training
    assert module(torch.rand(workload.input_shape)).shape == (1, 4)
    assert [part.key for part in workload.parts] == SMALL.operators_of(genotype)
    chained = torch.nn.Sequential(*(part.build() for part in workload.parts))
    parameters = sum(parameter.numel() for parameter in chained.parameters())
    assert parameters == SMALL.parameters(genotype)


def test_a_named_space_has_networks_that_run() -> None:
    space = MBConvSpace(MBCONV_SPACES["mbconv-32"])
    with torch.no_grad():
        logits = space.network(space.smallest).eval()(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()
