"""The channel-mask spaces as data: output widths are searched."""

from __future__ import annotations

from dataclasses import dataclass

from hwnas.core.errors import ConfigError
from hwnas.space.chain_spec import ChainSpec, later_field


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """A run of blocks at one resolution.

    Attributes:
        blocks: Blocks in the stage.
        widths: Output widths that each block may take, the widest first.
        stride: Stride of the stage's first block.
        expansion: Hidden channels per input channel; None takes the space's. At 1 blocks have no
            expanding convolution.
    """

    blocks: int
    widths: tuple[int, ...]
    stride: int = 1
    expansion: int | None = later_field(None)

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ConfigError(f"a stage needs at least one block, not {self.blocks}")
        if self.stride not in (1, 2):
            raise ConfigError(f"a stage's stride is 1 or 2, not {self.stride}")
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(f"a stage needs widths of at least 1, not {list(self.widths)}")
        if list(self.widths) != sorted(set(self.widths), reverse=True):
            raise ConfigError(f"widths go from the widest down, each once: {list(self.widths)}")
        if self.expansion is not None and self.expansion < 1:
            raise ConfigError(f"a stage's expansion is at least 1, not {self.expansion}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelBlock:
    """A searched block, less its widths.

    Attributes:
        stride: Spatial stride.
        expansion: Hidden channels per input channel; at 1 there is no expanding convolution.
    """

    stride: int
    expansion: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSpec(ChainSpec):
    """A channel-mask space: inverted residuals whose output widths are searched.

    Attributes:
        name: What it is called.
        image_shape: (channels, height, width) of an image.
        classes: Classes of the data set.
        stem: Output channels of the first convolution.
        stem_stride: Its stride.
        stages: The searched blocks.
        kernel: Side of every depthwise kernel.
        expansion: Hidden channels per input channel, where a stage has none of its own. At 1 blocks
            have no expanding convolution.
        head: Features that the classifier sees, made from an expansion (by `expansion`) of the last
            block's channels: see `FeatureHead`. At 0 it sees the channels themselves.
    """

    name: str
    image_shape: tuple[int, int, int]
    classes: int
    stem: int
    stem_stride: int
    stages: tuple[StageSpec, ...]
    kernel: int = 3
    expansion: int = 6
    head: int = later_field(0)

    def __post_init__(self) -> None:
        self._check_images()
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ConfigError(f"a kernel's side is odd, not {self.kernel}")
        if min(self.stem, self.expansion) < 1 or self.stem_stride not in (1, 2):
            raise ConfigError(
                f"stem ({self.stem}) and expansion ({self.expansion}) are at least 1, and "
                f"stem_stride ({self.stem_stride}) is 1 or 2"
            )
        if not self.stages:
            raise ConfigError("a space needs at least one stage")
        if self.head < 0:
            raise ConfigError(f"a head has features, or 0 for none of its own, not {self.head}")

    @property
    def blocks(self) -> tuple[ChannelBlock, ...]:
        """The searched blocks, in order."""
        return tuple(
            ChannelBlock(
                stride=stage.stride if index == 0 else 1,
                expansion=self.expansion if stage.expansion is None else stage.expansion,
            )
            for stage in self.stages
            for index in range(stage.blocks)
        )


def _stages(
    blocks: tuple[int, ...], widths: tuple[tuple[int, ...], ...], strides: tuple[int, ...]
) -> tuple[StageSpec, ...]:
    return tuple(
        StageSpec(blocks=count, widths=options, stride=stride)
        for count, options, stride in zip(blocks, widths, strides, strict=True)
    )


def _rnas_cl_small(name: str, blocks: int) -> ChannelSpec:
    """RNAS-CL-S of `blocks` blocks per stage, for 32x32 RGB images."""
    widths = ((16, 12), (32, 28, 24, 20), (64, 60, 56, 52))
    return ChannelSpec(
        name=name,
        image_shape=(3, 32, 32),
        classes=10,
        stem=16,
        stem_stride=2,
        stages=_stages((blocks,) * 3, widths, (1, 2, 2)),
    )


def _rnas_cl_large(name: str, widest: tuple[int, int, int]) -> ChannelSpec:
    """RNAS-CL-M or -L, for 32x32 RGB images."""
    first, second, third = widest
    widths = (
        (first, first - 4),
        tuple(second - step for step in (0, 4, 8, 12)),
        tuple(third - step for step in (0, 4, 8, 12)),
    )
    return ChannelSpec(
        name=name,
        image_shape=(3, 32, 32),
        classes=10,
        stem=16,
        stem_stride=2,
        stages=_stages((9, 7, 1), widths, (1, 2, 2)),
    )


def _rnas_cl_imagenet() -> ChannelSpec:
    """RNAS-CL for ImageNet-100."""

    def stage(
        blocks: int, widest: int, options: int, step: int, stride: int, expansion: int | None = None
    ) -> StageSpec:
        widths = tuple(widest - step * option for option in range(options))
        return StageSpec(blocks=blocks, widths=widths, stride=stride, expansion=expansion)

    return ChannelSpec(
        name="rnas-cl-imagenet",
        image_shape=(3, 224, 224),
        classes=100,
        stem=16,
        stem_stride=2,
        stages=(
            stage(1, 16, 2, 4, stride=1, expansion=1),
            stage(3, 28, 4, 4, stride=2),
            stage(3, 40, 4, 8, stride=2),
            stage(3, 96, 7, 8, stride=2),
            stage(4, 128, 8, 8, stride=1),
            stage(4, 216, 14, 8, stride=2),
        ),
        head=1984,
    )


CHANNEL_SPACES: dict[str, ChannelSpec] = {
    spec.name: spec
    for spec in (
        # Ours: small enough for 16x16 images and a CPU, wide enough for latency to differ by 3x.
        ChannelSpec(
            name="rnas-cl-xs",
            image_shape=(1, 16, 16),
            classes=10,
            stem=16,
            stem_stride=1,
            stages=_stages((2, 2, 2), ((16, 12, 8), (32, 24, 16), (64, 48, 32)), (1, 2, 2)),
        ),
        # Published (RNAS-CL, arXiv 2301.08092; shapes as in the released code).
        _rnas_cl_small("rnas-cl-s3", 3),
        _rnas_cl_small("rnas-cl-s5", 5),
        _rnas_cl_small("rnas-cl-s7", 7),
        _rnas_cl_large("rnas-cl-m", (80, 160, 128)),
        _rnas_cl_large("rnas-cl-l", (160, 320, 256)),
        _rnas_cl_imagenet(),
    )
}
