"""What a node of a cell may be: two operations on two different sources."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Edge(NamedTuple):
    """One of the two terms of a node.

    Attributes:
        source: Where it comes from: 0 is the output of the cell before the last, 1 that of the
            last, 2 the cell's first node.
        operation: What it does.
    """

    source: int
    operation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOption:
    """What one node may be.

    Attributes:
        edges: Its two terms, the lower source first.

    >>> NodeOption.parse("sep3@0+skip@2").edges[1]
    Edge(source=2, operation='skip')
    """

    edges: tuple[Edge, Edge]

    @classmethod
    def parse(cls, name: str) -> Self:
        """Read a name back, which must be one."""
        first, second = (
            Edge(source=int(source), operation=operation)
            for operation, _, source in (term.partition("@") for term in name.split("+"))
        )
        return cls(edges=(first, second))

    @property
    def name(self) -> str:
        """What genotypes call it."""
        return "+".join(f"{edge.operation}@{edge.source}" for edge in self.edges)


def sources_of(node: int) -> int:
    """Count what a node may come from: both inputs and all nodes before it.

    Args:
        node: Which node, from 0.
    """
    return node + 2


def first_edge(node: int) -> int:
    """Count the edges of the nodes before one: the place of its first among those of a cell.

    >>> [first_edge(node) for node in range(5)]
    [0, 2, 5, 9, 14]
    """
    return node * (node + 3) // 2


def node_options(node: int, operations: Sequence[str]) -> Iterator[NodeOption]:
    """Yield every pair of operations on two different sources.

    Args:
        node: Which node, from 0.
        operations: The operations, other than `none`.
    """
    for sources in itertools.combinations(range(sources_of(node)), 2):
        for chosen in itertools.product(operations, repeat=2):
            first, second = (
                Edge(source=source, operation=operation)
                for source, operation in zip(sources, chosen, strict=True)
            )
            yield NodeOption(edges=(first, second))
