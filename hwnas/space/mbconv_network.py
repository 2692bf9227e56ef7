"""Networks of an mbconv space."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from hwnas.space.blocks import Head, InvertedResidual, Stem, hidden_width
from hwnas.space.mbconv_spec import SKIP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hwnas.space.mbconv_spec import MBConvBlock, MBConvSpec


class MBConvNetwork(nn.Module):
    """A network of an mbconv space, slim: it has the modules that it runs.

    A skipped block is an identity, so that a block's weights have the same name whatever is skipped
    before it.

    Args:
        spec: The space.
        options: What each searched block is, e.g. `k5-e6-se` or `skip`.
    """

    def __init__(self, spec: MBConvSpec, options: Sequence[str]) -> None:
        super().__init__()
        self.stem = Stem(spec.image_shape[0], spec.stem, stride=spec.stem_stride)
        self.blocks = nn.Sequential(
            *(
                _module(spec, block, option)
                for block, option in zip(spec.blocks, options, strict=True)
            )
        )
        self.head = Head(spec.stages[-1].width, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits.

        Args:
            images: (batch, channels, height, width), pixels in [0, 1].

        Returns:
            (batch, classes)
        """
        logits: Tensor = self.head(self.blocks(self.stem(images)))
        return logits


def hidden_of_expansion(width_in: int, expansion: int) -> int:
    """Return the hidden channels of a block; 0 at expansion 1, which has no expansion."""
    return 0 if expansion == 1 else hidden_width(width_in, expansion)


def _module(spec: MBConvSpec, block: MBConvBlock, option: str) -> nn.Module:
    if option == SKIP:
        return nn.Identity()
    chosen = spec.options[option]
    return InvertedResidual(
        block.width_in,
        block.width,
        hidden=hidden_of_expansion(block.width_in, chosen.expansion),
        kernel=chosen.kernel,
        stride=block.stride,
        se=chosen.se,
    )
