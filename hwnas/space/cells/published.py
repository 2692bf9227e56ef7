"""Cells that were published, for the networks that the field compares with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from hwnas.space.cells.nodes import Edge, NodeOption
from hwnas.space.cells.operations import OPERATIONS

# A node as the published code writes it: two operations, each with where it comes from.
_Term: TypeAlias = tuple[str, int]
_Node: TypeAlias = tuple[_Term, _Term]

_NAMES = {operation.paper: name for name, operation in OPERATIONS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedCells:
    """A pair of cells, as published.

    Attributes:
        blocks: What each node is, as `CellSpace.genotype` takes it: normal cell, then reduction.
        params_m: Published parameters of the network of 20 cells and 36 channels for CIFAR-10,
            without the auxiliary head, in millions, with the digits that were given; empty where
            none are published for just these cells.
        reference: The paper, and where its code has the cells.
    """

    blocks: tuple[str, ...]
    params_m: str
    reference: str


def _cells(
    normal: tuple[_Node, ...], reduce: tuple[_Node, ...], params_m: str, reference: str
) -> PublishedCells:
    return PublishedCells(
        blocks=tuple(_name(node) for node in (*normal, *reduce)),
        params_m=params_m,
        reference=reference,
    )


def _name(node: _Node) -> str:
    first, second = sorted(
        Edge(source=source, operation=_NAMES[operation]) for operation, source in node
    )
    return NodeOption(edges=(first, second)).name


PUBLISHED: dict[str, PublishedCells] = {
    "darts-v1": _cells(
        (
            (("sep_conv_3x3", 1), ("sep_conv_3x3", 0)),
            (("skip_connect", 0), ("sep_conv_3x3", 1)),
            (("skip_connect", 0), ("sep_conv_3x3", 1)),
            (("sep_conv_3x3", 0), ("skip_connect", 2)),
        ),
        (
            (("max_pool_3x3", 0), ("max_pool_3x3", 1)),
            (("skip_connect", 2), ("max_pool_3x3", 0)),
            (("max_pool_3x3", 0), ("skip_connect", 2)),
            (("skip_connect", 2), ("avg_pool_3x3", 0)),
        ),
        "",
        "Liu et al., DARTS, first order (arXiv 1806.09055); quark0/darts, cnn/genotypes.py",
    ),
    "darts-v2": _cells(
        (
            (("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
            (("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
            (("sep_conv_3x3", 1), ("skip_connect", 0)),
            (("skip_connect", 0), ("dil_conv_3x3", 2)),
        ),
        (
            (("max_pool_3x3", 0), ("max_pool_3x3", 1)),
            (("skip_connect", 2), ("max_pool_3x3", 1)),
            (("max_pool_3x3", 0), ("skip_connect", 2)),
            (("skip_connect", 2), ("max_pool_3x3", 1)),
        ),
        "3.349",
        "Liu et al., DARTS, second order (arXiv 1806.09055); quark0/darts, cnn/genotypes.py and "
        "README",
    ),
    "p-darts": _cells(
        (
            (("skip_connect", 0), ("dil_conv_3x3", 1)),
            (("skip_connect", 0), ("sep_conv_3x3", 1)),
            (("sep_conv_3x3", 1), ("sep_conv_3x3", 3)),
            (("sep_conv_3x3", 0), ("dil_conv_5x5", 4)),
        ),
        (
            (("avg_pool_3x3", 0), ("sep_conv_5x5", 1)),
            (("sep_conv_3x3", 0), ("dil_conv_5x5", 2)),
            (("max_pool_3x3", 0), ("dil_conv_3x3", 1)),
            (("dil_conv_3x3", 1), ("dil_conv_5x5", 3)),
        ),
        "3.433798",
        "Chen et al., Progressive DARTS, CIFAR-10 (arXiv 1904.12760); chenxin061/pdarts, "
        "genotypes.py and issue 7",
    ),
    "pc-darts": _cells(
        (
            (("sep_conv_3x3", 1), ("skip_connect", 0)),
            (("sep_conv_3x3", 0), ("dil_conv_3x3", 1)),
            (("sep_conv_5x5", 0), ("sep_conv_3x3", 1)),
            (("avg_pool_3x3", 0), ("dil_conv_3x3", 1)),
        ),
        (
            (("sep_conv_5x5", 1), ("max_pool_3x3", 0)),
            (("sep_conv_5x5", 1), ("sep_conv_5x5", 2)),
            (("sep_conv_3x3", 0), ("sep_conv_3x3", 3)),
            (("sep_conv_3x3", 1), ("sep_conv_3x3", 2)),
        ),
        "3.6",
        "Xu et al., PC-DARTS, CIFAR-10 (arXiv 1907.05737); yuhuixu1993/PC-DARTS, genotypes.py and "
        "README",
    ),
}
"""Cells by name: `space.genotype(PUBLISHED["darts-v2"].blocks)` in a space of four nodes."""
