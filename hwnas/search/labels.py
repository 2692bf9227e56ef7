"""All paths through a chain of states that no other path beats, exactly.

Dynamic programming over labels, as for shortest paths with resources. A label is a path from the
stem to a state: its score and its costs. One that another of the same state beats or equals in all
of these is dropped, as whatever follows, the other does as well; one that cannot come to the head
within the limits is dropped too. Those left at the head are the Pareto front.

The sums go from the stem to the head, as `ChainCost.of` and a sum of scores do, and rounding keeps
order: a <= b gives a + x <= b + x in floating point as well. So dropping labels is exact to the
last bit, and what is found is what trying all networks would find.

How many labels are left is not bounded by theory (they may be as many as the paths), so the work
is: where scores and costs of a space are measured, thousands are left of 10^20 paths (see
benchmarks/search/derivation.py).

References:
    Desrochers and Soumis, "A generalized permanent labelling algorithm for the shortest path
    problem with time windows" (1988).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np

from hwnas.search.dominance import MAX_COSTS, undominated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hwnas.search.chain import Floats, Ints, StateChain, Step

MAX_CANDIDATES = {1: 10_000_000, 2: 5_000_000}
"""Labels that may be looked at, by number of costs: about ten seconds' worth, and under 1 GB."""

_CHUNK = 1 << 19
"""Labels that are made at once, and so many wait before those that are beaten go."""

_SLACK = 1e-9
"""Share of its terms that a sum in another order may be off by, with very much to spare."""


