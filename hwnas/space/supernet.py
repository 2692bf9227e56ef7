"""What all networks of a search share: slim ones, and the supernets that hold them all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hwnas.space.blocks import Normalize
    from hwnas.space.genotype import Genotype


class Observed(NamedTuple):
    """What a forward pass of a supernet gives.

    Attributes:
        logits: (batch, classes).
        energies: Of each layer that may learn from a tutor, the squared activations summed over the
            channels, (batch, height, width); empty where they were not asked for.
    """

    logits: Tensor
    energies: tuple[Tensor, ...]


class SlimNetwork(nn.Module, ABC):
    """A network of a genotype, or one made by hand: it has the modules that it runs, and no others.

    A head (`self.head`, unless `drop_head` knows better) maps the features to the logits.

    Attributes:
        tap_names: Names of the layers that `taps` receives, in order. They are among those of the
            supernet of its space.
    """

    tap_names: tuple[str, ...]

    @property
    @abstractmethod
    def normalize(self) -> Normalize:
        """Where pixels of [0, 1] are shifted and scaled."""

    @abstractmethod
    def forward(self, images: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        """Compute logits.

        Args:
            images: (batch, channels, height, width), pixels in [0, 1].
            taps: Where given, the outputs of the layers of `tap_names` are appended to it: the
                student layers of cross-layer distillation.

        Returns:
            (batch, classes)
        """

    @abstractmethod
    def features(self, images: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        """Compute the last feature map: what the head sees.

        Args:
            images: As of `forward`.
            taps: As of `forward`, less the layers of the head.

        Returns:
            (batch, feature channels, feature height, feature width)
        """

    def drop_head(self) -> None:
        """Remove what `features` does not run, in place; `forward` cannot be called any more.

        For networks whose features another head takes: what never runs is neither trained nor
        counted.
        """
        del self.head


class Supernet(nn.Module, ABC):
    """The weight-sharing network over all networks of a space.

    With one-hot gates and in eval mode it computes what the slim network does whose weights
    `slim_state` cuts out of it, to rounding.

    Attributes:
        tap_names: Names of the layers that may learn from a tutor, in order.
    """

    tap_names: tuple[str, ...]

    @property
    @abstractmethod
    def normalize(self) -> Normalize:
        """Where pixels of [0, 1] are shifted and scaled."""

    @abstractmethod
    def forward(self, images: Tensor, gates: Sequence[Tensor], *, observe: bool = True) -> Observed:
        """Compute the logits of a mix of networks.

        Args:
            images: (batch, channels, height, width), pixels in [0, 1].
            gates: One (options,) tensor per searched block, of at least 0 and with the sum 1;
                gradients flow to each.
            observe: Compute the energies too.
        """

    @abstractmethod
    def slim_state(self, genotype: Genotype) -> dict[str, Tensor]:
        """Cut a genotype's weights out: a state dict for the network of that genotype."""
