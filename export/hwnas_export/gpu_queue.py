"""Timing work that a GPU takes from a queue: graphs of many calls, between the GPU's own events."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from hwnas_export.runner import Sampler

E = TypeVar("E", bound="Event")

_LEAD_IN_US = 50.0  # a launch takes the host 5 to 20 us
_CALLS_PER_GRAPH = 256  # bounds the size of a graph; a launch is far cheaper than so many calls


class Graph(Protocol):
    """Work that was captured."""

    def replay(self) -> None:
        """Queue it once more."""


class Event(Protocol):
    """A mark in a GPU's queue of work."""

    def record(self) -> None:
        """Queue the mark."""

    def synchronize(self) -> None:
        """Wait until the GPU has come to it."""

    def elapsed_time(self, end_event: Self) -> float:
        """Return the milliseconds from here to another mark."""


def queued_sampler(
    graph_of: Callable[[int], Graph],
    new_event: Callable[[], E],
    *,
    calls_per_graph: int = _CALLS_PER_GRAPH,
) -> Sampler:
    """Time calls by a GPU's events around graphs that hold them.

    A few untimed calls go first. They keep the GPU at work while the host queues the rest; else the
    GPU would pass the first event at once, and the host's next launch would count as its time. They
    last about 50 us, or as long as one call where that is longer.

    Args:
        graph_of: Returns a graph of so many calls in a row, captured when it is first asked for.
        new_event: Makes an event.
        calls_per_graph: Most calls in one graph.
    """
    begin, end = new_event(), new_event()
    lead_in = 1

    def sample(calls: int) -> float:
        nonlocal lead_in
        whole, rest = divmod(calls, calls_per_graph)
        queue = [graph_of(calls_per_graph)] * whole + ([graph_of(rest)] if rest else [])
        graph_of(lead_in).replay()
        begin.record()
        for graph in queue:
            graph.replay()
        end.record()
        end.synchronize()
        elapsed_us = begin.elapsed_time(end) * 1e3
        wanted = ceil(_LEAD_IN_US * calls / max(elapsed_us, 1.0))
        # A power of two, so that noise does not ask for another graph at each sample.
        lead_in = min(1 << (wanted - 1).bit_length(), calls_per_graph)
        return elapsed_us * 1e3

    return sample
