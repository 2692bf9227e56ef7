"""Networks of a channel-mask space: slim ones, and the supernet, which is the widest with masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from hwnas.space.blocks import Head, InvertedResidual, Stem, hidden_width

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hwnas.space.spec import SpaceSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockMasks:
    """What a supernet's block is told about the sampled widths. See `InvertedResidual.forward`."""

    hidden: Tensor
    out: Tensor
    residual: Tensor


class ChannelNetwork(nn.Module):
    """A network of a channel-mask space at given widths.

    Args:
        spec: The space.
        widths: Output width of each searched block.
    """

    def __init__(self, spec: SpaceSpec, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = Stem(spec.image_shape[0], spec.stem, stride=spec.stem_stride)
        strides = [
            stage.stride if first else 1
            for stage in spec.stages
            for first in (True, *(False,) * (stage.blocks - 1))
        ]
        self.blocks = nn.ModuleList(
            InvertedResidual(
                width_in,
                width_out,
                hidden=hidden_width(width_in, spec.expansion),
                kernel=spec.kernel,
                stride=stride,
            )
            for width_in, width_out, stride in zip(
                (spec.stem, *widths), widths, strides, strict=False
            )
        )
        self.head = Head(widths[-1], spec.classes)

    def forward(
        self,
        images: Tensor,
        masks: Sequence[BlockMasks] | None = None,
        taps: list[Tensor] | None = None,
    ) -> Tensor:
        """Compute logits.

        Args:
            images: (batch, channels, height, width), pixels in [0, 1].
            masks: One per block, in a supernet; None leaves every channel open.
            taps: Where given, the output of every convolution is appended to it, in order: the
                student layers of cross-layer distillation.

        Returns:
            (batch, classes)
        """
        features = self.stem(images)
        if taps is not None:
            taps.append(features)
        for index, block in enumerate(self.blocks):
            if masks is None:
                features = block(features, taps=taps)
            else:
                mask = masks[index]
                features = block(features, mask.hidden, mask.out, mask.residual, taps)
        logits: Tensor = self.head(features)
        return logits

    @property
    def tap_names(self) -> tuple[str, ...]:
        """Names of the layers that `taps` receives, in order."""
        parts = ("expand", "depthwise", "project")
        blocks = range(len(self.blocks))
        return ("stem", *(f"block{index + 1}.{part}" for index in blocks for part in parts))
