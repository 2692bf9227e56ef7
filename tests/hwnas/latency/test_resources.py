from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.core.errors import LatencyTableError, LatencyTableMiss
from hwnas.latency.resources import SpaceCosts
from hwnas.space.chain_space import all_genotypes
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import SPACES
from hwnas_profilers.records import EnergyStatistics, Measurement

if TYPE_CHECKING:
    from collections.abc import Callable

    from hwnas.space.channel.spec import ChannelSpec
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.workload import OperatorKey

    TableMaker = Callable[..., LatencyTable]

pytestmark = pytest.mark.usefixtures("one_thread")

seeds = st.integers(0, 2**32)


@pytest.fixture(scope="session")
def small(small_spec: ChannelSpec) -> ChannelSpace:
    return ChannelSpace(small_spec)


def table_with(
    table: LatencyTable, seed: int, refused: list[OperatorKey] | None = None
) -> LatencyTable:
    """Give every operator memory and energy at random, none of them in the order of another."""
    generator = np.random.default_rng(seed)
    refused = refused or []

    def filled(measured: Measurement) -> Measurement:
        energy_uj = float(generator.lognormal(5, 1))
        return replace(
            measured,
            weights_bytes=int(generator.integers(1, 5_000)),
            peak_activation_bytes=int(generator.integers(1, 5_000)),
            energy=EnergyStatistics(n=6, median_uj=energy_uj, low_uj=energy_uj, high_uj=energy_uj),
        )

    return replace(
        table,
        measurements={
            key: filled(each) for key, each in table.measurements.items() if key not in refused
        },
        unsupported=dict.fromkeys(refused, "no such kernel"),
    )


@settings(max_examples=30)
@given(seed=seeds)
def test_weights_and_energy_add_up_and_the_peak_is_the_greatest(
    small: ChannelSpace, table_of: TableMaker, seed: int
) -> None:
    table = table_with(table_of(small, lambda key: 1.0 + key.hidden), seed)
    costs = SpaceCosts(small, table)
    peaks = []
    for genotype in all_genotypes(small):
        measured = [table.measurements[key] for key in small.operators_of(genotype)]
        figures = costs.figures(genotype)
        assert figures.weights_kib == sum(each.weights_bytes or 0 for each in measured) / 1024
        assert (
            figures.memory_kib == max(each.peak_activation_bytes or 0 for each in measured) / 1024
        )
        energy_uj = sum(each.energy.median_uj for each in measured if each.energy)
        assert figures.uncalibrated_energy_mj == pytest.approx(energy_uj / 1e3, rel=1e-12)
        peaks.append(figures.memory_kib)
    assert costs.memory_range_kib() == (min(peaks), max(peaks))


@settings(max_examples=20)
@given(seed=seeds)
def test_what_is_expected_of_a_supernet_is_the_mean_over_its_networks(
    small: ChannelSpace, table_of: TableMaker, seed: int
) -> None:
    costs = SpaceCosts(small, table_with(table_of(small, lambda key: 1.0), seed))
    generator = torch.Generator().manual_seed(seed)
    probabilities = [
        torch.softmax(torch.randn(len(options), generator=generator, dtype=torch.float64), 0)
        for options in small.options
    ]
    for cost in (costs.weights_bytes, costs.energy_uj):
        mean = 0.0
        for genotype in all_genotypes(small):
            choices = small.choices(genotype)
            chosen = zip(probabilities, choices, strict=True)
            mean += math.prod(float(p[choice]) for p, choice in chosen) * cost.of(choices)
        assert float(cost.expected(probabilities)) == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("name", ["rnas-cl-xs", "mbconv-32", "mbconv-224-widths", "darts-8"])
def test_macs_and_parameters_are_those_of_the_network_whatever_the_table_tells(
    table_of: TableMaker, name: str
) -> None:
    space = space_from_spec(SPACES[name])
    costs = SpaceCosts(space, table_of(space, lambda key: 1.0))
    generator = np.random.default_rng(0)
    for genotype in [space.smallest, *(space.random_genotype(generator) for _ in range(3))]:
        if not np.isfinite(costs.latency.cost_us.of(space.choices(genotype))):
            continue
        choices = space.choices(genotype)
        with torch.device("meta"):
            network = space.network(genotype)
        assert costs.params.of(choices) == sum(p.numel() for p in network.parameters())
        assert costs.macs.of(choices) == space.macs(genotype)


