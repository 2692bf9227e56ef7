"""The supernet of a space of cells: every edge runs every operation."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import nn
from torch.nn import functional

from hwnas.core.errors import ConfigError
from hwnas.space.blocks import Head
from hwnas.space.cells.network import cell_tap_names
from hwnas.space.cells.nodes import NodeOption, first_edge, sources_of
from hwnas.space.cells.operations import CellStem, cell_module
from hwnas.space.energy import observed
from hwnas.space.supernet import Observed, Supernet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hwnas.space.blocks import Normalize
    from hwnas.space.cells.space import CellSpace
    from hwnas.space.cells.spec import CellPlace, CellSpec
    from hwnas.space.genotype import Genotype


@final
class MixedEdge(nn.Module):
    """All operations of an edge, as one weighted sum.

    With partial channels only the first 1/K of them goes through the operations; the others go by,
    at stride 2 through a max pool, weighed like the edge, and all are shuffled so that the next
    edge's first ones are others.

    Args:
        spec: The space.
        place: Where the cell is.
        source: Where the edge comes from.

    References:
        Xu et al., PC-DARTS (arXiv 1907.05737), 3.2: partial channels.
    """

    def __init__(self, spec: CellSpec, place: CellPlace, source: int) -> None:
        super().__init__()
        keys = {
            name: place.operation_key(name, source, share=spec.partial) for name in spec.candidates
        }
        self.operations = nn.ModuleDict(
            {name: cell_module(key, affine=False) for name, key in keys.items()}
        )
        self._partial = spec.partial
        self._halves = place.is_reduction and source < 2

    def forward(self, features: Tensor, weights: Tensor) -> Tensor:
        """Compute the edge.

        Args:
            features: (batch, channels, height, width).
            weights: How much of each operation, (operations,).
        """
        if self._partial == 1:
            return self._mixed(features, weights)
        width = features.shape[1] // self._partial
        chosen, rest = features[:, :width], features[:, width:]
        if self._halves:
            rest = functional.max_pool2d(rest, 2, ceil_mode=True)
        rest = rest * weights.sum().to(rest.dtype)
        return _shuffled(torch.cat([self._mixed(chosen, weights), rest], dim=1), self._partial)

    def _mixed(self, features: Tensor, weights: Tensor) -> Tensor:
        mixed: Tensor | None = None
        for operation, weight in zip(self.operations.values(), weights, strict=True):
            output: Tensor = operation(features)
            weight = weight.to(output.dtype)
            # In one pass: what is multiplied alone would be stored once more.
            mixed = output * weight if mixed is None else torch.addcmul(mixed, output, weight)
        assert mixed is not None  # a space has an operation
        return mixed


@final
class MixedCell(nn.Module):
    """A cell with all edges.

    Args:
        spec: The space.
        place: Where it is.
    """

    def __init__(self, spec: CellSpec, place: CellPlace) -> None:
        super().__init__()
        self.preprocess = nn.ModuleList(
            cell_module(key, affine=False) for key in place.preprocess_keys()
        )
        self.edges = nn.ModuleList(
            MixedEdge(spec, place, source)
            for node in range(spec.nodes)
            for source in range(sources_of(node))
        )

    def forward(self, before: Tensor, last: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Compute the nodes, side by side.

        Args:
            before: Output of the cell before the last, (batch, channels, height, width).
            last: Output of the last cell, likewise.
            weights: Of each node, (sources, operations).
        """
        inputs = zip(self.preprocess, (before, last), strict=True)
        states: list[Tensor] = [module(features) for module, features in inputs]
        edges = iter(self.edges)
        for of_node in weights:
            # Not `sum`: it begins with 0, one more pass over the first.
            node: Tensor | None = None
            for state, of_edge in zip(list(states), of_node, strict=True):
                term = next(edges)(state, of_edge)
                node = term if node is None else node + term
            assert node is not None
            states.append(node)
        return torch.cat(states[2:], dim=1)


