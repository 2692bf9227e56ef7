"""The space of DARTS cells as a chain of nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch

from hwnas.core.errors import ConfigError, nearest
from hwnas.space.cells.network import CellNetwork
from hwnas.space.cells.nodes import NodeOption, first_edge, node_options, sources_of
from hwnas.space.cells.operations import LINEAR, SKIP, macs_of_cell_operator
from hwnas.space.cells.spec import CELL_TYPES
from hwnas.space.cells.supernet import CellSupernet
from hwnas.space.chain_space import ChainSpace
from hwnas.space.genotype import Genotype
from hwnas_profilers.workload import OperatorKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hwnas.space.cells.spec import CellSpec
    from hwnas.space.chain_space import Entry, Link


@final
class CellSpace(ChainSpace):
    """A space whose searched blocks are the nodes of two cells.

    An option of a node is its pair of operations and where they come from, e.g. `sep3@0+skip@2`. It
    stands for the operators of all cells of its type, and what these cost depends on no other node.
    What every network runs, the stem and what makes the inputs of cells, is the first link.

    Additions, and putting nodes side by side, are the same in every network; they are in no
    operator, and so in what a calibration finds besides.

    Args:
        spec: The description.
        batch: Images per call of its operators.
        dtype: Precision that its operators are compiled to.

    Attributes:
        options: Names of what each node may be, the most multiply-accumulates first: of the normal
            cell, then of the reduction cell.
        incidences: Of each block, which edges and operations its options have: (options, sources *
            operations), ones and zeros.
    """

    spec: CellSpec
    options: tuple[tuple[str, ...], ...]
    is_sequential = False

    def __init__(self, spec: CellSpec, *, batch: int = 1, dtype: str = "fp32") -> None:
        super().__init__(spec, batch=batch, dtype=dtype)
        self._nodes = [
            self._sorted_options(node, is_reduction=is_reduction)
            for is_reduction in (False, True)
            for node in range(spec.nodes)
        ]
        self.options = tuple(tuple(option.name for option in options) for options in self._nodes)
        self._indices = [
            {name: index for index, name in enumerate(options)} for options in self.options
        ]
        self.incidences = tuple(
            _incidence(options, spec.candidates, sources_of(index % spec.nodes))
            for index, options in enumerate(self._nodes)
        )

    @property
    def block_names(self) -> tuple[str, ...]:
        """What each searched block is called: the cell, and the number of the node."""
        nodes = range(self.spec.nodes)
        return tuple(f"{cell} {node + 1}" for cell in CELL_TYPES for node in nodes)

    def genotype(self, blocks: Sequence[str]) -> Genotype:
        """Make a genotype from what each node is.

        Raises:
            ConfigError: A node has no such option, or there are too many or too few.
        """
        self._check_blocks(len(blocks))
        for place, name, options in zip(self.block_names, blocks, self._indices, strict=True):
            if name not in options:
                similar = nearest(name, options)
                hint = f"did you mean `{similar[0]}`? " if similar else ""
                raise ConfigError(
                    f"node {place} of {self.spec.name} cannot be `{name}`",
                    hint=f"{hint}it is two of {', '.join(self.spec.candidates)} on two different "
                    f"sources, the lower first, such as `{next(iter(options))}`",
                )
        return Genotype(space=self.spec.name, widths=(), blocks=tuple(blocks))

    def network(self, genotype: Genotype) -> CellNetwork:
        """Build the slim network of a genotype, newly initialized.

        Raises:
            ConfigError: The genotype is none of this space.
        """
        self.choices(genotype)
        return CellNetwork(self.spec, genotype.blocks)

    def supernet(self) -> CellSupernet:
        """Build the network that holds all others: every edge runs every operation."""
        return CellSupernet(self)

    @property
    def choice_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of what a search learns: of each cell type the logits of operations, and of edges.

        They are DARTS' alphas, (edges, operations), and with partial channels PC-DARTS' betas,
        (edges,), behind them.
        """
        spec = self.spec
        edges = first_edge(spec.nodes)
        alphas = ((edges, len(spec.operations)),) * len(CELL_TYPES)
        betas = ((edges,),) * len(CELL_TYPES) if spec.partial > 1 else ()
        return (*alphas, *betas)

    def block_logits(self, learned: Sequence[Tensor]) -> list[Tensor]:
        """Return the logits of each node's options.

        An edge takes operation o with probability softmax(alpha)_o, `none` among them; with
        partial channels that is multiplied by the edge's softmax(beta) among those of its node. A
        pair of edges has the product of its two probabilities, and a node's distribution is over
        all pairs: these products, normalized.

        The likeliest pair is the best operation of each of the two edges whose best is likeliest,
        which is the rule that DARTS derives by.

        Args:
            learned: Tensors of `choice_shapes`.
        """
        spec = self.spec
        kept = [spec.operations.index(name) for name in spec.candidates]
        logits = []
        for index, incidence in enumerate(self.incidences):
            cell, node = divmod(index, spec.nodes)
            edges = slice(first_edge(node), first_edge(node + 1))
            logs = torch.log_softmax(learned[cell][edges], dim=1)[:, kept]
            if spec.partial > 1:
                betas = learned[len(CELL_TYPES) + cell][edges]
                logs = logs + torch.log_softmax(betas, dim=0)[:, None]
            logits.append(incidence.to(logs) @ logs.flatten())  # (options, S * O) @ (S * O,)
        return logits

    def _genotype_impl(self, choices: Sequence[int]) -> Genotype:
        return self.genotype(
            [options[choice] for options, choice in zip(self.options, choices, strict=True)]
        )

    def _choices_impl(self, genotype: Genotype) -> tuple[int, ...]:
        blocks = self.genotype(genotype.blocks).blocks
        return tuple(options[name] for options, name in zip(self._indices, blocks, strict=True))

    def _links_impl(self) -> tuple[Link, ...]:
        spec = self.spec
        stem = OperatorKey(
            kind="stem",
            in_shape=spec.image_shape,
            out_shape=spec.stem_shape,
            kernel=3,
            variant=LINEAR,
            batch=self.batch,
            dtype=self.dtype,
        )
        inputs = [
            key
            for place in spec.places
            for key in place.preprocess_keys(batch=self.batch, dtype=self.dtype)
        ]
        links: list[Link] = [(((stem, *inputs),),)]
        before = 1
        for index, options in enumerate(self._nodes):
            edges = self._edge_operators(is_reduction=index >= spec.nodes)
            row = tuple(
                tuple(key for edge in option.edges for key in edges[edge]) for option in options
            )
            links.append((row,) * before)  # one row: no option before it matters
            before = len(row)
        head = OperatorKey(
            kind="head",
            in_shape=spec.features_shape,
            out_shape=(spec.classes, 1, 1),
            batch=self.batch,
            dtype=self.dtype,
        )
        return (*links, (((head,),),) * before)

    def _edge_operators(self, *, is_reduction: bool) -> dict[tuple[int, str], Entry]:
        """Return what an edge runs in all cells of a type, by its source and operation."""
        spec = self.spec
        places = [place for place in spec.places if place.is_reduction == is_reduction]
        operators = {}
        for source in range(spec.nodes + 1):
            for name in spec.candidates:
                keys = [
                    place.operation_key(name, source, batch=self.batch, dtype=self.dtype)
                    for place in places
                ]
                operators[source, name] = tuple(key for key in keys if key is not None)
        return operators

    def _sorted_options(self, node: int, *, is_reduction: bool) -> list[NodeOption]:
        macs = {
            edge: sum(map(macs_of_cell_operator, keys))
            for edge, keys in self._edge_operators(is_reduction=is_reduction).items()
        }
        # Of equal ones those with a skip, for which nothing runs, come last.
        order = sorted(self.spec.candidates, key=lambda name: name == SKIP)
        return sorted(
            node_options(node, order), key=lambda option: -sum(macs[edge] for edge in option.edges)
        )


def _incidence(options: Sequence[NodeOption], operations: Sequence[str], sources: int) -> Tensor:
    incidence = torch.zeros(len(options), sources, len(operations))
    for row, option in zip(incidence, options, strict=True):
        for edge in option.edges:
            row[edge.source, operations.index(edge.operation)] = 1.0
    return incidence.flatten(1)  # (options, S, O) -> (options, S * O)
