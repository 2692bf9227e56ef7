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
from hwnas.space.chain_space import all_genotypes
from hwnas.space.genotype import Genotype
from hwnas.space.mbconv.resize import Resize
from hwnas.space.mbconv.space import MBConvSpace
from hwnas.space.mbconv.spec import MBCONV_SPACES, MBConvSpec, MBConvStage
from hwnas.space.operators import module_of_operator
from hwnas_profilers.workload import Chain

if TYPE_CHECKING:
    from collections.abc import Callable

    MacCounter = Callable[[nn.Module, torch.Tensor], int]

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
            MBConvStage(blocks=2, widths=(6,)),
            MBConvStage(blocks=3, widths=(10,), stride=2),
            MBConvStage(blocks=1, widths=(10,)),
        ),
        kernels=(3, 5),
        expansions=(1, 4),
    )
)
# Widths too: a shortcut from the stem, none, and between stages; stages of one, two and three.
WIDE = MBConvSpace(
    replace(
        SMALL.spec,
        name="wide",
        stages=(
            MBConvStage(blocks=2, widths=(9, 6)),
            MBConvStage(blocks=3, widths=(16, 12, 10), stride=2),
            MBConvStage(blocks=2, widths=(12, 10)),
            MBConvStage(blocks=2, widths=(12,)),
        ),
    )
)
SPACES = {"one width": SMALL, "widths": WIDE}


@st.composite
def drawn(draw: st.DrawFn, space: MBConvSpace | None = None) -> tuple[MBConvSpace, tuple[int, ...]]:
    """A space, and an option of each of its blocks."""
    space = space or draw(st.sampled_from(list(SPACES.values())))
    return space, tuple(draw(st.integers(0, len(each) - 1)) for each in space.options)


# Genotypes


@given(drawn())
def test_choices_and_genotypes_are_the_same_thing(
    case: tuple[MBConvSpace, tuple[int, ...]],
) -> None:
    space, choices = case
    genotype = space.genotype_of_choices(choices)
    assert space.choices(genotype) == choices
    assert space.genotype(list(genotype.blocks)) == genotype
    assert hash(space.genotype(genotype.blocks)) == hash(genotype)


def test_widths_are_those_of_the_stage_or_of_the_name() -> None:
    assert SMALL.largest.widths == SMALL.smallest.widths == (6, 6, 10, 10, 10, 10)
    blocks = ["k3-e1-w9", "skip-w6", "k5-e4-se-w12", "k3-e4-w16", "skip-w10", "k3-e1-w10",
              "skip-w12", "k3-e4", "skip"]  # fmt: skip
    genotype = WIDE.genotype(blocks)
    assert genotype.widths == (9, 6, 12, 16, 10, 10, 12, 12, 12)
    assert genotype.label == " ".join(blocks)


def test_the_corners_cost_the_most_and_the_least() -> None:
    assert SMALL.largest.blocks == ("k5-e4-se",) * 6
    assert SMALL.smallest.blocks == ("k3-e1", "skip", "k3-e1", "skip", "skip", "k3-e1")
    assert WIDE.largest.widths == (9, 9, 16, 16, 16, 12, 12, 12, 12)
    assert WIDE.smallest.blocks == (
        "k3-e1-w6", "skip-w6", "k3-e1-w10", "skip-w10", "skip-w10", "k3-e1-w10", "skip-w10",
        "k3-e1", "skip",
    )  # fmt: skip
    generator = np.random.default_rng(0)
    for space in SPACES.values():
        for _ in range(15):
            genotype = space.random_genotype(generator)
            for count in (space.macs, space.parameters):
                assert count(space.smallest) <= count(genotype) <= count(space.largest)


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
        (["k3-e1-w6"] * 6, "block 1 of small cannot be `k3-e1-w6`", "did you mean `k3-e1"),
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


def test_the_nearest_of_an_option_with_a_width_has_one() -> None:
    blocks = list(WIDE.smallest.blocks)
    for name, nearest in (("skip", "skip-w"), ("k5-e4-se-w13", "k5-e4-se-w1")):
        with pytest.raises(ConfigError, match=f"block 4 of wide cannot be `{name}`") as caught:
            WIDE.genotype([*blocks[:3], name, *blocks[4:]])
        assert caught.value.hint.startswith(f"did you mean `{nearest}")


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
    assert all(operator.key.kind != "resize" for operator in operators)
    assert [len(options) for options in space.options] == [18, 19] + [18, 19, 19] * 4
    smallest = {key.in_shape[1:] for key in space.operators_of(space.smallest)[-2:]}
    assert smallest <= {(4, 4), (7, 7), (8, 8), (14, 14)}


