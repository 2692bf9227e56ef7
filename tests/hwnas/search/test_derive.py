from __future__ import annotations

import itertools
import logging
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.core.errors import BudgetError, LatencyTableError
from hwnas.latency.resources import SpaceCosts
from hwnas.search.budget import Budgets
from hwnas.search.derive import best_genotype, check_budgets
from hwnas.search.feasible import latency_range_ms, no_network, with_finite_latency
from hwnas.search.front import score_of_choices
from hwnas.search.program import SCORE_GAP
from hwnas.space.chain_space import ChainSpace, all_genotypes
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.channel.spec import CHANNEL_SPACES, ChannelSpec, StageSpec
from hwnas.space.mbconv.space import MBConvSpace
from hwnas.space.mbconv.spec import MBConvSpec, MBConvStage
from hwnas_profilers.records import EnergyStatistics, Measurement

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from hwnas.space.genotype import Genotype
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.workload import OperatorKey

    TableMaker = Callable[..., LatencyTable]
    Scores = list[NDArray[np.float64]]

seeds = st.integers(0, 2**32)
spaces = st.lists(
    st.lists(st.integers(1, 8), min_size=1, max_size=3, unique=True), min_size=1, max_size=4
).map(
    lambda stages: ChannelSpace(
        ChannelSpec(
            name="drawn",
            image_shape=(1, 8, 8),
            classes=2,
            stem=4,
            stem_stride=1,
            stages=tuple(
                StageSpec(blocks=1, widths=tuple(sorted(widths, reverse=True))) for widths in stages
            ),
        )
    )
)


def costs_of(
    space: ChainSpace, table_of: TableMaker, seed: int, *, whole: bool = False
) -> SpaceCosts:
    """Costs at random, of few whole numbers where ties are wanted; every third latency is bent."""
    generator = np.random.default_rng(seed)
    known: dict[OperatorKey, float] = {}

    def cost_us(key: OperatorKey) -> float:
        fresh = generator.integers(1, 4) if whole else generator.lognormal(3, 0.7)
        return known.setdefault(key, float(fresh))

    costs = SpaceCosts(space, table_of(space, cost_us))
    costs.latency.cost_us.curvature = 0.01 if seed % 3 == 0 else 0.0
    return costs


def within(latency_ms: float) -> Budgets:
    return Budgets(latency_ms=latency_ms)


def scores_of(space: ChainSpace, seed: int, *, whole: bool = False) -> Scores:
    generator = np.random.default_rng(seed + 1)
    return [
        generator.integers(-3, 0, len(options)).astype(np.float64)
        if whole
        else np.log(generator.dirichlet(np.ones(len(options))))
        for options in space.options
    ]


def score(space: ChainSpace, genotype: Genotype, scores: Scores) -> float:
    return score_of_choices(scores, space.choices(genotype))


def best_by_force(costs: SpaceCosts, scores: Scores, budget_ms: float) -> tuple[float, float]:
    """The highest score, and the least latency with it, negative."""
    return max(
        (score(costs.space, genotype, scores), -costs.latency.predict_ms(genotype))
        for genotype in all_genotypes(costs.space)
        if costs.latency.predict_ms(genotype) <= budget_ms
    )


@settings(max_examples=60)
@given(space=spaces, seed=seeds, fraction=st.floats(0, 1.2), whole=st.booleans())
def test_the_optimum_is_that_of_trying_all(
    table_of: TableMaker, space: ChannelSpace, seed: int, fraction: float, whole: bool
) -> None:
    costs = costs_of(space, table_of, seed, whole=whole)
    scores = scores_of(space, seed, whole=whole)
    low, high = costs.latency.range_ms()
    budget_ms = low + fraction * (high - low)
    found = best_genotype(costs, scores, within(budget_ms))
    # To the last bit, and of equal ones the fastest.
    assert best_by_force(costs, scores, budget_ms) == (
        score(space, found, scores),
        -costs.latency.predict_ms(found),
    )