def test_a_table_that_lacks_operators_is_refused_with_how_many(
    small: ChannelSpace, table_of: TableMaker
) -> None:
    table = table_of(small, lambda key: 1.0)
    keys = list(table.measurements)
    kept = {key: table.measurements[key] for key in keys[:4]}
    partial = replace(table, measurements=kept, unsupported={keys[4]: "no such kernel"})
    with pytest.raises(LatencyTableMiss) as caught:
        SpaceCosts(small, partial)
    assert f"table.jsonl lacks {len(keys) - 5} of {len(keys)} operators of small" in str(
        caught.value
    )
    assert f"has no operator {keys[5]}; nearest: " in caught.value.message
    assert "hwnas profile --space small --target onnxruntime-cpu" in caught.value.hint


@settings(max_examples=30)
@given(seed=seeds, fraction=st.floats(0, 1))
def test_a_bound_on_memory_allows_exactly_the_networks_within_it(
    small: ChannelSpace, table_of: TableMaker, seed: int, fraction: float
) -> None:
    table = table_with(table_of(small, lambda key: 1.0), seed)
    costs = SpaceCosts(small, table)
    low, high = costs.memory_range_kib()
    bound = low + fraction * (high - low)
    allowed = costs.allowed(bound)
    for genotype in all_genotypes(small):
        chosen = (0, *small.choices(genotype), 0)
        arcs = zip(allowed, (0, *chosen[:-1]), chosen, strict=True)
        within = all(bool(link[i, j]) for link, i, j in arcs)
        assert within == (costs.memory_kib_of(genotype) <= bound)


def test_what_the_runtime_refuses_is_in_no_range(small: ChannelSpace, table_of: TableMaker) -> None:
    plain = table_of(small, lambda key: 1.0)
    widest = small.operators_of(small.largest)[1:-1]
    costs = SpaceCosts(small, table_with(plain, 3, refused=widest))
    runs = [
        genotype
        for genotype in all_genotypes(small)
        if set(widest).isdisjoint(small.operators_of(genotype))
    ]
    assert 0 < len(runs) < len(all_genotypes(small))
    peaks = [costs.memory_kib_of(genotype) for genotype in runs]
    assert costs.memory_range_kib() == (min(peaks), max(peaks))
    weights = [costs.weights_bytes.of(small.choices(genotype)) for genotype in runs]
    assert costs.weights_bytes.range() == (min(weights), max(weights))


@pytest.mark.parametrize(
    ("field", "ask", "says", "command"),
    [
        ("weights_bytes", lambda costs: costs.weights_bytes, "the weights", "--target"),
        ("peak_activation_bytes", lambda costs: costs.allowed(9.0), "the peak", "--target"),
        ("energy", lambda costs: costs.energy_uj, "the energy", "--energy"),
    ],
)
def test_what_the_table_does_not_tell_is_an_error_and_never_zero(
    small: ChannelSpace,
    table_of: TableMaker,
    field: str,
    ask: Callable[[SpaceCosts], object],
    says: str,
    command: str,
) -> None:
    table = table_with(table_of(small, lambda key: 1.0), 0)
    lacking = small.operators_of(small.smallest)[2]
    nothing: dict[str, Any] = {field: None}
    measurement = replace(table.measurements[lacking], **nothing)
    table = replace(table, measurements={**table.measurements, lacking: measurement})
    costs = SpaceCosts(small, table)
    with pytest.raises(LatencyTableError, match=says) as caught:
        ask(costs)
    assert f"of 1 operators, e.g. {lacking}" in caught.value.message
    assert "hwnas profile --space small" in caught.value.hint
    assert command in caught.value.hint
    assert "--image-shape 1,16,16 --classes 10" in caught.value.hint
    # What is not asked for is not missed.
    figures = costs.figures(small.largest)
    assert [figures.weights_kib, figures.memory_kib, figures.uncalibrated_energy_mj].count(
        None
    ) == 1


def test_memory_that_torch_cannot_tell_is_counted_elsewhere(
    small: ChannelSpace, table_of: TableMaker
) -> None:
    table = table_of(small, lambda key: 1.0)
    table = replace(table, header=replace(table.header, target="torch-cpu"))
    with pytest.raises(LatencyTableError) as caught:
        SpaceCosts(small, table).allowed(10.0)
    assert "counted on targets that compile ONNX" in caught.value.hint
    assert "--target onnxruntime-cpu" in caught.value.hint
