"""How wide one network must be to take as long as another model: measured, not computed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Ratios = Callable[[Sequence[tuple[int, float]]], Sequence[float]]

WIDTHS = (0.125, 16.0)
"""The narrowest and the widest that is tried, as multiples of the channels."""
MAX_ROUNDS = 7
_STEP = 0.02
_CLOSE = 0.01
"""Latencies that differ by no more are alike: a measurement is hardly more exact."""
_FACTORS = (0.5, 2.0)
"""How far one guess may go from the one before."""


def matched_widths(count: int, ratios: Ratios, *, start: float) -> list[float]:
    """Find, for each of several models, the width at which a network takes as long.

    Latency over width is near a straight line in logarithms, from which small networks depart, as
    every call has its price, and kernels have widths that they like. So the next guess lies on the
    line through the two nearest measurements around the goal; where all lie on one side of it, on
    the plain line through the two nearest, or on a square law while there is one.

    Args:
        count: How many models.
        ratios: Measures networks: given the index of the model and a width of each, returns the
            network's latency over that model's, both of the same measurement.
        start: The width that is tried first.

    Returns:
        Of each model, the width of those measured whose ratio was nearest to 1.
    """
    tried: list[dict[float, float]] = [{} for _ in range(count)]
    guesses = dict.fromkeys(range(count), _stepped(start))
    for _ in range(MAX_ROUNDS):
        if not guesses:
            break
        asked = list(guesses.items())
        for (index, width), ratio in zip(asked, ratios(asked), strict=True):
            tried[index][width] = ratio
        guesses = {
            index: guess
            for index in guesses
            if (guess := _next_width(tried[index])) not in tried[index]
        }
    return [min(own, key=lambda width, own=own: abs(math.log(own[width]))) for own in tried]  # type: ignore[misc]


def _next_width(tried: dict[float, float]) -> float:
    """Guess anew; a width that was tried means that there is nothing better to be found."""
    best = min(tried, key=lambda width: abs(math.log(tried[width])))
    if abs(math.log(tried[best])) <= _CLOSE:
        return best
    faster = max((width for width, ratio in tried.items() if ratio < 1), default=None)
    slower = min(
        (w for w, ratio in tried.items() if ratio >= 1 and w > (faster or 0.0)), default=None
    )
    if faster is None or slower is None:
        # Along the line through two measurements: latency is convex in width, so that this goes
        # beyond the goal, and never creeps up to it. Where there are not two, a square law.
        first, *others = sorted(tried, key=lambda width: abs(math.log(tried[width])))
        factor = tried[first] ** -0.5
        if others and (tried[others[0]] - tried[first]) / (others[0] - first) > 0:
            slope = (tried[others[0]] - tried[first]) / (others[0] - first)
            factor = (first + (1 - tried[first]) / slope) / first
        # But never a step so small that the rounds are used up by it.
        factor = max(factor, 1.1) if factor > 1 else min(factor, 0.9)
        low, high = _FACTORS
        return _stepped(best * min(max(factor, low), high))
    share = math.log(1 / tried[faster]) / math.log(tried[slower] / tried[faster])
    return _stepped(faster * (slower / faster) ** share)


def _stepped(width: float) -> float:
    low, high = WIDTHS
    return min(max(round(round(width / _STEP) * _STEP, 2), low), high)