class TooManyLabels(Exception):
    """So many labels are left that the search for more was given up."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Paths:
    """Paths from the stem to the head.

    Attributes:
        scores: Of each, (N,).
        costs: Of each, summed from the stem on, (costs, N).
        choices: Option of each searched block, (N, blocks).
    """

    scores: Floats
    costs: Floats
    choices: Ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Labels:
    """Labels of one state.

    Attributes:
        scores: (N,).
        costs: (costs, N).
        before: Place of the label before, among all of the link before, (N,).
        option: Option that led here, (N,).
    """

    scores: Floats
    costs: Floats
    before: Ints
    option: Ints

    def __len__(self) -> int:
        return len(self.scores)

    def at(self, places: Ints) -> _Labels:
        return _Labels(
            scores=self.scores[places],
            costs=self.costs[:, places],
            before=self.before[places],
            option=self.option[places],
        )


def best_paths(chain: StateChain, *, max_candidates: int | None = None) -> Paths:
    """Return every path within the limits that no other beats or equals.

    Of paths that are equal in the score and in all costs one is returned, the same each time.

    Args:
        chain: The chain, of at most `MAX_COSTS` costs.
        max_candidates: Labels that may be looked at; by default `MAX_CANDIDATES`.

    Returns:
        The paths; none where none is within the limits.

    Raises:
        TooManyLabels: There are more costs, or more labels, than can be managed.
    """
    count = len(chain.rows)
    if count > MAX_COSTS:
        raise TooManyLabels(f"{count} budgets add up along the chain, more than {MAX_COSTS}")
    work = _Work(MAX_CANDIDATES[count] if max_candidates is None else max_candidates)
    rooms = _rooms(chain)
    labels = [
        _Labels(
            scores=np.zeros(1),
            costs=np.zeros((count, 1)),
            before=np.zeros(1, dtype=np.int64),
            option=np.zeros(1, dtype=np.int64),
        )
    ]
    trail: list[tuple[Ints, Ints]] = []
    for step, room in zip(chain.steps, rooms, strict=True):
        labels = _next_labels(step, room, labels, work)
        trail.append(
            (
                np.concatenate([each.before for each in labels]),
                np.concatenate([each.option for each in labels]),
            )
        )
    (ends,) = labels  # the head is one state
    met = chain.meets(ends.costs)
    places = np.flatnonzero(met)
    choices = np.empty((len(places), len(trail)), dtype=np.int64)
    for index in range(len(trail) - 1, -1, -1):
        before, option = trail[index]
        choices[:, index], places = option[places], before[places]
    return Paths(scores=ends.scores[met], costs=ends.costs[:, met], choices=choices[:, 1:-1])


def _rooms(chain: StateChain) -> list[Floats]:
    """Return, after each step, what a label may have spent at each state, (costs, states).

    That is the limit less the least that is still to be spent; a little more, as sums in this order
    are rounded otherwise. Only `StateChain.meets` decides, at the end.
    """
    limits = chain.limits
    terms = np.abs(limits)
    for step in chain.steps:
        finite = np.where(np.isfinite(step.costs), np.abs(step.costs), 0.0)
        terms = terms + finite.max(axis=(1, 2), initial=0.0)
    least = np.zeros((len(limits), 1))  # still to be spent, by state
    rooms: list[Floats] = []
    for step in reversed(chain.steps):
        rooms.append((limits + _SLACK * terms)[:, None] - least)
        least = (step.costs + least[:, None, step.states]).min(axis=2)
    return rooms[::-1]


@final
class _Work:
    """Counts the labels that are looked at.

    Args:
        most: How many may be.
    """

    def __init__(self, most: int) -> None:
        self._most = self._left = most

    def spend(self, count: int) -> None:
        """Raise TooManyLabels once there were too many."""
        self._left -= count
        if self._left < 0:
            raise TooManyLabels(f"more than {self._most:,} partial networks are left to compare")


@final
class _Pool:
    """Labels of one state as they come; those that are beaten go once there are many.

    Args:
        costs: Costs of each.
    """

    def __init__(self, costs: int) -> None:
        self._costs = costs
        self._parts: list[_Labels] = []
        self._waiting, self._most = 0, _CHUNK

    def add(self, labels: _Labels) -> None:
        """Take labels in."""
        self._parts.append(labels)
        self._waiting += len(labels)
        if self._waiting > self._most:
            self._parts = [self.undominated()]
            self._waiting = len(self._parts[0])
            self._most = max(_CHUNK, 2 * self._waiting)  # else what is left is compared for ever

    def undominated(self) -> _Labels:
        """Return those that no other beats or equals."""
        parts = self._parts
        labels = _Labels(
            scores=np.concatenate([each.scores for each in parts]),
            costs=np.concatenate([each.costs for each in parts], axis=1),
            before=np.concatenate([each.before for each in parts]),
            option=np.concatenate([each.option for each in parts]),
        )
        return labels.at(undominated(labels.scores, labels.costs))


def _next_labels(step: Step, room: Floats, before: list[_Labels], work: _Work) -> list[_Labels]:
    """Lead the labels of all states over a link.

    Args:
        step: The link.
        room: What may have been spent after it, (costs, states).
        before: Labels of each state before it.
        work: Counts what is looked at.

    Returns:
        The labels of each state after it.
    """
    offsets = np.cumsum([0, *(len(each) for each in before)])[:-1]
    after = []
    for state in range(step.state_count):
        options = np.flatnonzero(step.states == state)
        scores = step.scores[options]
        pool = _Pool(len(room))
        all_arcs = step.costs[:, :, options].swapaxes(0, 1)  # -> (states before, costs, options)
        for labels, offset, arcs in zip(before, offsets, all_arcs, strict=True):
            taken = _worth_taking(arcs, scores)
            for new in _extended(labels, offset, arcs[:, taken], scores[taken], options[taken]):
                work.spend(len(new))
                fits = (new.costs <= room[:, state, None]).all(axis=0)
                pool.add(new.at(np.flatnonzero(fits)))
        after.append(pool.undominated())
    return after


def _worth_taking(arcs: Floats, scores: Floats) -> Ints:
    """Return which options between two states can be of use, of costs (costs, options)."""
    open_ = np.flatnonzero(np.isfinite(arcs).all(axis=0))
    return open_[np.sort(undominated(scores[open_], arcs[:, open_]))]


def _extended(
    labels: _Labels, offset: int, arcs: Floats, scores: Floats, options: Ints
) -> Iterator[_Labels]:
    """Lead the labels of one state over arcs to another, as many at a time as memory bears.

    At least one part comes, if an empty one: (N,) labels, (A,) arcs -> parts of (A * N,) in all.
    """
    arc_count = len(options)
    size = 1 + _CHUNK // max(1, arc_count)
    for start in range(0, max(1, len(labels)), size):
        part = slice(start, start + size)
        count = len(labels.scores[part])
        first = offset + start
        yield _Labels(
            scores=(labels.scores[None, part] + scores[:, None]).ravel(),
            # -> (costs, A, N) -> (costs, A * N)
            costs=(labels.costs[:, None, part] + arcs[:, :, None]).reshape(
                len(arcs), arc_count * count
            ),
            before=np.tile(np.arange(first, first + count), arc_count),
            option=np.repeat(options, count),
        )
