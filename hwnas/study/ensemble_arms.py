"""The arms of an ensemble study, and what each of them is in each seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from hwnas.core.errors import ConfigError
from hwnas.study.ensemble_models import Architecture, Model, draw_members

if TYPE_CHECKING:
    from hwnas.space.chain_space import ChainSpace
    from hwnas.study.ensemble_config import EnsembleConfig

Role: TypeAlias = Literal["single", "ensemble", "wider", "handcrafted"]

# What members are drawn by, beside the seed: two streams, or the network of `genotype` would be the
# first one of `random`.
_RANDOM, _GENOTYPE = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleArm:
    """One arm.

    Attributes:
        name: What it is called.
        description: What it is, in a sentence.
        role: What it is for: an ensemble; one member alone; one wider network that takes as long
            as the ensembles of its source; or a hand-crafted network beside them.
        source: Where its members come from; empty of a hand-crafted network.
        combination: How its members become one; empty of a single network.
    """

    name: str
    description: str
    role: Role
    source: str = ""
    combination: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineup:
    """All arms, and the networks that they are made of.

    Attributes:
        arms: In the order of the table.
        members: Members of the ensembles, by source and seed.
        handcrafted: The network of each arm that is hand-crafted, by name.
    """

    arms: tuple[EnsembleArm, ...]
    members: dict[tuple[str, int], tuple[Architecture, ...]]
    handcrafted: dict[str, Architecture]

    def model(self, arm: EnsembleArm, seed: int) -> Model:
        """Return the model of an arm in a seed; of `wider`, before it is widened."""
        if arm.role == "handcrafted":
            return Model(members=(self.handcrafted[arm.name],))
        members = self.members[arm.source, seed]
        if arm.role == "ensemble":
            return Model(members=members, combination=arm.combination)
        return Model(members=members[:1])

    def ensembles(self, source: str) -> tuple[EnsembleArm, ...]:
        """Return the ensembles of a source."""
        return tuple(arm for arm in self.arms if arm.role == "ensemble" and arm.source == source)

    def wider(self, source: str) -> EnsembleArm:
        """Return the arm that the ensembles of a source are compared with."""
        return next(arm for arm in self.arms if arm.role == "wider" and arm.source == source)

    @property
    def sources(self) -> tuple[str, ...]:
        """Where members come from."""
        return tuple(dict.fromkeys(source for source, _ in self.members))


def lineup(config: EnsembleConfig, space: ChainSpace) -> Lineup:
    """Choose the members of every seed, and name the arms.

    Raises:
        ConfigError: The space has too few networks, or the genotype is of another.
        InputFileError: The genotype's file cannot be read.
    """
    wanted = config.members
    members = {
        (source, seed): _members(config, space, source, seed)
        for source in wanted.sources
        for seed in config.seeds
    }
    handcrafted = {
        _handcrafted_name(each.name, each.width): Architecture(
            handcrafted=each.name, width=each.width
        )
        for each in config.handcrafted
    }
    arms = [arm for source in wanted.sources for arm in _arms_of(config, source)]
    arms += [
        EnsembleArm(name=name, description=f"{architecture.label}, alone", role="handcrafted")
        for name, architecture in handcrafted.items()
    ]
    return Lineup(arms=tuple(arms), members=members, handcrafted=handcrafted)


def wider_base(config: EnsembleConfig, first: Architecture) -> Architecture:
    """Return what is widened to be compared with an ensemble: its first member, or what is asked.

    Args:
        config: The settings.
        first: The first member.
    """
    name = config.compare.wider
    return Architecture(handcrafted=name) if name else first


def widened_to(architecture: Architecture, width: float) -> Architecture:
    """Return an architecture with its channels multiplied once more."""
    return replace(architecture, width=architecture.width * width)


_WHOSE = {
    "random": "different random networks",
    "genotype": "children of one genotype",
    "handcrafted": "hand-crafted networks",
}
_HOW = {
    "average": "their feature maps averaged before a shared head, trained together",
    "concat": "their feature maps side by side, mixed before a shared head, trained together",
    "logits": "their logits averaged, each trained alone",
}


def _arms_of(config: EnsembleConfig, source: str) -> list[EnsembleArm]:
    count, whose = config.members.count, _WHOSE[source]
    base = config.compare.wider or "the first of them"
    return [
        EnsembleArm(
            name=f"{source}-single",
            description=f"the first of the {whose}, alone",
            role="single",
            source=source,
        ),
        *(
            EnsembleArm(
                name=f"{source}-{combination}",
                description=f"{count} {whose}, {_HOW[combination]}",
                role="ensemble",
                source=source,
                combination=combination,
            )
            for combination in config.members.combinations
        ),
        EnsembleArm(
            name=f"{source}-wider",
            description=f"{base}, so wide that it takes as long as {count} {whose}",
            role="wider",
            source=source,
        ),
    ]


def _members(
    config: EnsembleConfig, space: ChainSpace, source: str, seed: int
) -> tuple[Architecture, ...]:
    wanted = config.members
    if source == "handcrafted":
        return tuple(
            Architecture(
                handcrafted=wanted.networks[index % len(wanted.networks)], width=wanted.width
            )
            for index in range(wanted.count)
        )
    if source == "random":
        return draw_members(space, wanted.count, np.random.default_rng([_RANDOM, seed]))
    return (_given(config, space),) * wanted.count


def _given(config: EnsembleConfig, space: ChainSpace) -> Architecture:
    """Return the network that the same-genotype ensembles have the children of."""
    place = config.members.genotype
    if not place:
        generator = np.random.default_rng([_GENOTYPE, config.seeds[0]])
        return Architecture(genotype=space.random_genotype(generator))
    from hwnas.search.records import read_derivation

    derivation = read_derivation(Path(place))
    if derivation.space.fingerprint != space.spec.fingerprint:
        raise ConfigError(
            f"{place} holds a network of {derivation.space.name}, or for other images or classes; "
            f"the study is of {space.spec.name} for {'x'.join(map(str, space.spec.image_shape))} "
            f"and {space.spec.classes} classes",
            hint=f'set name = "{derivation.space.name}" in [space] and the data of that run',
        )
    return Architecture(genotype=derivation.genotype)


def _handcrafted_name(name: str, width: float) -> str:
    return name if width == 1.0 else f"{name}-x{width:g}"
