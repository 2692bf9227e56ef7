"""Networks of an mbconv space."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from torch import nn

from hwnas.space.blocks import Head, InvertedResidual, Stem, hidden_width
from hwnas.space.mbconv_spec import SKIP
from hwnas.space.supernet import SlimNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hwnas.space.blocks import Normalize
    from hwnas.space.mbconv_spec import MBConvBlock, MBConvSpec


@final
class MBConvNetwork(SlimNetwork):
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

        self.tap_names = (
            "stem",
            *(
                f"block{index + 1}.{part}"
                for index, option in enumerate(options)
                if option != SKIP
                for part in ("expand", "depthwise", "project")
            ),
        )

    @property
    def normalize(self) -> Normalize:
        """Where pixels of [0, 1] are shifted and scaled."""
        return self.stem.normalize

    def forward(self, images: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        """Compute logits; the taps are the stem and three per block that is not skipped."""
        features = self.stem(images)
        if taps is not None:
            taps.append(features)
        for block in self.blocks:
            if isinstance(block, InvertedResidual):
                features = block(features, taps=taps)
        logits: Tensor = self.head(features)
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
