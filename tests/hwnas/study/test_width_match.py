from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.study.width_match import MAX_ROUNDS, WIDTHS, matched_widths

if TYPE_CHECKING:
    from collections.abc import Sequence


class Clock:
    """Networks whose latency is a fixed price and a power of the width."""

    def __init__(self, goals: Sequence[float], *, fixed: float = 20.0, power: float = 1.7) -> None:
        self.goals, self.fixed, self.power = goals, fixed, power
        self.rounds: list[list[tuple[int, float]]] = []

    def latency(self, width: float) -> float:
        return self.fixed + 30.0 * float(width**self.power)

    def ratios(self, asked: Sequence[tuple[int, float]]) -> list[float]:
        self.rounds.append(list(asked))
        return [self.latency(width) / self.goals[index] for index, width in asked]


@given(
    st.lists(st.floats(40.0, 900.0), min_size=1, max_size=4),
    st.floats(0.0, 30.0),
    st.floats(1.0, 2.2),
)
def test_widths_meet_the_goal_in_few_rounds(goals: list[float], fixed: float, power: float) -> None:
    clock = Clock(goals, fixed=fixed, power=power)
    widths = matched_widths(len(goals), clock.ratios, start=1.73)
    assert len(clock.rounds) <= MAX_ROUNDS
    for goal, width in zip(goals, widths, strict=True):
        reachable = clock.latency(WIDTHS[0]) <= goal <= clock.latency(WIDTHS[1])
        assert not reachable or clock.latency(width) == pytest.approx(goal, rel=0.1)


def test_all_models_share_the_rounds_and_stop_on_their_own() -> None:
    clock = Clock([clock_at(1.72), 900.0])
    matched_widths(2, clock.ratios, start=1.72)
    assert [index for index, _ in clock.rounds[0]] == [0, 1]
    assert all(index == 1 for index, _ in clock.rounds[1])


def test_no_width_is_measured_twice() -> None:
    clock = Clock([55.0, 150.0, 400.0])
    matched_widths(3, clock.ratios, start=1.73)
    asked = [each for round_ in clock.rounds for each in round_]
    assert len(asked) == len(set(asked))


def test_out_of_reach_the_nearest_end_is_taken() -> None:
    assert matched_widths(1, Clock([1e6]).ratios, start=1.5) == [WIDTHS[1]]
    assert matched_widths(1, Clock([1.0]).ratios, start=1.5)[0] < 0.2


def test_noise_does_not_keep_it_from_an_answer() -> None:
    clock = Clock([150.0])
    noise = iter([1.04, 0.97, 1.02, 0.99, 1.03, 0.96, 1.0])
    (width,) = matched_widths(
        1, lambda asked: [each * next(noise) for each in clock.ratios(asked)], start=1.73
    )
    assert clock.latency(width) == pytest.approx(150.0, rel=0.08)


def clock_at(width: float) -> float:
    return Clock([]).latency(width)
