"""The spaces of DARTS cells as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from hwnas.core.errors import ConfigError, nearest
from hwnas.space.blocks import strided
from hwnas.space.cells.operations import FACTORIZED, NONE, OPERATIONS, PREPROCESS, operation_key
from hwnas.space.chain_spec import ChainSpec
from hwnas_profilers.workload import OperatorKey

Shape: TypeAlias = tuple[int, int, int]

STEM_MULTIPLIER = 3
"""Channels of the stem in units of those of the first cell's nodes."""

CELL_TYPES = ("normal", "reduce")
"""The two cells that are searched, in the order of the searched blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPlace:
    """One cell of a network, less what is searched.

    Attributes:
        is_reduction: Whether it halves height and width.
        channels: Channels of each of its nodes.
        sources: What it takes: outputs (channels, height, width) of the cell before the last, and
            of the last.
    """

    is_reduction: bool
    channels: int
    sources: tuple[Shape, Shape]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its inputs once they are preprocessed."""
        return self.sources[1][1:]

    @property
    def size_out(self) -> tuple[int, int]:
        """Height and width of its nodes."""
        stride = 2 if self.is_reduction else 1
        return strided(self.size[0], stride), strided(self.size[1], stride)

    def preprocess_keys(
        self, *, batch: int = 1, dtype: str = "fp32"
    ) -> tuple[OperatorKey, OperatorKey]:
        """Return the operators of its two inputs; the larger of two sizes is reduced."""
        first, second = (
            OperatorKey(
                kind=PREPROCESS if source[1:] == self.size else FACTORIZED,
                in_shape=source,
                out_shape=(self.channels, *self.size),
                stride=1 if source[1:] == self.size else 2,
                batch=batch,
                dtype=dtype,
            )
            for source in self.sources
        )
        return first, second

    def operation_key(
        self, name: str, source: int, *, share: int = 1, batch: int = 1, dtype: str = "fp32"
    ) -> OperatorKey | None:
        """Return the operator of an operation on an edge; None where nothing runs.

        Args:
            name: The operation, other than `none`.
            source: Where the edge comes from: 0 and 1 are the inputs, 2 the first node.
            share: Part of the channels that it runs on, as a divisor.
            batch: Images per call.
            dtype: Precision that it is compiled to.
        """
        from_input = source < 2
        return operation_key(
            name,
            self.channels // share,
            self.size if from_input else self.size_out,
            2 if self.is_reduction and from_input else 1,
            batch=batch,
            dtype=dtype,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CellSpec(ChainSpec):
    """A space of two searched cells, normal and reduction, that are repeated to make a network.

    A cell has two inputs, the outputs of the two cells before it, and some nodes. Each node is the
    sum of two operations on two different inputs or nodes before it; the cell's output is all nodes
    side by side. Cells at one third and two thirds of the depth are reductions: they halve height
    and width and have twice the channels. All cells of a type are the same.

    Attributes:
        name: What it is called.
        image_shape: (channels, height, width) of an image.
        classes: Classes of the data set.
        cells: Number of cells.
        channels: Channels of each node of the first cell.
        nodes: Nodes of a cell.
        operations: Candidate operations of an edge: names of `OPERATIONS`, in its order. `none`
            among them lets a search close an edge; no network has it.
        partial: Part of the channels that a supernet's operations see, as a divisor; 1 is all. The
            others go by, and edges have weights of their own.
        kind: Tells this description from those of other spaces.

    References:
        Liu et al., DARTS: Differentiable Architecture Search (arXiv 1806.09055): cells, operations,
        and the networks for CIFAR.
        Xu et al., PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search
        (arXiv 1907.05737): `partial`, its K.
    """

    name: str
    image_shape: tuple[int, int, int]
    classes: int
    cells: int
    channels: int
    nodes: int = 4
    operations: tuple[str, ...] = tuple(OPERATIONS)
    partial: int = 1
    kind: Literal["cells"] = "cells"

    def __post_init__(self) -> None:
        self._check_images()
        if self.cells < 3:
            raise ConfigError(
                f"a network of cells needs at least 3, one normal and two reductions, not "
                f"{self.cells}"
            )
        if self.nodes < 1 or self.channels < 1:
            raise ConfigError(f"nodes ({self.nodes}) and channels ({self.channels}) are at least 1")
        if self.partial < 1 or self.channels % self.partial:
            raise ConfigError(
                f"partial ({self.partial}) is at least 1 and divides the {self.channels} channels"
            )
        for name in self.operations:
            if name not in OPERATIONS:
                similar = nearest(name, OPERATIONS)
                hint = f"did you mean `{similar[0]}`? " if similar else ""
                raise ConfigError(
                    f"unknown operation `{name}`", hint=f"{hint}known: {', '.join(OPERATIONS)}"
                )
        if list(self.operations) != [name for name in OPERATIONS if name in self.operations]:
            raise ConfigError(
                f"operations are in their order, each once: {', '.join(self.operations)}",
                hint=f"the order is {', '.join(OPERATIONS)}",
            )
        if not self.candidates:
            raise ConfigError("a space of cells needs at least one operation other than `none`")

    @property
    def candidates(self) -> tuple[str, ...]:
        """The operations that a network may have: all but `none`."""
        return tuple(name for name in self.operations if name != NONE)

    @property
    def stem_shape(self) -> Shape:
        """What the stem gives, (channels, height, width)."""
        return (STEM_MULTIPLIER * self.channels, *self.image_shape[1:])

    @property
    def places(self) -> tuple[CellPlace, ...]:
        """The cells, in order."""
        places: list[CellPlace] = []
        channels = self.channels
        before = last = self.stem_shape
        for index in range(self.cells):
            is_reduction = index in (self.cells // 3, 2 * self.cells // 3)
            if is_reduction:
                channels *= 2
            place = CellPlace(is_reduction=is_reduction, channels=channels, sources=(before, last))
            places.append(place)
            before, last = last, (self.nodes * channels, *place.size_out)
        return tuple(places)

    @property
    def features_shape(self) -> Shape:
        """What the last cell gives, (channels, height, width)."""
        last = self.places[-1]
        return (self.nodes * last.channels, *last.size_out)


# The networks for CIFAR: `darts` is trained, `darts-8` and `pc-darts` are searched in the papers.
# Ours is `darts-xs`, whose supernet a CPU trains in minutes.
CELL_SPACES: dict[str, CellSpec] = {
    spec.name: spec
    for spec in (
        CellSpec(name="darts", image_shape=(3, 32, 32), classes=10, cells=20, channels=36),
        CellSpec(name="darts-8", image_shape=(3, 32, 32), classes=10, cells=8, channels=16),
        CellSpec(
            name="darts-xs", image_shape=(3, 32, 32), classes=10, cells=4, channels=8, nodes=3
        ),
        CellSpec(
            name="pc-darts", image_shape=(3, 32, 32), classes=10, cells=8, channels=16, partial=4
        ),
    )
}
