"""What a search weighed for the nodes of cells: every edge, by its operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwnas.report.drawing import MUTED, SMALL_POINTS
from hwnas.report.heat_map import bare, cell
from hwnas.report.numbers import fixed
from hwnas.space.cells.nodes import NodeOption, sources_of
from hwnas.space.cells.space import CellSpace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from hwnas.report.options_picture import Block
    from hwnas.space.chain_space import ChainSpace


def edge_names(space: CellSpace) -> list[str]:
    """Name the edges of all nodes: a node by its cell and number, at its first edge alone."""
    nodes = space.spec.nodes
    return [
        f"{name if source == 0 else ''} ← {source}".strip()
        for index, name in enumerate(space.block_names)
        for source in range(sources_of(index % nodes))
    ]


def draw_edges(axes: Axes, blocks: Sequence[Block], space: ChainSpace) -> str:
    """Draw how likely each edge is with each operation, and frame those that were derived.

    Args:
        axes: Where to draw.
        blocks: The nodes.
        space: Their space, of cells.

    Returns:
        What the picture shows, as its caption says it.
    """
    assert isinstance(space, CellSpace)
    candidates = space.spec.candidates
    columns = len(candidates)
    y = 0
    for block, incidence in zip(blocks, space.incidences, strict=True):
        derived = NodeOption.parse(str(block.options[block.chosen])).edges
        shares = (incidence.new_tensor(block.probabilities) @ incidence).view(-1, columns)
        for source, row in enumerate(shares.tolist()):
            for x, (name, share) in enumerate(zip(candidates, row, strict=True)):
                is_derived = (source, name) in derived
                cell(axes, x, y, min(1.0, share), is_framed=is_derived)
                axes.text(
                    x + 0.5, y, fixed(100 * share, 0), ha="center", va="center",
                    fontsize=SMALL_POINTS, fontweight="bold" if is_derived else "normal",
                )  # fmt: skip
            y += 1
        if y < sum(sources_of(index % space.spec.nodes) for index in range(len(blocks))):
            axes.axhline(y - 0.5, color=MUTED, linewidth=0.4)
    axes.set_xticks([x + 0.5 for x in range(columns)], candidates)
    bare(axes, columns, y)
    return (
        "Each node of the two cells and where it may come from (0 and 1 are the outputs of the "
        "cells before, 2 the cell's first node), with the probability in percent that it has the "
        "operation on that edge; every node has two. Framed, what was derived."
    )
