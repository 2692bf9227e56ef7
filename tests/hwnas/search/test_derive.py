from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.core.errors import BudgetError
from hwnas.latency.model import LatencyModel
from hwnas.search.derive import best_genotype, check_budget, fastest_genotype
from hwnas.space.channel_space import ChannelSpace, all_genotypes
from hwnas.space.spec import SPACES, SpaceSpec, StageSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from hwnas.space.genotype import Genotype
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.workload import OperatorKey

    TableMaker = Callable[..., LatencyTable]
    Scores = list[NDArray[np.float64]]

# HiGHS stops at a gap of 1e-6 in the score.
GAP = 2e-6

seeds = st.integers(0, 2**32)
spaces = st.lists(
    st.lists(st.integers(1, 8), min_size=1, max_size=3, unique=True), min_size=1, max_size=4
).map(
    lambda stages: ChannelSpace(
        SpaceSpec(
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


def model_of(
    space: ChannelSpace, table_of: TableMaker, seed: int, *, whole: bool = False
) -> LatencyModel:
    """Costs at random, of few whole numbers where ties are wanted."""
    generator = np.random.default_rng(seed)
    known: dict[OperatorKey, float] = {}

    def cost_us(key: OperatorKey) -> float:
        fresh = generator.integers(1, 4) if whole else generator.lognormal(3, 0.7)
        return known.setdefault(key, float(fresh))

    return LatencyModel(space, table_of(space, cost_us))


def scores_of(space: ChannelSpace, seed: int, *, whole: bool = False) -> Scores:
    generator = np.random.default_rng(seed + 1)
    return [
        generator.integers(-3, 0, len(options)).astype(np.float64)
        if whole
        else np.log(generator.dirichlet(np.ones(len(options))))
        for options in space.options
    ]


def score(space: ChannelSpace, genotype: Genotype, scores: Scores) -> float:
    choices = space.choices(genotype)
    return float(sum(each[choice] for each, choice in zip(scores, choices, strict=True)))


def best_by_force(model: LatencyModel, scores: Scores, budget_ms: float) -> float:
    return max(
        score(model.space, genotype, scores)
        for genotype in all_genotypes(model.space)
        if model.predict_ms(genotype) <= budget_ms
    )


@settings(max_examples=60)
@given(space=spaces, seed=seeds, fraction=st.floats(0, 1.2), whole=st.booleans())
def test_the_optimum_is_that_of_trying_all(
    table_of: TableMaker, space: ChannelSpace, seed: int, fraction: float, whole: bool
) -> None:
    model = model_of(space, table_of, seed, whole=whole)
    scores = scores_of(space, seed, whole=whole)
    low, high = model.range_ms()
    budget_ms = low + fraction * (high - low)
    found = best_genotype(model, scores, budget_ms)
    assert model.predict_ms(found) <= budget_ms
    best = best_by_force(model, scores, budget_ms)
    assert score(space, found, scores) == pytest.approx(best, abs=GAP)


@settings(max_examples=40)
@given(space=spaces, seed=seeds, whole=st.booleans())
def test_a_budget_that_is_a_networks_very_latency_is_met_by_it(
    table_of: TableMaker, space: ChannelSpace, seed: int, whole: bool
) -> None:
    model = model_of(space, table_of, seed, whole=whole)
    scores = scores_of(space, seed, whole=whole)
    genotypes = all_genotypes(space)
    budget_ms = model.predict_ms(genotypes[seed % len(genotypes)])
    found = best_genotype(model, scores, budget_ms)
    assert model.predict_ms(found) <= budget_ms
    best = best_by_force(model, scores, budget_ms)
    assert score(space, found, scores) == pytest.approx(best, abs=GAP)


@settings(max_examples=40)
@given(space=spaces, seed=seeds)
def test_the_fastest_networks_budget_gives_it(
    table_of: TableMaker, space: ChannelSpace, seed: int
) -> None:
    model = model_of(space, table_of, seed)
    fastest = fastest_genotype(model)
    low, _ = model.range_ms()
    assert model.predict_ms(fastest) == pytest.approx(low, rel=1e-12)
    assert model.predict_ms(fastest) == min(map(model.predict_ms, all_genotypes(space)))
    found = best_genotype(model, scores_of(space, seed), model.predict_ms(fastest))
    assert model.predict_ms(found) == model.predict_ms(fastest)


@pytest.mark.parametrize("seed", range(5))
def test_a_budget_for_all_gives_each_block_its_best(table_of: TableMaker, seed: int) -> None:
    space = ChannelSpace(SPACES["rnas-cl-xs"])
    model = model_of(space, table_of, seed)
    scores = scores_of(space, seed)
    for budget_ms in (model.range_ms()[1], 1e6):
        found = best_genotype(model, scores, budget_ms)
        assert space.choices(found) == tuple(int(each.argmax()) for each in scores)


# One block of three widths: its first option is the best, and its last the worst.
THREE = ChannelSpace(
    SpaceSpec(
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

    monkeypatch.setattr("hwnas.search.derive._EXCLUSIONS", exclusions)
    model = LatencyModel(THREE, table_of(THREE, cost_us))
    budget_ms = model.predict_ms(THREE.genotype_of_choices([budget_of]))
    genotype = best_genotype(model, [np.array([0.0, -1.0, -2.0])], budget_ms)
    assert model.predict_ms(genotype) <= budget_ms
    if exclusions == 8:
        assert THREE.choices(genotype) == (found,)


def test_more_budget_never_gives_less(table_of: TableMaker) -> None:
    space = ChannelSpace(SPACES["rnas-cl-xs"])
    model = model_of(space, table_of, 0)
    scores = scores_of(space, 0)
    low, high = model.range_ms()
    found = [best_genotype(model, scores, each) for each in np.linspace(low, high, 12)]
    values = [score(space, genotype, scores) for genotype in found]
    assert all(after >= before - GAP for before, after in itertools.pairwise(values))
    assert values[-1] > values[0]


def test_the_same_question_has_the_same_answer(table_of: TableMaker) -> None:
    space = ChannelSpace(SPACES["rnas-cl-xs"])
    model = model_of(space, table_of, 0, whole=True)
    even = [np.zeros(len(options)) for options in space.options]
    budget_ms = float(np.mean(model.range_ms()))
    assert best_genotype(model, even, budget_ms) == best_genotype(model, even, budget_ms)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_the_published_space_is_solved_in_a_second(table_of: TableMaker, fraction: float) -> None:
    space = ChannelSpace(SPACES["rnas-cl-s7"])
    assert len(space.options) == 21
    generator = np.random.default_rng(0)

    def cost_us(key: OperatorKey) -> float:
        return key.hidden * key.out_shape[0] * 1e-3 * float(generator.lognormal(0, 0.1)) + 1.0

    model = LatencyModel(space, table_of(space, cost_us))
    scores = scores_of(space, 0)
    low, high = model.range_ms()
    budget_ms = low + fraction * (high - low)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        found = best_genotype(model, scores, budget_ms)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1, seconds
    assert model.predict_ms(found) <= budget_ms
    # No other width of any one block, nor of any two neighbors, is better and still in budget.
    choices = space.choices(found)
    best = score(space, found, scores)
    for block in range(20):
        for first in range(len(space.options[block])):
            for second in range(len(space.options[block + 1])):
                other = (*choices[:block], first, second, *choices[block + 2 :])
                genotype = space.genotype_of_choices(other)
                if model.predict_ms(genotype) <= budget_ms:
                    assert score(space, genotype, scores) <= best + GAP


@pytest.mark.parametrize("budget_ms", [0.0, -1.0, float("nan"), float("inf"), float("-inf")])
def test_a_budget_that_is_no_number_is_refused(table_of: TableMaker, budget_ms: float) -> None:
    space = ChannelSpace(SPACES["rnas-cl-xs"])
    model = model_of(space, table_of, 0)
    with pytest.raises(BudgetError, match="is a positive number of milliseconds"):
        best_genotype(model, scores_of(space, 0), budget_ms)


def test_a_budget_below_the_fastest_names_the_fastest(table_of: TableMaker) -> None:
    space = ChannelSpace(SPACES["rnas-cl-xs"])
    model = model_of(space, table_of, 0)
    low, high = model.range_ms()
    with pytest.raises(BudgetError, match="no network meets a budget") as caught:
        best_genotype(model, scores_of(space, 0), low * 0.999)
    assert f"take {low:.4g} to {high:.4g} ms" in caught.value.message
    assert f"at least {low:.4g} ms" in caught.value.hint
    check_budget(model, low)
