"""Networks of DARTS cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import nn

from hwnas.space.blocks import Head
from hwnas.space.cells.nodes import NodeOption
from hwnas.space.cells.operations import CellStem, cell_module
from hwnas.space.supernet import SlimNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hwnas.space.blocks import Normalize
    from hwnas.space.cells.spec import CellPlace, CellSpec


@final
class Cell(nn.Module):
    """A cell whose nodes are chosen.

    Args:
        place: Where it is.
        nodes: What each of its nodes is.
    """

    def __init__(self, place: CellPlace, nodes: Sequence[NodeOption]) -> None:
        super().__init__()
        self.preprocess = nn.ModuleList(cell_module(key) for key in place.preprocess_keys())
        self.nodes = nn.ModuleList(
            nn.ModuleList(
                cell_module(place.operation_key(edge.operation, edge.source)) for edge in node.edges
            )
            for node in nodes
        )
        self._sources = [tuple(edge.source for edge in node.edges) for node in nodes]

    def forward(self, before: Tensor, last: Tensor) -> Tensor:
        """Compute the nodes, side by side: (batch, nodes * channels, height, width).

        Args:
            before: Output of the cell before the last, (batch, channels, height, width).
            last: Output of the last cell, likewise.
        """
        inputs = zip(self.preprocess, (before, last), strict=True)
        states: list[Tensor] = [module(features) for module, features in inputs]
        for node, (first, second) in zip(self.nodes, self._sources, strict=True):
            assert isinstance(node, nn.ModuleList)
            states.append(node[0](states[first]) + node[1](states[second]))
        return torch.cat(states[2:], dim=1)


@final
class CellNetwork(SlimNetwork):
    """A network of cells, slim: it has the operations that it runs.

    Args:
        spec: The space.
        blocks: Names of what each node is: of the normal cell first, then of the reduction cell.

    References:
        Liu et al., DARTS (arXiv 1806.09055): the network for CIFAR. Without its auxiliary head and
        without drop path, which only training has.
    """

    def __init__(self, spec: CellSpec, blocks: Sequence[str]) -> None:
        super().__init__()
        chosen = [NodeOption.parse(name) for name in blocks]
        self.stem = CellStem(spec.image_shape[0], spec.stem_shape[0])
        self.cells = nn.ModuleList(
            Cell(place, chosen[spec.nodes :] if place.is_reduction else chosen[: spec.nodes])
            for place in spec.places
        )
        self.head = Head(spec.features_shape[0], spec.classes)
        self.tap_names = cell_tap_names(spec)

    @property
    def normalize(self) -> Normalize:
        """Where pixels of [0, 1] are shifted and scaled."""
        return self.stem.normalize

    def forward(self, images: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        """Compute logits; the taps are the stem and every cell."""
        logits: Tensor = self.head(self.features(images, taps))
        return logits

    def features(self, images: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        """Compute what the last cell gives; the taps are those of `forward`."""
        before: Tensor = self.stem(images)
        last = before
        if taps is not None:
            taps.append(last)
        for cell in self.cells:
            before, last = last, cell(before, last)
            if taps is not None:
                taps.append(last)
        return last


def cell_tap_names(spec: CellSpec) -> tuple[str, ...]:
    """Name the layers that may learn from a tutor: the stem and every cell."""
    return ("stem", *(f"cell{index + 1}" for index in range(spec.cells)))