@settings(max_examples=40)
@given(space=spaces, seed=seeds, whole=st.booleans())
def test_a_budget_that_is_a_networks_very_latency_is_met_by_it(
    table_of: TableMaker, space: ChannelSpace, seed: int, whole: bool
) -> None:
    costs = costs_of(space, table_of, seed, whole=whole)
    scores = scores_of(space, seed, whole=whole)
    genotypes = all_genotypes(space)
    budget_ms = costs.latency.predict_ms(genotypes[seed % len(genotypes)])
    found = best_genotype(costs, scores, within(budget_ms))
    assert costs.latency.predict_ms(found) <= budget_ms
    assert score(space, found, scores) == best_by_force(costs, scores, budget_ms)[0]


@settings(max_examples=40)
@given(space=spaces, seed=seeds)
def test_the_fastest_networks_budget_gives_it(
    table_of: TableMaker, space: ChannelSpace, seed: int
) -> None:
    costs = costs_of(space, table_of, seed)
    fastest = space.genotype_of_choices(costs.latency.cost_us.cheapest() or ())
    low, _ = costs.latency.range_ms()
    assert costs.latency.predict_ms(fastest) == pytest.approx(low, rel=1e-12)
    assert costs.latency.predict_ms(fastest) == min(
        map(costs.latency.predict_ms, all_genotypes(space))
    )
    found = best_genotype(costs, scores_of(space, seed), within(costs.latency.predict_ms(fastest)))
    assert costs.latency.predict_ms(found) == costs.latency.predict_ms(fastest)


@pytest.mark.parametrize("seed", range(5))
def test_a_budget_for_all_gives_each_block_its_best(table_of: TableMaker, seed: int) -> None:
    space = ChannelSpace(CHANNEL_SPACES["rnas-cl-xs"])
    costs = costs_of(space, table_of, seed)
    scores = scores_of(space, seed)
    for budget_ms in (costs.latency.range_ms()[1], 1e6):
        found = best_genotype(costs, scores, within(budget_ms))
        assert space.choices(found) == tuple(int(each.argmax()) for each in scores)


# One block of three widths: its first option is the best, and its last the worst.
THREE = ChannelSpace(
    ChannelSpec(
        name="three",
        image_shape=(1, 8, 8),
        classes=2,
        stem=4,
        stem_stride=1,
        stages=(StageSpec(blocks=1, widths=(3, 2, 1)),),
    )
)


@pytest.mark.parametrize(
    ("costs_us", "budget_of", "found"),
    [
        # HiGHS cannot tell the best from the budget: it is over, and the budget's own is within.
        ((100.00001, 100.0, 50.0), 1, 1),
        ((100.00001, 150.0, 100.0), 2, 2),
        ((100.00001, 99.9, 100.0), 2, 1),
        ((100.00001, 100.00002, 100.0), 2, 2),
        ((100.0, 50.0, 50.0), 0, 0),
        # Nothing that is left to choose costs anything.
        ((0.0, 0.0, 0.0), 2, 0),
    ],
)
@pytest.mark.parametrize("exclusions", [0, 1, 8])
def test_a_budget_is_held_to_the_last_digit(
    table_of: TableMaker,
    monkeypatch: pytest.MonkeyPatch,
    costs_us: tuple[float, float, float],
    budget_of: int,
    found: int,
    exclusions: int,
) -> None:
    def cost_us(key: OperatorKey) -> float:
        if key.kind != "mbconv":
            return 10.0 if key.kind == "stem" else 0.0
        return costs_us[3 - key.out_shape[0]]

    monkeypatch.setattr("hwnas.search.program._EXCLUSIONS", exclusions)
    costs = SpaceCosts(THREE, table_of(THREE, cost_us))
    budget_ms = costs.latency.predict_ms(THREE.genotype_of_choices([budget_of]))
    genotype = best_genotype(costs, [np.array([0.0, -1.0, -2.0])], within(budget_ms))
    assert costs.latency.predict_ms(genotype) <= budget_ms
    if exclusions == 8:
        assert THREE.choices(genotype) == (found,)


