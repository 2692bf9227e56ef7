"""Several networks as one model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, cast, final, get_args

import torch
from torch import nn

from hwnas.core.errors import ConfigError, nearest
from hwnas.space.blocks import Head

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hwnas.space.blocks import Normalize
    from hwnas.space.supernet import SlimNetwork

Combination: TypeAlias = Literal["average", "concat", "logits"]
"""How members become one model: see `Ensemble`."""

COMBINATIONS: tuple[str, ...] = get_args(Combination)
JOINT = ("average", "concat")
"""Combinations with a head that all members share: they are trained as one."""


@final
class Ensemble(nn.Module):
    """Networks that see the same images and answer together; attacked and exported as one model.

    `average`: their last feature maps are averaged, and a head that they share (global average
    pooling and a linear classifier) sees the average. `concat`: their last feature maps stand side
    by side, a 1x1 convolution makes as many channels of them as the widest member has, and the
    shared head sees those. `logits`: their logits are averaged; every member has its own head.

    Members become the ensemble's own: they share one normalization, and under `average` and
    `concat` they lose their heads.

    Args:
        members: Networks for the same images, at least two.
        combination: How they become one.
        image_shape: (channels, height, width) of an image.
        classes: Classes to tell apart.

    Raises:
        ConfigError: There are fewer than two members, no such combination, their feature maps
            cannot be combined so, or they normalize pixels differently.

    References:
        Devaguptapu et al., "On Adversarial Robustness: A Neural Architecture Search perspective"
        (ICCV-W 2021, arXiv 2007.08428), as released: `average` and `concat` of three children of
        one genotype. We depart in that members may be of different architectures, and that children
        differ by the draw of their initial weights, where theirs also differ by its distribution.
        Lakshminarayanan et al., "Deep Ensembles" (arXiv 1612.01474): members of `logits` are
        trained one by one. They average probabilities; we average logits, so that what is attacked
        has logits, whose log-softmax is the (normalized) geometric mean of the probabilities.
    """

    def __init__(
        self,
        members: Sequence[SlimNetwork],
        combination: Combination,
        *,
        image_shape: tuple[int, int, int],
        classes: int,
    ) -> None:
        super().__init__()
        check_combination(combination)
        check_members(len(members))
        self.combination = combination
        self.members = nn.ModuleList(members)
        _share_normalization(members)
        self.merge: nn.Module = nn.Identity()
        if combination == "logits":
            return
        channels = _channels(members, combination, image_shape)
        for member in members:
            member.drop_head()
        widest = max(channels)
        if combination == "concat":
            self.merge = nn.Conv2d(sum(channels), widest, 1)
        self.head = Head(widest, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, channels, height, width), pixels in [0, 1], to (batch, classes)."""
        if self.combination == "logits":
            return _mean([member(images) for member in self.members])
        maps = [member.features(images) for member in self.members]  # type: ignore[operator]
        merged = torch.cat(maps, dim=1) if self.combination == "concat" else _mean(maps)
        logits: Tensor = self.head(self.merge(merged))
        return logits

    @property
    def normalize(self) -> Normalize:
        """Where pixels of [0, 1] are shifted and scaled: the same module in every member."""
        return cast("SlimNetwork", self.members[0]).normalize


def check_combination(combination: str) -> None:
    """Refuse what is no combination.

    Raises:
        ConfigError: The nearest is named.
    """
    if combination not in COMBINATIONS:
        similar = nearest(combination, COMBINATIONS)
        known = f"known: {', '.join(COMBINATIONS)}"
        raise ConfigError(
            f"members cannot be combined by `{combination}`",
            hint=f"did you mean `{similar[0]}`? {known}" if similar else known,
        )


def check_members(count: int) -> None:
    """Refuse an ensemble that is none.

    Raises:
        ConfigError: There are fewer than two members.
    """
    if count < 2:
        raise ConfigError(f"an ensemble has at least two members, not {count}")


def feature_shape(network: SlimNetwork, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return (channels, height, width) of a network's last feature map; its mode is left."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            _, channels, height, width = network.features(torch.zeros(1, *image_shape)).shape
    finally:
        network.train(training)
    return channels, height, width


def _share_normalization(members: Sequence[SlimNetwork]) -> None:
    """Give all members the first one's normalization, which theirs equal."""
    first = members[0].normalize
    for member in members[1:]:
        own = member.normalize
        if not (torch.equal(own.mean, first.mean) and torch.equal(own.std, first.std)):
            raise ConfigError(
                "the members normalize pixels differently: they are of different data sets",
                hint="give all the statistics of one: network.normalize.set_statistics(mean, std)",
            )
        for parent in list(member.modules()):
            for name, child in list(parent.named_children()):
                if child is own:
                    setattr(parent, name, first)


def _channels(
    members: Sequence[SlimNetwork], combination: str, image_shape: tuple[int, int, int]
) -> list[int]:
    """Return the channels of each member's features, which must fit together."""
    shapes = [feature_shape(member, image_shape) for member in members]
    compared = {shape if combination == "average" else shape[1:] for shape in shapes}
    if len(compared) > 1:
        listed = ", ".join("x".join(map(str, shape)) for shape in shapes)
        same_size = len({shape[1:] for shape in shapes}) == 1
        raise ConfigError(
            f"the members' last feature maps cannot be combined by `{combination}`: they are "
            f"{listed} (channels x height x width), and must be equal"
            + (" in height and width" if combination == "concat" else ""),
            hint=f"use {'`concat` or ' if same_size else ''}`logits`, which take any, or members "
            "that end alike",
        )
    return [channels for channels, _, _ in shapes]


def _mean(values: Sequence[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / len(values)
