from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwnas.latency.costs import ChainCost

seeds = st.integers(0, 2**32)


def drawn(seed: int) -> ChainCost:
    generator = np.random.default_rng(seed)
    sizes = [1, *generator.integers(1, 4, 3).tolist(), 1]
    pairs = zip([1, *sizes[:-1]], sizes, strict=True)
    return ChainCost(
        tuple(generator.lognormal(0, 3, pair) for pair in pairs),
        fixed=0.1,
        curvature=0.02 if seed % 2 else 0.0,
    )


def every(cost: ChainCost) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(link.shape[1]) for link in cost.links[1:-1])))


@given(seed=seeds)
def test_a_network_adds_up_from_the_stem_to_the_head_to_the_last_bit(seed: int) -> None:
    """Labels add up in this order; rounded otherwise, a network at its budget would be lost."""
    cost = drawn(seed)
    for choices in every(cost):
        first, *rest = choices
        total = cost.links[0][0, 0] + cost.links[1][0, first]
        before = first
        for link, here in zip(cost.links[2:], (*rest, 0), strict=True):
            total = total + link[before, here]
            before = here
        assert cost.sum_of(choices) == total
        assert cost.of(choices) == (0.1 + total) * (1.0 + cost.curvature * (0.1 + total))


@given(seed=seeds)
def test_both_ends_are_those_of_the_networks_that_may_be_taken(seed: int) -> None:
    cost = drawn(seed)
    generator = np.random.default_rng(seed + 1)
    allowed = tuple(generator.random(link.shape) < 0.8 for link in cost.links)

    def may(choices: tuple[int, ...]) -> bool:
        whole = (0, *choices, 0)
        arcs = zip(allowed, (0, *whole[:-1]), whole, strict=True)
        return all(mask[i, j] for mask, i, j in arcs)

    totals = [cost.of(choices) for choices in every(cost) if may(choices)]
    ends = cost.range(allowed)
    if not totals:
        assert ends is None
    else:
        assert ends is not None
        np.testing.assert_allclose(ends, (min(totals), max(totals)), rtol=1e-12)


@given(seed=seeds)
def test_certain_choices_are_expected_to_cost_what_they_cost(seed: int) -> None:
    cost = drawn(seed)
    choices = every(cost)[seed % len(every(cost))]
    certain = [
        torch.eye(link.shape[1], dtype=torch.float64)[choice]
        for link, choice in zip(cost.links[1:-1], choices, strict=True)
    ]
    assert float(cost.expected(certain)) == pytest.approx(cost.of(choices))


@given(seed=seeds)
def test_a_network_is_within_its_own_cost_by_a_hair(seed: int) -> None:
    cost = drawn(seed)
    for choices in every(cost):
        assert cost.sum_within(cost.of(choices)) == pytest.approx(cost.sum_of(choices), rel=1e-12)