def test_where_there_are_too_many_labels_the_integer_program_answers_and_that_is_said(
    table_of: TableMaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    space = ChannelSpace(CHANNEL_SPACES["rnas-cl-xs"])
    costs = costs_of(space, table_of, 0)
    scores = scores_of(space, 0)
    budget_ms = float(np.mean(costs.latency.range_ms()))
    expected = best_genotype(costs, scores, within(budget_ms))
    monkeypatch.setattr("hwnas.search.labels.MAX_CANDIDATES", {1: 5, 2: 5})
    with caplog.at_level(logging.WARNING):
        assert best_genotype(costs, scores, within(budget_ms)) == expected
    assert "more than 5 partial networks are left" in caplog.text


def test_more_budget_never_gives_less(table_of: TableMaker) -> None:
    space = ChannelSpace(CHANNEL_SPACES["rnas-cl-xs"])
    costs = costs_of(space, table_of, 0)
    scores = scores_of(space, 0)
    low, high = costs.latency.range_ms()
    found = [best_genotype(costs, scores, within(each)) for each in np.linspace(low, high, 12)]
    values = [score(space, genotype, scores) for genotype in found]
    assert values == sorted(values)
    assert values[-1] > values[0]


def test_the_same_question_has_the_same_answer(table_of: TableMaker) -> None:
    space = ChannelSpace(CHANNEL_SPACES["rnas-cl-xs"])
    costs = costs_of(space, table_of, 0, whole=True)
    even = [np.zeros(len(options)) for options in space.options]
    budget_ms = float(np.mean(costs.latency.range_ms()))
    assert best_genotype(costs, even, within(budget_ms)) == best_genotype(
        costs, even, within(budget_ms)
    )


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_the_published_space_is_solved_in_a_second(table_of: TableMaker, fraction: float) -> None:
    space = ChannelSpace(CHANNEL_SPACES["rnas-cl-s7"])
    assert len(space.options) == 21
    generator = np.random.default_rng(0)

    def cost_us(key: OperatorKey) -> float:
        return key.hidden * key.out_shape[0] * 1e-3 * float(generator.lognormal(0, 0.1)) + 1.0

    costs = SpaceCosts(space, table_of(space, cost_us))
    scores = scores_of(space, 0)
    low, high = costs.latency.range_ms()
    budget_ms = low + fraction * (high - low)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        found = best_genotype(costs, scores, within(budget_ms))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1, seconds
    assert costs.latency.predict_ms(found) <= budget_ms
    # No other width of any one block, nor of any two neighbors, is better and still in budget.
    choices = space.choices(found)
    best = score(space, found, scores)
    for block in range(20):
        for first in range(len(space.options[block])):
            for second in range(len(space.options[block + 1])):
                other = (*choices[:block], first, second, *choices[block + 2 :])
                genotype = space.genotype_of_choices(other)
                if costs.latency.predict_ms(genotype) <= budget_ms:
                    assert score(space, genotype, scores) <= best


@pytest.mark.parametrize("budget_ms", [0.0, -1.0, float("nan"), float("inf"), float("-inf")])
def test_a_budget_that_is_no_number_is_refused(table_of: TableMaker, budget_ms: float) -> None:
    space = ChannelSpace(CHANNEL_SPACES["rnas-cl-xs"])
    costs = costs_of(space, table_of, 0)
    with pytest.raises(BudgetError, match="is a positive number of milliseconds"):
        best_genotype(costs, scores_of(space, 0), within(budget_ms))


def test_a_budget_below_the_fastest_names_the_fastest(table_of: TableMaker) -> None:
    space = ChannelSpace(CHANNEL_SPACES["rnas-cl-xs"])
    costs = costs_of(space, table_of, 0)
    low, high = costs.latency.range_ms()
    with pytest.raises(BudgetError, match="no network meets a budget") as caught:
        best_genotype(costs, scores_of(space, 0), within(low * 0.999))
    assert f"take {low:.4g} to {high:.4g} ms" in caught.value.message
    assert f"at least {low:.4g} ms" in caught.value.hint
    check_budgets(costs, within(low))


# Several budgets at once


WITH_SKIPS = MBConvSpace(
    MBConvSpec(
        name="skips",
        image_shape=(1, 8, 8),
        classes=3,
        stem=4,
        stem_stride=1,
        stages=(MBConvStage(blocks=2, widths=(4,)), MBConvStage(blocks=3, widths=(8,), stride=2)),
        kernels=(3,),
        expansions=(1, 2),
        se=(False,),
    )
)
EVERY_BUDGET = ("memory_kib", "weights_kib", "energy_mj", "macs_m", "params_k")
FROM_THE_TABLE = EVERY_BUDGET[:3]


def filled(
    table: LatencyTable, seed: int, *, whole: bool = False, refused: Sequence[OperatorKey] = ()
) -> LatencyTable:
    """Memory and energy at random, of few whole numbers where ties are wanted."""
    generator = np.random.default_rng(seed + 2)

    def measured(each: Measurement) -> Measurement:
        weights, peak = (int(n) for n in generator.integers(1, 4 if whole else 5_000, 2))
        energy_uj = float(generator.integers(1, 4)) if whole else float(generator.lognormal(5, 1))
        energy = EnergyStatistics(n=6, median_uj=energy_uj, low_uj=energy_uj, high_uj=energy_uj)
        return replace(each, weights_bytes=weights, peak_activation_bytes=peak, energy=energy)

    return replace(
        table,
        measurements={
            key: measured(each) for key, each in table.measurements.items() if key not in refused
        },
        unsupported=dict.fromkeys(refused, "no such kernel"),
    )


def costs_with(
    space: ChainSpace, table_of: TableMaker, seed: int, *, whole: bool = False, refuse: float = 0.0
) -> SpaceCosts:
    """Costs of all kinds; of the operators some are refused, but never all of one network."""
    generator = np.random.default_rng(seed)
    known: dict[OperatorKey, float] = {}

    def cost_us(key: OperatorKey) -> float:
        fresh = generator.integers(1, 4) if whole else generator.lognormal(3, 0.7)
        return known.setdefault(key, float(fresh))

    table = table_of(space, cost_us)
    kept = set(space.operators_of(space.random_genotype(generator)))
    refused = [key for key in table.measurements if key not in kept and generator.random() < refuse]
    return SpaceCosts(space, filled(table, seed, whole=whole, refused=refused))


def taken(costs: SpaceCosts, genotype: Genotype) -> dict[str, float]:
    """What a network takes of everything that can be bounded, straight from the table."""
    figures = costs.figures(genotype)
    assert figures.memory_kib is not None
    assert figures.weights_kib is not None
    assert figures.uncalibrated_energy_mj is not None
    return {
        "latency_ms": costs.latency.predict_ms(genotype),
        "memory_kib": figures.memory_kib,
        "weights_kib": figures.weights_kib,
        "energy_mj": figures.uncalibrated_energy_mj,
        "macs_m": costs.space.macs(genotype) / 1e6,
        "params_k": sum(map(costs.space.parameters_of, costs.space.operators_of(genotype))) / 1e3,
    }


def runs(costs: SpaceCosts) -> list[Genotype]:
    supported = costs.latency.supported
    return [
        genotype
        for genotype in all_genotypes(costs.space)
        if all(
            link[i, j]
            for link, i, j in zip(
                supported,
                (0, 0, *costs.space.choices(genotype)),
                (0, *costs.space.choices(genotype), 0),
                strict=True,
            )
        )
    ]


@pytest.mark.parametrize(
    "bounded",
    [names for count in range(3) for names in itertools.combinations(EVERY_BUDGET, count)]
    + [FROM_THE_TABLE, EVERY_BUDGET],
    ids="+".join,
)
@settings(max_examples=12)
@given(space=st.one_of(spaces, st.just(WITH_SKIPS)), seed=seeds, data=st.data())
def test_within_any_budgets_the_optimum_is_that_of_trying_all(
    table_of: TableMaker,
    bounded: tuple[str, ...],
    space: ChainSpace,
    seed: int,
    data: st.DataObject,
) -> None:
    whole = data.draw(st.booleans(), label="whole")
    refuse = data.draw(st.sampled_from((0.0, 0.3)), label="refuse")
    costs = costs_with(space, table_of, seed, whole=whole, refuse=refuse)
    scores = scores_of(space, seed, whole=whole)
    every = {genotype: taken(costs, genotype) for genotype in runs(costs)}

    def bound(name: str) -> float:
        values = [each[name] for each in every.values()]
        if data.draw(st.booleans(), label=f"{name} of a network"):
            return values[seed % len(values)]
        low, high = min(values), max(values)
        return low + data.draw(st.floats(0, 1.1), label=name) * (high - low)

    bounds = {name: bound(name) for name in ("latency_ms", *bounded)}
    meeting = [
        genotype
        for genotype, figures in every.items()
        if all(figures[name] <= bound for name, bound in bounds.items())
    ]
    budgets = Budgets(**bounds)
    if not meeting:
        with pytest.raises(BudgetError, match="no network"):
            best_genotype(costs, scores, budgets)
        with pytest.raises(BudgetError, match="no network"):
            check_budgets(costs, budgets)
        return
    check_budgets(costs, budgets)
    found = best_genotype(costs, scores, budgets)
    assert found in meeting
    best = max(score(space, genotype, scores) for genotype in meeting)
    # HiGHS, which is left more than two budgets to, may stop that far below the best.
    assert score(space, found, scores) == pytest.approx(best, abs=2 * SCORE_GAP)


def test_every_budget_takes_something_away(table_of: TableMaker) -> None:
    """The best network without a budget is, with one just below it, no longer derived."""
    space = ChannelSpace(CHANNEL_SPACES["rnas-cl-xs"])
    costs = costs_with(space, table_of, 0)
    scores = scores_of(space, 0)
    free = Budgets(latency_ms=costs.latency.range_ms()[1])
    best = best_genotype(costs, scores, free)
    for name, value in taken(costs, best).items():
        assert best_genotype(costs, scores, replace(free, **{name: value})) == best
        less: dict[str, float] = {name: value * 0.999}
        other = best_genotype(costs, scores, replace(free, **less))
        assert taken(costs, other)[name] <= value * 0.999
        assert score(space, other, scores) < score(space, best, scores)


@pytest.mark.parametrize(("name", "unit"), [
    ("memory_kib", "KiB of activations"), ("weights_kib", "KiB of weights"), ("energy_mj", "mJ"),
    ("macs_m", "million multiply-accumulates"), ("params_k", "thousand parameters"),
])  # fmt: skip
def test_a_budget_below_all_networks_names_both_ends_of_each(
    table_of: TableMaker, name: str, unit: str
) -> None:
    costs = costs_with(THREE, table_of, 1)
    values = [taken(costs, genotype)[name] for genotype in all_genotypes(THREE)]
    low, high = min(values), max(values)
    bounds: dict[str, float] = {name: low * 0.99}
    for refuse in (check_budgets, lambda *of: best_genotype(of[0], scores_of(THREE, 0), of[1])):
        with pytest.raises(BudgetError) as caught:
            refuse(costs, Budgets(latency_ms=9e9, **bounds))
        assert f"no network meets a budget of {low * 0.99:.4g} {unit}" in caught.value.message
        assert f"take {low:.4g} to {high:.4g} {unit}" in caught.value.message
        fastest, slowest = costs.latency.range_ms()
        assert f"(networks take {fastest:.4g} to {slowest:.4g} ms)" in caught.value.message
        assert f"at least {low:.4g} {unit}" in caught.value.hint
    assert ("uncalibrated" in caught.value.message) == (name == "energy_mj")
    of_the_space = name in ("macs_m", "params_k")
    assert ("on this target" in caught.value.message) != of_the_space
    bad: dict[str, float] = {name: -1.0}
    with pytest.raises(BudgetError, match=r"positive number of .*, not -1\.0"):
        check_budgets(costs, Budgets(latency_ms=9e9, **bad))


def against_each_other(table_of: TableMaker) -> SpaceCosts:
    """Three networks: the faster, the more weights and energy; memory is the same for all."""

    def cost_us(key: OperatorKey) -> float:
        return 100.0 * key.out_shape[0] if key.kind == "mbconv" else 1.0

    table = table_of(THREE, cost_us)

    def measured(key: OperatorKey, each: Measurement) -> Measurement:
        times = 4 - key.out_shape[0] if key.kind == "mbconv" else 0  # 1, 2, 3
        energy = EnergyStatistics(n=6, median_uj=1e3 * times, low_uj=1.0, high_uj=1.0)
        return replace(each, weights_bytes=1024 * times, peak_activation_bytes=2048, energy=energy)

    return SpaceCosts(
        THREE,
        replace(
            table, measurements={key: measured(key, m) for key, m in table.measurements.items()}
        ),
    )


@pytest.mark.parametrize(
    ("budgets", "binding"),
    [
        (Budgets(latency_ms=0.15, weights_kib=1.5), "`latency_ms` or `weights_kib`"),
        (Budgets(latency_ms=0.15, weights_kib=1.5, memory_kib=2), "`latency_ms` or `weights_kib`"),
        # The latency alone stands against two others: without one of these the other is left.
        (Budgets(latency_ms=0.15, weights_kib=1.5, energy_mj=1.5), "is `latency_ms`:"),
        (
            Budgets(latency_ms=0.15, weights_kib=3.5, energy_mj=1.5),
            "`latency_ms` or `energy_mj`",
        ),
    ],
)
def test_what_binds_is_named_where_each_budget_could_be_met_alone(
    table_of: TableMaker, budgets: Budgets, binding: str
) -> None:
    costs = against_each_other(table_of)
    with pytest.raises(BudgetError, match="meets all budgets at once") as caught:
        check_budgets(costs, budgets)
    assert binding in caught.value.hint
    assert "latency 0.15 ms (networks take 0.102 to 0.302 ms)" in caught.value.message
    assert "KiB of weights (networks take 1 to 3 KiB of weights)" in caught.value.message
    if budgets.energy_mj is not None:
        assert "(networks take 1 to 3 mJ, an uncalibrated sum)" in caught.value.message


def test_where_no_single_budget_binds_that_is_said(table_of: TableMaker) -> None:
    costs = against_each_other(table_of)
    asked = Budgets(latency_ms=0.15, weights_kib=1.5)
    error = no_network(costs, asked, can_be_met=lambda *_: False)
    assert error.hint == "no single one binds: raise at least two of them"


def test_a_budget_on_what_the_table_does_not_tell_is_refused(table_of: TableMaker) -> None:
    costs = costs_of(THREE, table_of, 0)
    for name in FROM_THE_TABLE:
        bounds: dict[str, float] = {name: 1e9}
        with pytest.raises(LatencyTableError, match="does not tell"):
            check_budgets(costs, Budgets(latency_ms=9e9, **bounds))
    # Multiply-accumulates and parameters the space knows.
    check_budgets(costs, Budgets(latency_ms=9e9, macs_m=1e9, params_k=1e9))


def test_a_place_between_the_ends_is_one_among_networks_within_the_memory(
    table_of: TableMaker,
) -> None:
    costs = costs_with(WITH_SKIPS, table_of, 5)
    low, high = costs.memory_range_kib()
    bound = (low + high) / 2
    within = [g for g in all_genotypes(WITH_SKIPS) if costs.memory_kib_of(g) <= bound]
    times = [costs.latency.predict_ms(genotype) for genotype in within]
    assert 0 < len(within) < len(all_genotypes(WITH_SKIPS))
    assert latency_range_ms(costs, bound) == pytest.approx((min(times), max(times)), rel=1e-12)
    with pytest.raises(BudgetError, match="KiB of activations"):
        latency_range_ms(costs, low * 0.99)
    # Without a bound on latency the slowest of these is it; a bound is left as it is.
    free = with_finite_latency(costs, Budgets(latency_ms=math.inf, memory_kib=bound))
    assert free == Budgets(latency_ms=max(times), memory_kib=bound)
    assert with_finite_latency(costs, within_ms := Budgets(latency_ms=1.0)) is within_ms


def test_the_published_space_is_solved_in_seconds_under_all_budgets(table_of: TableMaker) -> None:
    space = ChannelSpace(CHANNEL_SPACES["rnas-cl-s7"])
    costs = costs_with(space, table_of, 0)
    scores = scores_of(space, 0)
    best = best_genotype(costs, scores, Budgets(latency_ms=9e9))
    bounds = {name: 0.9 * value for name, value in taken(costs, best).items()}
    bounds["memory_kib"] = max(bounds["memory_kib"], costs.memory_range_kib()[0])
    assert len(bounds) == 6
    start = time.perf_counter()
    found = best_genotype(costs, scores, Budgets(**bounds))
    assert time.perf_counter() - start < 10
    figures = taken(costs, found)
    assert all(figures[name] <= bound for name, bound in bounds.items())
