"""Pairs of neighboring operators, and what the seam between two operators is worth.

An operator that is timed alone pays for its call, takes its input from the caller's layout and
hands its output back to it. Within a network it pays none of this: the call is paid once, and a
tensor between two operators stays where and as it is. Timed as one, two neighbors say how much:

    seam = latency(before) + latency(after) - latency(both as one)

What the seam is worth depends on the tensor that crosses it far more than on the two operators, so
a few pairs for each shape of a boundary serve all of a space's networks, whose latency is then

    latency(network) = sum over its operators of latency - sum over its boundaries of seam

with one call's cost left in it, as a network's latency has. No network has to be timed for that.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hwnas_profilers.records import Measurement, PairMeasurement
    from hwnas_profilers.workload import Operator, OperatorKey

    Shape = tuple[int, int, int]

PAIRS_PER_SHAPE = 6


def neighbor_pairs(
    operators: Sequence[Operator], *, per_shape: int = PAIRS_PER_SHAPE
) -> list[tuple[Operator, Operator]]:
    """Choose pairs of operators that can be neighbors: the output of one is the other's input.

    The choice depends on the operators alone, so that a run that goes on chooses the same.

    Args:
        operators: The operators of a space.
        per_shape: Pairs for each shape that can be between two operators; fewer where there are
            no more.

    Returns:
        Pairs in the order of the operators.
    """
    given: dict[Shape, list[int]] = defaultdict(list)
    taken: dict[Shape, list[int]] = defaultdict(list)
    for index, operator in enumerate(operators):
        given[operator.key.out_shape].append(index)
        taken[operator.key.in_shape].append(index)
    generator = np.random.default_rng(0)
    chosen: list[tuple[int, int]] = []
    for shape in sorted(set(given) & set(taken)):
        before, after = given[shape], taken[shape]
        count = min(per_shape, len(before) * len(after))
        flat = generator.choice(len(before) * len(after), size=count, replace=False)
        chosen += [
            (before[each // len(after)], after[each % len(after)]) for each in map(int, flat)
        ]
    return [(operators[first], operators[second]) for first, second in sorted(chosen)]


def seams_us(
    measurements: Mapping[OperatorKey, Measurement], pairs: Iterable[PairMeasurement]
) -> dict[Shape, float]:
    """Return what a seam is worth in microseconds, by the shape that crosses it.

    The median over the pairs of a shape; a pair of which an operator is not measured is passed
    over. A seam is never worth less than nothing: joining two operators costs no time.
    """
    found: dict[Shape, list[float]] = defaultdict(list)
    for pair in pairs:
        alone = [measurements.get(key) for key in (pair.before, pair.after)]
        if None not in alone:
            sum_us = sum(each.statistics.median_us for each in alone if each is not None)
            found[pair.after.in_shape].append(sum_us - pair.statistics.median_us)
    return {shape: max(0.0, float(np.median(worth))) for shape, worth in found.items()}
