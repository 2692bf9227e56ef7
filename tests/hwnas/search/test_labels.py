"""Paths that nothing beats, on chains drawn at random, beside trying all paths."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.latency.costs import ChainCost
from hwnas.search.chain import state_chain
from hwnas.search.feasible import Row
from hwnas.search.labels import TooManyLabels, best_paths
from hwnas.search.program import SCORE_GAP, best_path

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hwnas.latency.costs import LinkFloats, LinkMasks
    from hwnas.search.chain import StateChain

    Floats = NDArray[np.float64]


class Drawn:
    """A chain with few options, some of which have equal rows or cannot be taken."""

    def __init__(self, seed: int, *, costs: int, whole: bool, blocks: int = 4) -> None:
        generator = np.random.default_rng(seed)
        sizes = [1, *generator.integers(1, 5, blocks).tolist(), 1]

        def link(before: int, here: int) -> Floats:
            if whole:
                drawn = generator.integers(0, 3, (before, here)).astype(np.float64)
            else:
                drawn = generator.normal(5, 3, (before, here))
            # Rows of a pool, so that some options have the same future.
            return drawn[generator.integers(0, before, before)]

        self.scores = [generator.integers(-3, 0, size) * (1.0 if whole else 0.3) for size in sizes]
        self.scores = [each + (0 if whole else generator.normal(size=len(each))) for each in
                       self.scores][1:-1]  # fmt: skip
        pairs = list(zip([1, *sizes[:-1]], sizes, strict=True))
        self.links: list[LinkFloats] = [
            tuple(link(before, here) for before, here in pairs) for _ in range(costs)
        ]
        self.allowed: LinkMasks = tuple(
            generator.random((before, here)) < 0.9 for before, here in pairs
        )
        self.sizes = sizes[1:-1]

    def rows(self, limits: list[float]) -> list[Row]:
        return [
            Row(name="x", cost=ChainCost(links, fixed=0.7), divisor=1e3, budget=limit)
            for links, limit in zip(self.links, limits, strict=True)
        ]

    def chain(self, limits: list[float], *, merge: bool = True) -> StateChain:
        return state_chain(self.rows(limits), self.scores, self.allowed, merge=merge)

    def every(self, limits: list[float]) -> dict[tuple[int, ...], tuple[float, ...]]:
        """Score, negative, and costs in the unit of the budget, of all paths that are allowed."""
        rows = self.rows(limits)
        found = {}
        for choices in itertools.product(*map(range, self.sizes)):
            whole = (0, *choices, 0)
            arcs = zip(self.allowed, (0, *whole[:-1]), whole, strict=True)
            if not all(mask[i, j] for mask, i, j in arcs):
                continue
            score = 0.0
            for each, choice in zip(self.scores, choices, strict=True):
                score += float(each[choice])
            costs = [row.cost.of(choices) / row.divisor for row in rows]
            if all(cost <= limit for cost, limit in zip(costs, limits, strict=True)):
                found[choices] = (-score, *(row.cost.of(choices) for row in rows))
        return found


@pytest.mark.parametrize("costs", [1, 2])
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), whole=st.booleans(), data=st.data())
def test_paths_are_those_of_trying_all(
    costs: int, seed: int, whole: bool, data: st.DataObject
) -> None:
    drawn = Drawn(seed, costs=costs, whole=whole)
    free = drawn.every([1e9] * costs)
    limits = [
        data.draw(st.sampled_from([each[index + 1] / 1e3 for each in free.values()] or [1.0]))
        for index in range(costs)
    ]
    every = drawn.every(limits)
    expected = {
        one
        for one in every.values()
        if not any(
            other != one and all(a <= b for a, b in zip(other, one, strict=True))
            for other in every.values()
        )
    }
    for merge in (True, False):
        paths = best_paths(drawn.chain(limits, merge=merge))
        found = {every[tuple(choices)] for choices in paths.choices.tolist()}
        assert found == expected
        assert len(paths.choices) == len(expected)
        for score, choices in zip(paths.scores, paths.choices.tolist(), strict=True):
            assert every[tuple(choices)][0] == -score  # to the last bit


@pytest.mark.parametrize("costs", [1, 2, 3])
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), merge=st.booleans(), data=st.data())
def test_the_integer_program_finds_the_best_of_trying_all(
    costs: int, seed: int, merge: bool, data: st.DataObject
) -> None:
    drawn = Drawn(seed, costs=costs, whole=False)
    free = list(drawn.every([1e9] * costs).values())
    limits = [
        data.draw(st.sampled_from([each[index + 1] / 1e3 for each in free] or [1.0]))
        for index in range(costs)
    ]
    every = drawn.every(limits)
    choices = best_path(drawn.chain(limits, merge=merge))
    if not every:
        assert choices is None
    else:
        assert choices is not None
        assert every[choices][0] == pytest.approx(min(every.values())[0], abs=2 * SCORE_GAP)


def test_options_with_one_future_share_a_state() -> None:
    same = np.array([[1.0, 2.0], [1.0, 2.0], [3.0, 4.0]])
    other = np.array([[5.0, 6.0], [5.0, 7.0], [5.0, 6.0]])
    ends = (np.ones((1, 3)), np.ones((2, 1)))

    def states(*links: Floats, open_: NDArray[np.bool_] | None = None) -> list[int]:
        rows = [
            Row(
                name="x",
                cost=ChainCost((np.ones((1, 1)), ends[0], link, ends[1])),
                divisor=1.0,
                budget=9.0,
            )
            for link in links
        ]
        allowed = [np.ones(link.shape, dtype=np.bool_) for link in rows[0].cost.links]
        if open_ is not None:
            allowed[2] = open_
        chain = state_chain(rows, [np.zeros(3), np.zeros(2)], tuple(allowed))
        return [int(state) for state in chain.steps[1].states]

    assert states(same) == [0, 0, 1]
    # Each cost must agree, and what may be taken.
    assert states(same, other) == [0, 1, 2]
    assert states(same, open_=np.array([[True, True], [True, False], [True, True]])) == [0, 1, 2]


def test_too_many_labels_or_costs_are_given_up_on() -> None:
    drawn = Drawn(1, costs=1, whole=False, blocks=6)
    assert len(best_paths(drawn.chain([1e9])).scores)
    with pytest.raises(TooManyLabels, match="more than 3 partial networks"):
        best_paths(drawn.chain([1e9]), max_candidates=3)
    three = Drawn(1, costs=3, whole=False)
    with pytest.raises(TooManyLabels, match="3 budgets add up along the chain, more than 2"):
        best_paths(three.chain([1e9] * 3))


def test_labels_are_compared_in_chunks_to_the_same_end(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawn(2, costs=2, whole=False, blocks=9)
    whole = best_paths(drawn.chain([1e9] * 2))
    monkeypatch.setattr("hwnas.search.labels._CHUNK", 8)
    parts = best_paths(drawn.chain([1e9] * 2))
    assert len(whole.scores) > 5
    assert np.array_equal(whole.choices, parts.choices)
    assert np.array_equal(whole.costs, parts.costs)


def test_nothing_is_found_where_nothing_is_open() -> None:
    drawn = Drawn(3, costs=1, whole=False)
    drawn.allowed = tuple(np.zeros_like(mask) for mask in drawn.allowed)
    paths = best_paths(drawn.chain([1e9]))
    assert paths.scores.shape == (0,)
    assert paths.choices.shape == (0, 4)
    assert best_path(drawn.chain([1e9])) is None
