"""A cost that adds up along a chain: of a network, over all of them, expected of a supernet."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, final

import numpy as np
import torch

from hwnas.latency.curvature import bent, straight
from hwnas.space.chain_space import distinct_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from hwnas.space.chain_space import ChainSpace
    from hwnas_profilers.workload import OperatorKey

# One array per link of a chain, (options before, options here).
LinkFloats: TypeAlias = "tuple[NDArray[np.float64], ...]"
LinkMasks: TypeAlias = "tuple[NDArray[np.bool_], ...]"

UNSUPPORTED_FACTOR = 10.0
"""What an operator that cannot run is taken to cost in an expectation, in units of the link's
dearest one: a gradient needs a number, and it must point away from there."""


def link_arrays(space: ChainSpace, figure: Callable[[OperatorKey], float]) -> LinkFloats:
    """Look every operator of a space up, and add up what an option runs; nothing gives exactly 0.

    Rows of a link that are one object are looked up once.
    """
    arrays = []
    for link in space.transitions:
        rows = {
            id(row): np.array([sum(map(figure, entry), 0.0) for entry in row], dtype=np.float64)
            for row in distinct_rows(link)
        }
        arrays.append(np.stack([rows[id(row)] for row in link]))
    return tuple(arrays)


@final
class ChainCost:
    """A constant, and one look-up per link of the chain; what they add up to may be bent.

    The links are the stem, each searched block and the head. A network is one option per searched
    block; of what cannot run, a link holds infinity.

    Args:
        links: (options before, options here) each.
        fixed: What every network costs besides.
        curvature: See `hwnas.latency.curvature`; 0 for a plain sum.
    """

    def __init__(self, links: LinkFloats, *, fixed: float = 0.0, curvature: float = 0.0) -> None:
        self.links = links
        self.fixed = fixed
        self.curvature = curvature
        self._tensors: tuple[Tensor, ...] | None = None

    def of(self, choices: Sequence[int]) -> float:
        """Return the cost of a network, given each searched block's option."""
        return float(self.of_sums(self.sum_of(choices)))

    def of_sums(self, sums: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what sums along the chain cost, with what every network costs besides."""
        return bent(self.fixed + sums, self.curvature)

    def sum_within(self, bound: float) -> float:
        """Return the sum along the chain from which on a network costs more than a bound."""
        return float(straight(bound, self.curvature)) - self.fixed

    def sum_of(self, choices: Sequence[int]) -> float:
        """Add a network up along the chain, without what every network costs besides."""
        chosen = (0, *choices, 0)
        before = (0, *chosen[:-1])
        total = 0.0
        # Added up one by one, as `sum` no longer does since Python 3.12: so this is to the last bit
        # what the labels of `hwnas.search.labels` add up to.
        for link, i, j in zip(self.links, before, chosen, strict=True):
            total += float(link[i, j])
        return total

    def range(self, allowed: LinkMasks | None = None) -> tuple[float, float] | None:
        """Return the least and the greatest cost of a network.

        Found over all networks by dynamic programming, since the narrowest need not be the
        cheapest.

        Args:
            allowed: Which arcs may be taken; None takes all. What cannot run never is.

        Returns:
            Both, as `of` gives them for these very networks; None where there is no network.
        """
        least = self.cheapest(allowed)
        if least is None:
            return None
        greatest = self.dearest(allowed)
        assert greatest is not None  # as there is a network
        return self.of(least), self.of(greatest)

    def dearest(self, allowed: LinkMasks | None = None) -> tuple[int, ...] | None:
        """Return the options of the dearest network that runs; None of none."""
        negated = (np.where(np.isfinite(link), -link, np.inf) for link in self.links)
        return ChainCost(tuple(negated)).cheapest(allowed)

    def cheapest(self, allowed: LinkMasks | None = None) -> tuple[int, ...] | None:
        """Return the options of the cheapest network, by dynamic programming; None of none."""
        cost = np.zeros(1)
        came_from = []
        for index, link in enumerate(self.links):
            arcs = link if allowed is None else np.where(allowed[index], link, np.inf)
            total = cost[:, None] + arcs
            came_from.append(total.argmin(axis=0))
            cost = total.min(axis=0)
        if not np.isfinite(cost).any():
            return None
        choice = 0
        path = []
        for best_before in reversed(came_from):
            choice = int(best_before[choice])
            path.append(choice)
        # Read backward, the head and each block named the option before it; the last two are the
        # stem's, which is not searched.
        return tuple(path[-3::-1])

    def expected(self, probabilities: Sequence[Tensor]) -> Tensor:
        """Compute the expected cost of a supernet whose blocks choose independently.

        E = fixed + sum over links of p_before^T C p_here, exactly. What cannot run costs
        `UNSUPPORTED_FACTOR` times the dearest that can in its link (or, where that is nothing, in
        the chain). With a curvature it is the bent E that is returned, which is below the
        expectation by the curvature times the variance: less and less as the choices settle.

        Args:
            probabilities: One (options,) distribution per searched block.

        Returns:
            A scalar, differentiable in every distribution.
        """
        first = probabilities[0]
        links = self._tensors
        if links is None or (links[0].device, links[0].dtype) != (first.device, first.dtype):
            links = self._tensors = tuple(
                torch.as_tensor(link, dtype=first.dtype, device=first.device)
                for link in self._finite_links()
            )
        certain = first.new_ones(1)
        chain = (certain, certain, *probabilities, certain)
        total = first.new_tensor(self.fixed)
        for link, before, here in zip(links, chain[:-1], chain[1:], strict=True):
            total = total + before @ link @ here
        return total * (1.0 + self.curvature * total.clamp(min=0.0))

    def _finite_links(self) -> LinkFloats:
        dearest = [_dearest(link) for link in self.links]
        return tuple(
            np.where(
                np.isfinite(link), link, UNSUPPORTED_FACTOR * (own if own > 0 else max(dearest))
            )
            for link, own in zip(self.links, dearest, strict=True)
        )


def _dearest(link: NDArray[np.float64]) -> float:
    finite = link[np.isfinite(link)]
    return float(finite.max()) if finite.size else 0.0
