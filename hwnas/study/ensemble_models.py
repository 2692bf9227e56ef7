"""The models of an ensemble study: what they are, as data, and how they are built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, final

import torch

from hwnas.core.errors import ConfigError
from hwnas.space.ensemble import Ensemble, feature_shape
from hwnas.space.genotype import Genotype
from hwnas.space.handcrafted.registry import network as handcrafted_network
from hwnas.space.operators import as_trained
from hwnas.space.widening import widened
from hwnas_profilers.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import nn

    from hwnas.space.chain_space import ChainSpace
    from hwnas.space.ensemble import Combination
    from hwnas.space.supernet import SlimNetwork

_SEEDS_APART = 1_000
"""Distance of the seeds of two studies' seeds: no ensemble has as many members."""
_MAX_DRAWS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One network, less its weights: of the space, or made by hand.

    Attributes:
        genotype: Its genotype; None of one that was made by hand.
        handcrafted: Name of one that was made by hand; empty otherwise.
        width: What its channels are multiplied by.
    """

    genotype: Genotype | None = None
    handcrafted: str = ""
    width: float = 1.0

    @property
    def label(self) -> str:
        """What tells it from others, in one line."""
        name = self.handcrafted
        if self.genotype is not None:
            name = f"{self.genotype.space} {self.genotype.label}"
        return name if self.width == 1.0 else f"{name}, width x{self.width:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is trained, attacked and measured as one: a network, or an ensemble.

    Attributes:
        members: Its networks.
        combination: How they become one; empty of a single network.
    """

    members: tuple[Architecture, ...]
    combination: str = ""

    @property
    def label(self) -> str:
        """What tells it from others, in one line."""
        labels = [member.label for member in self.members]
        if not self.combination:
            return labels[0]
        if len(set(labels)) == 1:
            return f"{self.combination} of {len(labels)} times {labels[0]}"
        return f"{self.combination} of {'; '.join(labels)}"


@final
class ModelBuilder:
    """Builds models for a data set.

    Args:
        space: The space of genotypes.
        statistics: Mean and standard deviation of the pixels, per channel.
    """

    def __init__(
        self, space: ChainSpace, statistics: tuple[Sequence[float], Sequence[float]]
    ) -> None:
        self.space = space
        self.image_shape, self.classes = space.spec.image_shape, space.spec.classes
        self._statistics = statistics

    def network(self, architecture: Architecture, seed: int) -> SlimNetwork:
        """Build a network, its weights drawn by a seed.

        Raises:
            ConfigError: There is no such network, or it cannot be as wide.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self._network(architecture)
        network.normalize.set_statistics(*self._statistics)
        return network

    def model(self, model: Model, seeds: Sequence[int]) -> nn.Module:
        """Build a model.

        Args:
            model: What it is.
            seeds: Seed of each member's weights; a head that members share is drawn by the first.

        Raises:
            ConfigError: The members cannot be combined so.
        """
        networks = [
            self.network(member, seed) for member, seed in zip(model.members, seeds, strict=True)
        ]
        if not model.combination:
            return networks[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds[0])
            return self.joined(networks, model.combination)

    def joined(self, networks: Sequence[SlimNetwork], combination: str) -> Ensemble:
        """Make one model of several networks.

        Raises:
            ConfigError: They cannot be combined so.
        """
        return Ensemble(
            networks,
            cast("Combination", combination),
            image_shape=self.image_shape,
            classes=self.classes,
        )

    def workload(self, model: Model) -> Workload:
        """Return a model as something to be measured, one image per call."""
        seeds = range(len(model.members))
        return Workload(
            name=model.label,
            build=lambda: as_trained(self.model(model, seeds)).eval(),
            input_shape=(1, *self.image_shape),
        )

    def _network(self, architecture: Architecture) -> SlimNetwork:
        genotype, width = architecture.genotype, architecture.width
        if genotype is None:
            return handcrafted_network(
                architecture.handcrafted, self.image_shape, self.classes, width
            )
        if width == 1.0:
            return self.space.network(genotype)
        return widened(self.space, genotype, width)


def member_seeds(seed: int, count: int) -> list[int]:
    """Return the seeds of an ensemble's members: each has weights and batches of its own.

    >>> member_seeds(0, 3), member_seeds(2, 2)
    ([0, 1, 2], [2000, 2001])
    """
    return [seed * _SEEDS_APART + index for index in range(count)]


def draw_members(
    space: ChainSpace, count: int, generator: np.random.Generator
) -> tuple[Architecture, ...]:
    """Draw different networks of a space whose last feature maps are of one shape.

    The first is drawn freely, each block uniform over its options; the others too, but those with
    another feature map are drawn again, as feature maps of other shapes cannot be averaged. All
    combinations get the same members.

    Raises:
        ConfigError: The space has too few such networks.
    """
    found: list[Genotype] = []
    shape: tuple[int, int, int] | None = None
    for _ in range(_MAX_DRAWS):
        genotype = space.random_genotype(generator)
        if genotype in found:
            continue
        with torch.random.fork_rng(devices=[]):  # weights are of no account here
            own = feature_shape(space.network(genotype), space.spec.image_shape)
        shape = shape or own
        if own == shape:
            found.append(genotype)
        if len(found) == count:
            return tuple(Architecture(genotype=each) for each in found)
    raise ConfigError(
        f"of {_MAX_DRAWS} random networks of {space.spec.name} only {len(found)} differ and end in "
        f"feature maps of one shape; {count} are needed",
        hint='take fewer members, a larger space, or sources = ["genotype"]',
    )
