from __future__ import annotations

import collections
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hwnas.core.errors import BudgetError, ConfigError
from hwnas.latency.resources import SpaceCosts
from hwnas.search.budget import Budgets
from hwnas.space.chain_space import all_genotypes
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import SPACES
from hwnas.study.architectures import (
    PUBLISHED,
    architecture,
    check_architecture,
    genotype_of_options,
    tilted,
    tilted_to,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from hwnas.space.channel.spec import ChannelSpec
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.workload import OperatorKey

    TableMaker = Callable[..., LatencyTable]


def latency_us(key: OperatorKey) -> float:
    """Return a made-up latency that rises with the widths, unevenly."""
    return float(40.0 + key.in_shape[0] ** 1.3 + 3.1 * key.out_shape[0])


@pytest.fixture(scope="module")
def costs(small_spec: ChannelSpec, table_of: TableMaker) -> SpaceCosts:
    space = ChannelSpace(small_spec)
    return SpaceCosts(space, table_of(space, latency_us))


def budgets_at(costs: SpaceCosts, fraction: float) -> Budgets:
    low, high = costs.latency.range_ms()
    return Budgets(latency_ms=low + fraction * (high - low))


def drawn(costs: SpaceCosts, budgets: Budgets, wanted: str, seed: int = 0) -> tuple[int, ...]:
    return architecture(wanted, costs, budgets, np.random.default_rng(seed)).widths


def test_smallest_and_largest_are_those_of_all_networks(costs: SpaceCosts) -> None:
    networks = sorted(all_genotypes(costs.space), key=costs.space.parameters)
    budgets = budgets_at(costs, 0.5)
    assert drawn(costs, budgets, "smallest") == networks[0].widths
    assert drawn(costs, budgets, "largest") == networks[-1].widths


def test_options_name_a_network(costs: SpaceCosts) -> None:
    assert genotype_of_options(costs.space, (8, 12, 16)).widths == (8, 12, 16)
    budgets = budgets_at(costs, 0.0)
    assert architecture((4, 8, 12), costs, budgets, np.random.default_rng(0)).widths == (4, 8, 12)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_uniform_scaling_is_the_slowest_within_the_budget(
    costs: SpaceCosts, fraction: float
) -> None:
    budgets = budgets_at(costs, fraction)
    found = architecture("uniform", costs, budgets, np.random.default_rng(0))
    # Sizes at which some block changes over, of 2, 3 and 3 options from narrow to wide.
    alike = [(4, 4, 8), (4, 8, 12), (8, 8, 12), (8, 12, 16)]
    latencies = {
        widths: costs.latency.predict_ms(genotype_of_options(costs.space, widths))
        for widths in alike
    }
    within = {widths: ms for widths, ms in latencies.items() if ms <= budgets.latency_ms}
    assert found.widths == max(within, key=lambda widths: within[widths])


def test_uniform_scaling_says_where_none_is_within_the_budget(costs: SpaceCosts) -> None:
    low, _ = costs.latency.range_ms()
    with pytest.raises(BudgetError, match="no uniform scaling"):
        drawn(costs, Budgets(latency_ms=0.9 * low), "uniform")


@pytest.mark.parametrize("place", [2, 9, 16])
def test_random_networks_are_at_the_latency_and_uniform_over_those_that_are(
    costs: SpaceCosts, place: int
) -> None:
    latencies = sorted(map(costs.latency.predict_ms, all_genotypes(costs.space)))
    budgets = Budgets(latency_ms=latencies[place])
    near = {
        genotype.widths
        for genotype in all_genotypes(costs.space)
        if 0.95 * budgets.latency_ms <= costs.latency.predict_ms(genotype) <= budgets.latency_ms
    }
    assert len(near) > 1
    generator = np.random.default_rng(1)
    counts = collections.Counter(
        architecture("random", costs, budgets, generator).widths for _ in range(150)
    )
    assert set(counts) == near
    # Uniform: a chi-square test that a sampler without the correction fails.
    assert stats.chisquare([counts[widths] for widths in near]).pvalue > 1e-3


def test_random_networks_are_drawn_by_the_seed(costs: SpaceCosts) -> None:
    budgets = budgets_at(costs, 0.5)
    assert drawn(costs, budgets, "random", 3) == drawn(costs, budgets, "random", 3)
    assert len({drawn(costs, budgets, "random", seed) for seed in range(20)}) > 1


def test_random_networks_keep_other_budgets(costs: SpaceCosts) -> None:
    low, high = costs.latency.range_ms()
    budgets = Budgets(latency_ms=low + 0.9 * (high - low), params_k=0.001)
    with pytest.raises(BudgetError, match="keeps the other budgets"):
        drawn(costs, budgets, "random")


def test_a_latency_that_no_network_has_is_told(costs: SpaceCosts) -> None:
    _, high = costs.latency.range_ms()
    with pytest.raises(BudgetError, match="no random network"):
        drawn(costs, Budgets(latency_ms=2 * high), "random")


@given(rate=st.floats(-3.0, 3.0), seed=st.integers(0, 2**16))
def test_the_tilted_distribution_is_that_of_brute_force(rate: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    links = tuple(generator.uniform(0, 2, shape) for shape in ((1, 1), (1, 3), (3, 2), (2, 1)))
    found = tilted(links, rate)
    mass, total, mean = {}, 0.0, 0.0
    for i in range(3):
        for j in range(2):
            cost = links[0][0, 0] + links[1][0, i] + links[2][i, j] + links[3][j, 0]
            mass[i, j] = np.exp(-rate * cost)
            total += mass[i, j]
            mean += mass[i, j] * cost
    assert found.mean == pytest.approx(mean / total)
    for (i, j), each in mass.items():
        assert found.steps[1][0, i] * found.steps[2][i, j] == pytest.approx(each / total)


def test_what_cannot_run_is_never_drawn() -> None:
    links = (
        np.zeros((1, 1)),
        np.array([[1.0, 2.0, np.inf]]),
        np.array([[1.0, np.inf], [np.inf, np.inf], [1.0, 1.0]]),
        np.zeros((2, 1)),
    )
    generator = np.random.default_rng(0)
    for rate in (-2.0, 0.0, 2.0):
        assert {tuple(tilted(links, rate).draw(generator)) for _ in range(50)} == {(0, 0)}


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99])
def test_the_rate_is_found_for_a_mean(costs: SpaceCosts, share: float) -> None:
    links = costs.latency.cost_us.links
    low, high = costs.latency.cost_us.range() or (0.0, 0.0)
    mean = low + share * (high - low)
    assert tilted_to(links, mean).mean == pytest.approx(mean, rel=1e-4)


def test_the_published_network_is_one_of_its_space() -> None:
    space = space_from_spec(SPACES["rnas-cl-s7"])
    check_architecture("published", space)
    genotype = genotype_of_options(space, PUBLISHED["rnas-cl-s7"])
    # Without the biases that batch normalization cancels: see test_published_counts.
    assert space.parameters(genotype) == 315_466


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("smalest", "no architecture `smalest`"),
        ("published", "no network of small is published"),
        ((8, 12), "3 searched blocks, the genotype 2"),
        ((8, 12, 15), "block 3 of small has no option 15"),
        (("8", 12, 16), "block 1 of small has no option '8'"),
    ],
)
def test_what_is_no_architecture_is_refused_before_anything_runs(
    wanted: str | tuple[int | str, ...], message: str, costs: SpaceCosts
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_architecture(wanted, costs.space)
    with pytest.raises(ConfigError, match=message):
        architecture(wanted, costs, budgets_at(costs, 1.0), np.random.default_rng(0))
