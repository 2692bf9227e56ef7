"""The Pareto front of score and latency, beside trying all networks and integer programs."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.core.errors import BudgetError
from hwnas.latency.resources import SpaceCosts
from hwnas.search.budget import Budgets
from hwnas.search.derive import best_by_program, best_genotype
from hwnas.search.front import front_by_program, pareto_front, score_of_choices
from hwnas.search.labels import TooManyLabels
from hwnas.search.program import SCORE_GAP
from hwnas.space.chain_space import all_genotypes
from hwnas.space.channel.space import ChannelSpace
from hwnas.space.channel.spec import CHANNEL_SPACES, ChannelSpec, StageSpec
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import SPACES

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from hwnas.space.chain_space import ChainSpace
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.workload import OperatorKey

    TableMaker = Callable[..., LatencyTable]
    Scores = list[NDArray[np.float64]]

seeds = st.integers(0, 2**32)

SMALL = ChannelSpace(
    ChannelSpec(
        name="small",
        image_shape=(1, 8, 8),
        classes=2,
        stem=4,
        stem_stride=1,
        stages=(
            StageSpec(blocks=2, widths=(6, 4)),
            StageSpec(blocks=2, widths=(9, 6, 3), stride=2),
        ),
    )
)


def costs_of(
    space: ChainSpace, table_of: TableMaker, seed: int, *, whole: bool = False
) -> SpaceCosts:
    """Times that grow with the work, as measured ones do, or few whole numbers."""
    generator = np.random.default_rng(seed)

    def cost_us(key: OperatorKey) -> float:
        if whole:
            return float(generator.integers(1, 4))
        return 5.0 + space.macs_of(key) * 3e-5 * float(generator.lognormal(0, 0.15))

    return SpaceCosts(space, table_of(space, cost_us))


def scores_of(costs: SpaceCosts, seed: int, *, liking: float = 0.0) -> Scores:
    """Log-probabilities; the more `liking`, the likelier is what takes long."""
    generator = np.random.default_rng(seed + 1)
    scores = []
    for link in costs.latency.links_us[1:-1]:
        takes = link.mean(axis=0)
        logits = generator.normal(0, 0.5, len(takes)) + liking * np.sqrt(takes / takes.max())
        scores.append(logits - np.log(np.exp(logits).sum()))
    return scores


@settings(max_examples=40)
@given(seed=seeds, whole=st.booleans(), bounded=st.booleans(), fraction=st.floats(0.3, 1))
def test_the_front_is_that_of_trying_all(
    table_of: TableMaker, seed: int, whole: bool, bounded: bool, fraction: float
) -> None:
    costs = costs_of(SMALL, table_of, seed, whole=whole)
    scores = scores_of(costs, seed)
    if whole:
        scores = [each.round() for each in scores]
    low, high = costs.latency.range_ms()
    budgets = Budgets(latency_ms=low + fraction * (high - low))
    genotypes = all_genotypes(SMALL)
    if bounded:
        params_k = sorted(costs.params.of(SMALL.choices(each)) / 1e3 for each in genotypes)
        budgets = replace(budgets, params_k=params_k[len(params_k) // 2])
    every = {}
    for genotype in genotypes:
        latency_ms = costs.latency.predict_ms(genotype)
        params = costs.params.of(SMALL.choices(genotype))
        fits = budgets.params_k is None or params / 1e3 <= budgets.params_k
        if fits and latency_ms <= budgets.latency_ms:
            score = score_of_choices(scores, SMALL.choices(genotype))
            every[genotype] = (latency_ms, -score)
    expected = {
        one
        for one in every.values()
        if not any(o != one and o[0] <= one[0] and o[1] <= one[1] for o in every.values())
    }
    front = pareto_front(costs, scores, budgets)
    assert front.complete
    found = [every[front.genotype(place)] for place in range(len(front))]
    assert set(found) == expected
    assert found == sorted(expected)
    assert [(ms, -score) for ms, score in zip(front.latencies_ms, front.scores, strict=True)] == (
        found
    )


def test_every_budget_is_a_look_up_on_the_front(table_of: TableMaker) -> None:
    costs = costs_of(ChannelSpace(CHANNEL_SPACES["rnas-cl-s7"]), table_of, 0)
    scores = scores_of(costs, 0, liking=2)
    low, high = costs.latency.range_ms()
    front = pareto_front(costs, scores, Budgets(latency_ms=high))
    assert len(front) > 20
    assert (np.diff(front.latencies_ms) > 0).all()
    assert (np.diff(front.scores) > 0).all()
    for budget_ms in np.linspace(low, high, 15):
        assert front.best(budget_ms) == best_genotype(costs, scores, Budgets(latency_ms=budget_ms))
    assert front.best(front.latencies_ms[3]) == front.genotype(3)
    assert front.best(low * 0.999) is None


@pytest.mark.parametrize("name", ["rnas-cl-s7", "rnas-cl-imagenet", "mbconv-224-widths"])
def test_on_large_spaces_it_is_what_an_integer_program_finds(
    table_of: TableMaker, name: str
) -> None:
    costs = costs_of(space_from_spec(SPACES[name]), table_of, 1)
    scores = scores_of(costs, 1, liking=2)
    low, high = costs.latency.range_ms()
    start = time.process_time()
    front = pareto_front(costs, scores, Budgets(latency_ms=high))
    assert time.process_time() - start < 5  # a fraction of a second on a core of its own
    for fraction in (0.2, 0.5):
        budgets = Budgets(latency_ms=low + fraction * (high - low))
        best = front.best(budgets.latency_ms)
        proof = best_by_program(costs, scores, budgets)
        assert best is not None
        assert proof is not None
        ours, theirs = (
            score_of_choices(scores, costs.space.choices(genotype)) for genotype in (best, proof)
        )
        assert costs.latency.predict_ms(best) <= budgets.latency_ms
        assert -1e-9 <= ours - theirs <= 2 * SCORE_GAP


@pytest.mark.slow
def test_the_proof_holds_without_the_merging_of_states(table_of: TableMaker) -> None:
    costs = costs_of(space_from_spec(SPACES["mbconv-224-widths"]), table_of, 2)
    scores = scores_of(costs, 2, liking=2)
    budgets = Budgets(latency_ms=float(np.mean(costs.latency.range_ms())))
    best = best_genotype(costs, scores, budgets)
    proof = best_by_program(costs, scores, budgets, merge=False)
    assert proof is not None
    ours, theirs = (
        score_of_choices(scores, costs.space.choices(genotype)) for genotype in (best, proof)
    )
    assert -1e-9 <= ours - theirs <= 2 * SCORE_GAP


def test_points_are_spread_over_the_latency_with_both_ends(table_of: TableMaker) -> None:
    costs = costs_of(ChannelSpace(CHANNEL_SPACES["rnas-cl-s7"]), table_of, 0)
    front = pareto_front(
        costs, scores_of(costs, 0, liking=2), Budgets(latency_ms=costs.latency.range_ms()[1])
    )
    ends = [0, len(front) - 1]
    for points in (2, 5, 17):
        places = front.spread(points)
        assert [places[0], places[-1]] == ends
        assert 2 <= len(places) <= points
        assert (np.diff(places) > 0).all()
    assert front.spread(10**6).tolist() == list(range(len(front)))
    assert front.spread(1).tolist() == [len(front) // 2]
    assert front.spread(0).tolist() == []
    first_ms, last_ms = front.latencies_ms[ends].tolist()
    even = np.linspace(first_ms, last_ms, 5)
    nearest = [int(np.abs(front.latencies_ms - each).argmin()) for each in even]
    assert front.spread(5).tolist() == sorted(set(nearest))


def test_what_is_found_one_by_one_is_on_the_front(table_of: TableMaker) -> None:
    costs = costs_of(ChannelSpace(CHANNEL_SPACES["rnas-cl-xs"]), table_of, 3)
    scores = scores_of(costs, 3)
    budgets = Budgets(latency_ms=costs.latency.range_ms()[1])
    whole = pareto_front(costs, scores, budgets)
    some = front_by_program(costs, scores, budgets, 6)
    assert not some.complete
    assert 2 <= len(some) <= 6
    on_the_front = set(zip(whole.latencies_ms, whole.scores, strict=True))
    assert set(zip(some.latencies_ms, some.scores, strict=True)) <= on_the_front
    assert some.scores[-1] == whole.scores[-1]


def test_a_front_too_large_is_refused_and_so_is_a_budget_below_all(table_of: TableMaker) -> None:
    costs = costs_of(SMALL, table_of, 0)
    scores = scores_of(costs, 0)
    low, high = costs.latency.range_ms()
    with pytest.raises(TooManyLabels, match="more than 4 partial"):
        pareto_front(costs, scores, Budgets(latency_ms=high), max_candidates=4)
    with pytest.raises(BudgetError, match=r"take .* to .* ms on this target"):
        pareto_front(costs, scores, Budgets(latency_ms=low / 2))
    # More bounds than labels can have, but only one of them binds.
    free = Budgets(latency_ms=high, macs_m=1e6, params_k=1e6)
    assert len(pareto_front(costs, scores, free)) > 1
    tight = Budgets(
        latency_ms=high,
        macs_m=float(np.mean(costs.macs.range() or ())) / 1e6,
        params_k=float(np.mean(costs.params.range() or ())) / 1e3,
    )
    with pytest.raises(TooManyLabels, match="3 budgets add up"):
        pareto_front(costs, scores, tight)
    assert len(front_by_program(costs, scores, tight, 5)) > 1