@final
class CellSupernet(Supernet):
    """All networks of cells with one set of weights: DARTS' continuous relaxation.

    A gate is over what a node may be, pairs of edges; how much of an operation an edge runs is the
    sum over all pairs that have it. That is linear in the gates, and exact for one-hot ones.

    As in DARTS, batch normalization in cells has no scale and shift of its own while all operations
    share a sum; a network that is cut out begins with ones and zeros.

    Args:
        space: The space.

    References:
        Liu et al., DARTS (arXiv 1806.09055), 2.2. Departures: a node's weights sum to two, as many
        as a network's node has terms, where DARTS sums over all edges with up to one each; pools
        have no batch normalization behind them, as the networks that are derived have none.
    """

    def __init__(self, space: CellSpace) -> None:
        super().__init__()
        self._space = space
        spec = space.spec
        self.stem = CellStem(spec.image_shape[0], spec.stem_shape[0])
        self.cells = nn.ModuleList(MixedCell(spec, place) for place in spec.places)
        self.head = Head(spec.features_shape[0], spec.classes)
        self.tap_names = cell_tap_names(spec)
        for index, incidence in enumerate(space.incidences):
            self.register_buffer(f"incidence{index}", incidence, persistent=False)

    @property
    def normalize(self) -> Normalize:
        """Where pixels of [0, 1] are shifted and scaled."""
        return self.stem.normalize

    def forward(self, images: Tensor, gates: Sequence[Tensor], *, observe: bool = True) -> Observed:
        """Compute the logits of a mix of networks: see `Supernet`."""
        spec = self._space.spec
        weights = [
            (gate @ self.get_buffer(f"incidence{index}")).view(-1, len(spec.candidates))
            for index, gate in enumerate(gates)
        ]
        energies: list[Tensor] = []

        def seen(features: Tensor) -> Tensor:
            if observe:
                features, energy = observed(features)
                energies.append(energy)
            return features

        before = last = seen(self.stem(images))
        for cell, place in zip(self.cells, spec.places, strict=True):
            own = weights[spec.nodes :] if place.is_reduction else weights[: spec.nodes]
            before, last = last, seen(cell(before, last, own))
        logits: Tensor = self.head(last)
        return Observed(logits, tuple(energies))

    def slim_state(self, genotype: Genotype) -> dict[str, Tensor]:
        """Cut a genotype's weights out: the chosen operations of the chosen edges.

        Raises:
            ConfigError: The supernet runs its operations on a part of the channels, so that it has
                no weights of a network.
        """
        spec = self._space.spec
        if spec.partial > 1:
            raise ConfigError(
                f"the supernet of {spec.name} runs operations on 1/{spec.partial} of the channels: "
                "it has no weights of a network",
                hint='train from scratch: set init = "scratch" in [train]',
            )
        with torch.device("meta"):
            slim = self._space.network(genotype).state_dict()
        full = self.state_dict()
        chosen = [NodeOption.parse(name) for name in genotype.blocks]
        state = {}
        for name, value in slim.items():
            held = self._held_name(name, chosen)
            if held in full:
                state[name] = full[held].clone()
            else:  # a scale or shift that batch normalization does not have while searching
                fill = 1.0 if name.endswith("weight") else 0.0
                state[name] = torch.full(value.shape, fill, dtype=value.dtype)
        return state

    def _held_name(self, name: str, chosen: Sequence[NodeOption]) -> str:
        """Translate the name of a weight: `cells.C.nodes.N.T...` to that of edge and operation."""
        parts = name.split(".")
        if parts[0] != "cells" or parts[2] != "nodes":
            return name
        spec = self._space.spec
        cell, node, term = int(parts[1]), int(parts[3]), int(parts[4])
        option = chosen[node + spec.nodes * spec.places[cell].is_reduction]
        edge = option.edges[term]
        place = first_edge(node) + edge.source
        return ".".join(["cells", parts[1], "edges", str(place), "operations", edge.operation,
                         *parts[5:]])  # fmt: skip


def _shuffled(features: Tensor, groups: int) -> Tensor:
    """Take one channel of each group in turn."""
    batch, channels, height, width = features.shape
    # (B, G * C/G, H, W) -> (B, C/G, G, H, W) -> (B, C, H, W)
    grouped = features.view(batch, groups, channels // groups, height, width)
    return grouped.transpose(1, 2).reshape(batch, channels, height, width)
