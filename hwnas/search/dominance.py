"""Which of many paths no other beats: more score is better, less of each cost is.

References:
    Kung, Luccio and Preparata, "On finding the maxima of a set of vectors" (1975): dominance by
    dividing. Ours looks at all parts of a size at once, as an array.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hwnas.search.chain import Floats, Ints

MAX_COSTS = 2
"""Costs besides the score: of more there is no way to compare many that arrays are fast at."""


def undominated(scores: Floats, costs: Floats) -> Ints:
    """Return the places of what nothing beats or equals: more score is better, less cost is.

    Args:
        scores: (N,).
        costs: (one or two, N).

    Returns:
        Of equal ones the first; in ascending order of cost, or of two costs in descending order of
        score.

    >>> undominated(np.array([3.0, 1.0, 2.0, 3.0]), np.array([[5.0, 2.0, 2.0, 5.0]]))
    array([2, 0])
    """
    if len(costs) == 1:
        order = np.lexsort((-scores, costs[0]))
        ranked = scores[order]
        rises = ranked[1:] > np.maximum.accumulate(ranked)[:-1]
        return order[np.flatnonzero(np.concatenate([np.ones(min(len(order), 1), bool), rises]))]
    order = np.lexsort((costs[1], costs[0], -scores))
    return order[np.flatnonzero(~_beaten(costs[0, order], costs[1, order]))]


def _beaten(first: Floats, second: Floats) -> NDArray[np.bool_]:
    """Return which pairs have one before them that is at most as large in both numbers.

    Halves are compared, then halves of these, ..., all of a size at once: within two of them, in
    the order of the first number, the least second number of the left one so far tells for each of
    the right one whether it is beaten. One sort, then N log N.

    Args:
        first: (N,).
        second: (N,).
    """
    count = len(first)
    size = 1 << max(0, (count - 1).bit_length())
    filler = np.full(size - count, np.inf)
    second = np.concatenate([second, filler])
    # Of equal ones the earlier goes first, and beats the later.
    places = np.argsort(np.concatenate([first, filler]), kind="stable")[None, :]
    beaten = np.zeros(size, dtype=np.bool_)
    half = size // 2
    while half:
        # places: (parts, 2 * half), each part in the order of the first number. Which half of the
        # part a pair belongs to, one bit of its place says.
        is_left = (places & half) == 0
        here = second[places]
        of_left = np.minimum.accumulate(np.where(is_left, here, np.inf), axis=1)
        beaten[places[~is_left & (of_left <= here)]] = True
        halves = [places[side].reshape(-1, half) for side in (is_left, ~is_left)]
        places = np.stack(halves, axis=1).reshape(-1, half)
        half //= 2
    return beaten[:count]
