"""Networks of a user's space."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, final

import torch
from torch import nn

from hwnas.space.blocks import Normalize
from hwnas.space.supernet import SlimNetwork
from hwnas.space.user.chain import Step, run_steps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from hwnas.space.user.chain import Part
    from hwnas.space.user.spec import UserBlock, UserOption, UserSpec

_MAP_DIMENSIONS = 4
"""Of a feature map: batch, channels, height and width."""


@final
class UserNetwork(SlimNetwork):
    """A network of a user's space: the modules of the parts that it runs, by their names.

    Args:
        spec: The space.
        parts: The user's parts by name, newly made: those that are fixed become this network's.
        choices: Option of each block.

    Raises:
        ConfigError: A part cannot be built.
    """

    def __init__(self, spec: UserSpec, parts: Mapping[str, Part], choices: Sequence[int]) -> None:
        super().__init__()
        self.pixels = Normalize(spec.image_shape[0])
        steps = fixed_steps(spec.begin_parts, parts)
        for block, choice in zip(spec.blocks, choices, strict=True):
            steps += steps_of(block, block.options[choice], parts)
        built, output = run_steps(steps, torch.zeros(2, *spec.image_shape))
        head: list[str] = []
        for step in fixed_steps(spec.end_parts, parts):
            added, output = run_steps([step], output)
            built += added
            # From the first part on that gives something else than a feature map.
            if head or output.ndim != _MAP_DIMENSIONS:
                head.append(step.part.name)
        self._head = tuple(head)
        self.parts = nn.Sequential(
            OrderedDict((part.name, module) for part, module in built if module is not None)
        )
        tapped = tapped_parts(spec)
        self.tap_names = tuple(name for name, _ in self.parts.named_children() if name in tapped)

    @property
    def normalize(self) -> Normalize:
        """Where pixels of [0, 1] are shifted and scaled."""
        return self.pixels

    def forward(self, images: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        """Compute logits; the taps are the last part before the search and the searched ones."""
        features = self.features(images, taps)
        for name in self._head:
            features = self.parts.get_submodule(name)(features)
        return features

    def features(self, images: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        """Compute what the last part gives that gives a map; the taps are those of `forward`."""
        features: Tensor = self.pixels(images)
        for name, module in self.parts.named_children():
            if name in self._head:
                break
            features = module(features)
            if taps is not None and name in self.tap_names:
                taps.append(features)
        return features

    def drop_head(self) -> None:
        """Remove the parts after the last one that gives a feature map, in place."""
        for name in self._head:
            delattr(self.parts, name)
        self._head = ()


def tapped_parts(spec: UserSpec) -> tuple[str, ...]:
    """Name the parts that may learn from a tutor: the last one before the search, the searched."""
    searched = (name for block in spec.blocks for name in block.searched)
    return (*spec.begin_parts[-1:], *searched)


def fixed_steps(names: Sequence[str], parts: Mapping[str, Part]) -> list[Step]:
    """Return parts in which nothing is chosen."""
    return [Step(part=parts[name]) for name in names]


def steps_of(block: UserBlock, option: UserOption, parts: Mapping[str, Part]) -> list[Step]:
    """Return the parts of a block, with what an option picks of them."""
    picks = dict(zip(block.searched, option.picks, strict=True))
    return [
        Step(part=parts[name], option=picks[name], width=None if place else option.width)
        if name in picks
        else Step(part=parts[name])
        for place, name in enumerate(block.parts)
    ]
