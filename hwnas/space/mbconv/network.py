"""Networks of an mbconv space."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from torch import nn

from hwnas.space.blocks import Head, InvertedResidual, Stem, expansion_width
from hwnas.space.mbconv.resize import Resize
from hwnas.space.supernet import SlimNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hwnas.space.blocks import Normalize
    from hwnas.space.mbconv.spec import MBConvChoice, MBConvSpec


@final
class MBConvNetwork(SlimNetwork):
    """A network of an mbconv space, slim: it has the modules that it runs.

    A skipped block is an identity, or `Resize` where it is of another width than the one before it,
    so that a block's weights have the same name whatever is skipped before it.

    Args:
        spec: The space.
        options: What each searched block is, e.g. `k5-e6-se`, `k5-e6-se-w40` or `skip`.
    """

    def __init__(self, spec: MBConvSpec, options: Sequence[str]) -> None:
        super().__init__()
        self.stem = Stem(spec.image_shape[0], spec.stem, stride=spec.stem_stride)
        blocks = spec.blocks
        chosen = [block.options[name] for block, name in zip(blocks, options, strict=True)]
        widths = [spec.stem, *(choice.width for choice in chosen)]
        self.blocks = nn.Sequential(
            *(
                _module(choice, width_in, block.stride)
                for choice, width_in, block in zip(chosen, widths, blocks, strict=False)
            )
        )
        self.head = Head(widths[-1], spec.classes)

        self.tap_names = (
            "stem",
            *(
                f"block{index + 1}.{part}"
                for index, choice in enumerate(chosen)
                if choice.block is not None
                for part in ("expand", "depthwise", "project")
            ),
        )

    @property
    def normalize(self) -> Normalize:
        """Where pixels of [0, 1] are shifted and scaled."""
        return self.stem.normalize

    def forward(self, images: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        """Compute logits; the taps are the stem and three per block that is not skipped."""
        logits: Tensor = self.head(self.features(images, taps))
        return logits

    def features(self, images: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        """Compute what the last block gives; the taps are those of `forward`."""
        features: Tensor = self.stem(images)
        if taps is not None:
            taps.append(features)
        for block in self.blocks:
            if isinstance(block, InvertedResidual):
                features = block(features, taps=taps)
            else:
                features = block(features)
        return features


def _module(choice: MBConvChoice, width_in: int, stride: int) -> nn.Module:
    block = choice.block
    if block is None:
        return nn.Identity() if choice.width == width_in else Resize(choice.width)
    return InvertedResidual(
        width_in,
        choice.width,
        hidden=expansion_width(width_in, block.expansion),
        kernel=block.kernel,
        stride=stride,
        se=block.se,
    )
