from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hwnas.core.errors import ConfigError, LatencyTableError
from hwnas.latency.resources import SpaceCosts
from hwnas.space.cells.nodes import Edge, NodeOption
from hwnas.space.cells.published import PUBLISHED
from hwnas.space.cells.space import CellSpace
from hwnas.space.cells.spec import CELL_SPACES, CellSpec
from hwnas.space.chain_space import distinct_rows
from hwnas.space.genotype import Genotype
from hwnas.space.operators import module_of_operator
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.onnxruntime_runner import OnnxRuntimeRunner
from hwnas_profilers.workload import Chain

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hwnas.conftest import TableMaker

    MacCounter = Callable[[nn.Module, torch.Tensor], int]

pytestmark = pytest.mark.usefixtures("one_thread")

# Odd sizes, channels that are no multiples of 4, normal cells before, between and behind.
SMALL = CellSpace(
    CellSpec(name="small", image_shape=(2, 13, 9), classes=4, cells=4, channels=3, nodes=3)
)
DARTS = CellSpace(CELL_SPACES["darts"])
BLOCKS = ["sep3@0+skip@1", "dil5@1+max3@2", "skip@2+skip@3",
          "sep5@0+avg3@1", "skip@0+skip@2", "sep3@1+dil3@3"]  # fmt: skip


@st.composite
def drawn(draw: st.DrawFn, space: CellSpace = SMALL) -> tuple[int, ...]:
    return tuple(draw(st.integers(0, len(each) - 1)) for each in space.options)


# Genotypes


@given(drawn())
def test_choices_and_genotypes_are_the_same_thing(choices: tuple[int, ...]) -> None:
    genotype = SMALL.genotype_of_choices(choices)
    assert SMALL.choices(genotype) == choices
    assert SMALL.genotype(list(genotype.blocks)) == genotype
    assert genotype.options == genotype.blocks
    for name in genotype.blocks:
        option = NodeOption.parse(name)
        assert option.name == name
        assert option.edges[0].source < option.edges[1].source


def test_options_are_all_pairs_of_operations_on_two_different_sources() -> None:
    counts = [49, 3 * 49, 6 * 49, 10 * 49]
    assert [len(options) for options in DARTS.options] == 2 * counts
    assert all(len(set(options)) == len(options) for options in DARTS.options)
    assert DARTS.block_names[3:5] == ("normal 4", "reduce 1")
    last = {NodeOption.parse(name) for name in DARTS.options[3]}
    assert {edge.source for option in last for edge in option.edges} == set(range(5))
    assert NodeOption(edges=(Edge(1, "dil5"), Edge(4, "skip"))) in last
    assert not any("none" in name for options in DARTS.options for name in options)


def test_the_corners_cost_the_most_and_the_least() -> None:
    assert set(SMALL.largest.blocks[0].split("+")) == {"sep5@0", "sep5@1"}
    assert SMALL.smallest.blocks[2] == "skip@2+skip@3"
    # Between sizes a skip is made of convolutions, and a pool is not.
    assert SMALL.smallest.blocks[3] == "avg3@0+avg3@1"
    generator = np.random.default_rng(0)
    for _ in range(10):
        genotype = SMALL.random_genotype(generator)
        for count in (SMALL.macs, SMALL.parameters):
            assert count(SMALL.smallest) <= count(genotype) <= count(SMALL.largest)