@given(drawn())
def test_a_network_runs_operators_of_its_space(case: tuple[MBConvSpace, tuple[int, ...]]) -> None:
    space, choices = case
    genotype = space.genotype_of_choices(choices)
    keys = space.operators_of(genotype)
    assert set(keys) <= {operator.key for operator in space.operators()}
    blocks = zip(genotype.blocks, (6, *genotype.widths), genotype.widths, strict=False)
    run = [each for each in blocks if "skip" not in each[0] or each[1] != each[2]]
    kinds = ["resize" if "skip" in block else "mbconv" for block, _, _ in run]
    assert [key.kind for key in keys] == ["stem", *kinds, "head"]
    for (block, width_in, width), key in zip(run, keys[1:-1], strict=True):
        assert (key.in_shape[0], key.out_shape[0]) == (width_in, width)
        if key.kind == "resize":
            assert (key.kernel, key.stride, key.hidden, key.variant) == (0, 1, 0, "")
            assert key.in_shape[1:] == key.out_shape[1:]
            continue
        assert f"k{key.kernel}-" in block
        assert ("-se" in block) == (key.variant == "hswish-se")
        assert ("-e1" in block) == (key.hidden == 0)
    for before, after in itertools.pairwise(keys):
        assert before.out_shape == after.in_shape


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_transitions_hold_every_operator_and_no_other(space: MBConvSpace) -> None:
    generator = np.random.default_rng(0)
    by_networks = {
        key for _ in range(1_500) for key in space.operators_of(space.random_genotype(generator))
    }
    in_links = {key for link in space.transitions for row in link for each in row for key in each}
    listed = [operator.key for operator in space.operators()]
    assert by_networks == in_links == set(listed)
    assert len(listed) == len(by_networks)
    sizes = [1, 1, *(len(options) for options in space.options), 1]
    assert [(len(link), len(link[0])) for link in space.transitions] == list(
        itertools.pairwise(sizes)
    )


def test_a_skip_runs_nothing_just_where_widths_are_equal() -> None:
    before, here = WIDE.options[2], WIDE.options[3]
    link = WIDE.transitions[4]
    for name_before, row in zip(before, link, strict=True):
        for name, entry in zip(here, row, strict=True):
            if not name.startswith("skip"):
                assert len(entry) == 1
                continue
            width_in, width = (int(each.rpartition("-w")[2]) for each in (name_before, name))
            assert len(entry) == (width_in != width)
            for key in entry:
                assert str(key) == f"resize {width_in}x4x3->{width}x4x3 k0 s1 h0 b1 fp32"


# At 32 pixels stem and first stage share a width and a stride, so that 36 operators are the same.
@pytest.mark.parametrize(("name", "count"), [("mbconv-32-widths", 792), ("mbconv-224-widths", 828)])
def test_a_named_space_with_widths_has_a_table_of_moderate_size(name: str, count: int) -> None:
    space = MBConvSpace(MBCONV_SPACES[name])
    keys = [operator.key for operator in space.operators()]
    assert len(set(keys)) == len(keys) == count
    # From each width of a stage to each other one.
    assert sum(key.kind == "resize" for key in keys) == 4 * 2 + 3 * 2
    assert [len(options) for options in space.options] == [
        36, 38, *(36, 38, 38) * 3, 54, 57, 57,
    ]  # fmt: skip
    plain = MBConvSpace(MBCONV_SPACES[name.removesuffix("-widths")])
    assert {operator.key for operator in plain.operators()} <= set(keys)
    assert space.macs(space.largest) == plain.macs(plain.largest)


def test_operators_of_another_batch_and_precision_are_other_operators() -> None:
    other = MBConvSpace(SMALL.spec, batch=4, dtype="fp16")
    alone = {operator.key for operator in SMALL.operators()}
    assert all(key.dtype == "fp32" for key in alone)
    for operator in other.operators():
        assert operator.key not in alone
        assert replace(operator.key, batch=1, dtype="fp32") in alone
        assert operator.input_shape == (4, *operator.key.in_shape)


# Networks


@settings(max_examples=40)
@given(drawn())
def test_operators_composed_compute_what_the_network_computes(
    case: tuple[MBConvSpace, tuple[int, ...]],
) -> None:
    space, choices = case
    genotype = space.genotype_of_choices(choices)
    network = space.network(genotype).eval()
    run = [block for block in network.blocks if not isinstance(block, nn.Identity)]
    features = images = torch.rand(2, *space.spec.image_shape)
    parts = [network.stem, *run, network.head]
    with torch.no_grad():
        for key, part in zip(space.operators_of(genotype), parts, strict=True):
            assert tuple(features.shape[1:]) == key.in_shape
            module = module_of_operator(key)
            module.load_state_dict(part.state_dict())  # same names, same shapes
            features = module(features)
        torch.testing.assert_close(features, network(images))
    assert features.shape == (2, 4)
    keys = space.operators_of(genotype)
    counted = sum(each.numel() for each in network.parameters())
    assert space.parameters(genotype) == counted == sum(map(space.parameters_of, keys))


@settings(max_examples=15)
@given(drawn(WIDE))
def test_macs_are_those_that_happen(
    counted_macs: MacCounter, case: tuple[MBConvSpace, tuple[int, ...]]
) -> None:
    space, choices = case
    genotype = space.genotype_of_choices(choices)
    image = torch.rand(1, *space.spec.image_shape)
    assert space.macs(genotype) == counted_macs(space.network(genotype), image)


def test_layers_that_may_learn_are_those_of_blocks_that_are_run() -> None:
    network = WIDE.network(WIDE.smallest)  # of skips alone, where they can be
    kinds = [type(block) for block in network.blocks]
    assert [kinds.count(each) for each in (nn.Identity, Resize)] == [5, 0]
    assert network.tap_names == (
        "stem",
        *(
            f"block{block}.{part}"
            for block in (1, 3, 6, 8)
            for part in ("expand", "depthwise", "project")
        ),
    )
    taps: list[torch.Tensor] = []
    network.eval()(torch.rand(1, *WIDE.spec.image_shape), taps)
    assert len(taps) == len(network.tap_names)
    resized = WIDE.genotype(["k3-e1-w9", "skip-w6", *WIDE.smallest.blocks[2:]])
    assert WIDE.network(resized).tap_names == network.tap_names
    assert isinstance(WIDE.network(resized).blocks[1], Resize)


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
    assert isinstance(workload, Chain)
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