def test_random_genotypes_take_every_option_about_as_often() -> None:
    generator = np.random.default_rng(0)
    drawn = [SMALL.choices(SMALL.random_genotype(generator)) for _ in range(3_000)]
    for index, options in enumerate(SMALL.options):
        counts = np.bincount([choices[index] for choices in drawn], minlength=len(options))
        expected = len(drawn) / len(options)
        freedom = len(options) - 1
        excess = ((counts - expected) ** 2 / expected).sum() - freedom
        assert excess < 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize(
    ("blocks", "says", "hint"),
    [
        (BLOCKS[:5], "small has 6 searched blocks, not 5", ""),
        (["sep3@0+skip@2", *BLOCKS[1:]], "node normal 1 of small cannot be `sep3@0", "did you m"),
        (["skip@1+sep3@0", *BLOCKS[1:]], "cannot be `skip@1.sep3@0`", "the lower first, such as"),
        ([*BLOCKS[:3], "none@0+skip@1", *BLOCKS[4:]], "node reduce 1 of small", "it is two of max"),
        (["sep3@0+sep3@0", *BLOCKS[1:]], "node normal 1", "two different sources"),
        (["skip", *BLOCKS[1:]], "node normal 1 of small cannot be `skip`", "such as `sep5@0"),
    ],
)
def test_nodes_that_the_space_does_not_have_are_refused(
    blocks: list[str], says: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        SMALL.genotype(blocks)
    assert hint in caught.value.hint


def test_genotypes_of_other_spaces_are_refused() -> None:
    other = Genotype(space="other", widths=(), blocks=tuple(BLOCKS))
    wide = Genotype(space="small", widths=(8,), blocks=tuple(BLOCKS))
    for use in (SMALL.choices, SMALL.network, SMALL.macs, SMALL.parameters, SMALL.operators_of):
        with pytest.raises(ConfigError, match="a genotype of other is none of small"):
            use(other)
        with pytest.raises(ConfigError, match="contradicts itself"):
            use(wide)


# Operators


def test_transitions_hold_every_operator_and_no_other() -> None:
    generator = np.random.default_rng(0)
    by_networks = {
        key for _ in range(400) for key in SMALL.operators_of(SMALL.random_genotype(generator))
    }
    listed = [operator.key for operator in SMALL.operators()]
    assert by_networks == set(listed)
    assert len(listed) == len(by_networks)
    sizes = [1, 1, *(len(options) for options in SMALL.options), 1]
    assert [(len(link), len(link[0])) for link in SMALL.transitions] == list(
        itertools.pairwise(sizes)
    )


def test_what_a_node_costs_depends_on_no_other_node() -> None:
    for link in SMALL.transitions[1:-1]:
        assert len(list(distinct_rows(link))) == 1


def test_an_option_stands_for_all_cells_of_its_type() -> None:
    choices = SMALL.choices(SMALL.genotype(BLOCKS))
    links = [link[0][choice] for link, choice in zip(SMALL.transitions[1:], choices, strict=False)]
    # Cells 1 and 4 are normal; 2 and 3 are reductions, at twice and four times the channels.
    assert [str(key) for key in links[0]] == [
        "sep 3x13x9->3x13x9 k3 s1 h0 b1 fp32", "sep 12x4x3->12x4x3 k3 s1 h0 b1 fp32",
    ]  # fmt: skip
    assert links[2] == ()  # two skips
    assert [str(key) for key in links[4]] == [
        "factorized 6x13x9->6x7x5 k0 s2 h0 b1 fp32", "factorized 12x7x5->12x4x3 k0 s2 h0 b1 fp32",
    ]  # fmt: skip
    (fixed,) = SMALL.transitions[0][0]
    assert Counter(key.kind for key in fixed) == {"stem": 1, "preprocess": 6, "factorized": 2}


@settings(max_examples=15)
@given(choices=drawn())
def test_a_network_is_made_of_its_operators(
    counted_macs: MacCounter, choices: tuple[int, ...]
) -> None:
    genotype = SMALL.genotype_of_choices(choices)
    network, keys = SMALL.network(genotype), SMALL.operators_of(genotype)
    images = torch.rand(1, *SMALL.spec.image_shape)
    assert SMALL.macs(genotype) == counted_macs(network, images)
    parameters = sum(each.numel() for each in network.parameters())
    assert SMALL.parameters(genotype) == parameters
    assert sum(map(SMALL.parameters_of, keys)) == parameters
    # Module by module: what a network has is what was measured.
    shapes = Counter(
        tuple(part.shape) for key in keys for part in module_of_operator(key).parameters()
    )
    assert shapes == Counter(tuple(part.shape) for part in network.parameters())


def test_operators_of_another_batch_and_precision_are_other_operators() -> None:
    alone = {operator.key for operator in SMALL.operators()}
    for operator in CellSpace(SMALL.spec, batch=4, dtype="fp16").operators():
        assert operator.key not in alone
        assert replace(operator.key, batch=1, dtype="fp32") in alone
        assert operator.input_shape == (4, *operator.key.in_shape)


# Networks


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_cells_have_the_published_parameters(name: str) -> None:
    cells = PUBLISHED[name]
    genotype = DARTS.genotype(cells.blocks)
    parameters = DARTS.parameters(genotype)
    digits = len(cells.params_m.partition(".")[2])
    assert not cells.params_m or f"{parameters / 1e6:.{digits}f}" == cells.params_m
    assert parameters == {
        "darts-v1": 3_169_414, "darts-v2": 3_349_342, "p-darts": 3_433_798, "pc-darts": 3_634_678,
    }[name]  # fmt: skip
    assert DARTS.macs(genotype) < 600e6


def test_a_node_is_the_sum_of_its_two_terms_and_a_cell_its_nodes_side_by_side() -> None:
    torch.manual_seed(0)
    network = SMALL.network(SMALL.genotype(BLOCKS)).eval()
    cell, stem = network.cells[0], torch.rand(2, 9, 13, 9)

    def part(name: str, features: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = cell.get_submodule(name)(features)
        return given

    first, second = part("preprocess.0", stem), part("preprocess.1", stem)
    one = part("nodes.0.0", first) + second  # sep3@0+skip@1
    two = part("nodes.1.0", second) + part("nodes.1.1", one)  # dil5@1+max3@2
    torch.testing.assert_close(cell(stem, stem), torch.cat([one, two, one + two], dim=1))


def test_taps_are_the_stem_and_every_cell() -> None:
    network = SMALL.network(SMALL.random_genotype(np.random.default_rng(0))).eval()
    taps: list[torch.Tensor] = []
    logits = network(torch.rand(2, 2, 13, 9), taps)
    assert network.tap_names == ("stem", "cell1", "cell2", "cell3", "cell4")
    assert [tuple(tap.shape[1:]) for tap in taps] == [
        SMALL.spec.stem_shape, (9, 13, 9), (18, 7, 5), (36, 4, 3), (36, 4, 3),
    ]  # fmt: skip
    features = network.features(torch.rand(2, 2, 13, 9))
    assert features.shape[1:] == SMALL.spec.features_shape
    assert logits.shape == (2, 4)


def test_a_whole_network_is_measured_as_one_and_not_as_a_chain() -> None:
    workload = SMALL.workload(SMALL.genotype(BLOCKS))
    assert not isinstance(workload, Chain)
    assert workload.name == f"small {' '.join(BLOCKS)}"
    module = workload.build()
    assert not module.training
    assert module(torch.rand(workload.input_shape)).shape == (1, 4)


def test_an_exported_network_computes_what_its_twin_does() -> None:
    module = SMALL.workload(SMALL.genotype(BLOCKS)).build()
    images = torch.rand(1, 2, 13, 9)
    model = onnx_from_module(module, tuple(images.shape))
    with OnnxRuntimeRunner(model.SerializeToString(), threads=1) as runner, torch.no_grad():
        given = runner.infer(images.numpy())
        torch.testing.assert_close(torch.from_numpy(given), module(images), rtol=1e-4, atol=1e-5)


# Costs


def test_latency_is_the_sum_over_the_operators_of_all_cells(table_of: TableMaker) -> None:
    table = table_of(SMALL, lambda key: 1.0 + 1e-3 * SMALL.macs_of(key))  # type: ignore[arg-type]
    costs = SpaceCosts(SMALL, table)
    generator = np.random.default_rng(0)
    for _ in range(5):
        genotype = SMALL.random_genotype(generator)
        summed_us = sum(map(table.latency_us, SMALL.operators_of(genotype)))
        assert costs.latency.predict_ms(genotype) == pytest.approx(summed_us / 1e3, rel=1e-12)


def test_memory_of_operators_does_not_tell_that_of_a_network(table_of: TableMaker) -> None:
    costs = SpaceCosts(SMALL, table_of(SMALL, lambda key: 1.0))  # type: ignore[arg-type]
    assert costs.figures(SMALL.smallest).memory_kib is None
    with pytest.raises(LatencyTableError, match="several tensors are alive") as caught:
        costs.allowed(memory_kib=64.0)
    assert "hwnas verify" in caught.value.hint
