"""The mbconv spaces as data: kernel, expansion, squeeze-and-excitation and depth are searched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hwnas.core.errors import ConfigError
from hwnas.space.chain_spec import ChainSpec

SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class MBConvOption:
    """An inverted residual, less its widths.

    Attributes:
        kernel: Side of the depthwise kernel.
        expansion: Hidden channels per input channel; at 1 there is no expanding convolution.
        se: Squeeze and excite between the depthwise convolution and the projection.

    >>> MBConvOption(kernel=5, expansion=6, se=True).name
    'k5-e6-se'
    """

    kernel: int
    expansion: int
    se: bool

    @property
    def name(self) -> str:
        """What genotypes call it."""
        return f"k{self.kernel}-e{self.expansion}{'-se' if self.se else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MBConvStage:
    """A run of blocks of one width.

    Attributes:
        blocks: Blocks in the stage. All but the first may be skipped: the depth is searched.
        width: Output channels of each.
        stride: Stride of the first.
    """

    blocks: int
    width: int
    stride: int = 1

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ConfigError(f"a stage needs at least one block, not {self.blocks}")
        if self.width < 1:
            raise ConfigError(f"a stage's width is at least 1, not {self.width}")
        if self.stride not in (1, 2):
            raise ConfigError(f"a stage's stride is 1 or 2, not {self.stride}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MBConvBlock:
    """A searched block, less what is searched.

    Attributes:
        width_in: Input channels.
        width: Output channels.
        stride: Spatial stride.
        options: Names of what it may be, the largest first.
    """

    width_in: int
    width: int
    stride: int
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MBConvSpec(ChainSpec):
    """An mbconv space: each block chooses its kernel, expansion and SE, or is skipped.

    The activation is h-swish throughout. Widths are fixed per stage, so that a skipped block leaves
    the shape as it was.

    Attributes:
        name: What it is called.
        image_shape: (channels, height, width) of an image.
        classes: Classes of the data set.
        stem: Output channels of the first convolution.
        stem_stride: Its stride.
        stages: The searched blocks.
        kernels: Sides of depthwise kernels to choose from, ascending.
        expansions: Hidden channels per input channel to choose from, ascending.
        se: Whether squeeze and excite may be left out, put in, or both.
        kind: Tells this description from those of other spaces.

    References:
        Tan et al., MnasNet (arXiv 1807.11626): choices of kernel, expansion, SE and skip per block.
    """

    name: str
    image_shape: tuple[int, int, int]
    classes: int
    stem: int
    stem_stride: int
    stages: tuple[MBConvStage, ...]
    kernels: tuple[int, ...] = (3, 5, 7)
    expansions: tuple[int, ...] = (1, 3, 6)
    se: tuple[bool, ...] = (False, True)
    kind: Literal["mbconv"] = "mbconv"

    def __post_init__(self) -> None:
        self._check_images()
        if self.stem < 1 or self.stem_stride not in (1, 2):
            raise ConfigError(
                f"stem ({self.stem}) is at least 1, and stem_stride ({self.stem_stride}) is 1 or 2"
            )
        if not self.stages:
            raise ConfigError("a space needs at least one stage")
        for name, values in (
            ("kernels", self.kernels),
            ("expansions", self.expansions),
            ("se", self.se),
        ):
            if not values or list(values) != sorted(set(values)):
                raise ConfigError(f"{name} are in ascending order, each once: {list(values)}")
        if self.kernels[0] < 1 or any(kernel % 2 == 0 for kernel in self.kernels):
            raise ConfigError(f"a kernel's side is odd: {list(self.kernels)}")
        if self.expansions[0] < 1:
            raise ConfigError(f"an expansion is at least 1: {list(self.expansions)}")

    @property
    def options(self) -> dict[str, MBConvOption]:
        """What a block may be other than skipped, by name, the largest first."""
        options = (
            MBConvOption(kernel=kernel, expansion=expansion, se=se)
            for kernel in reversed(self.kernels)
            for expansion in reversed(self.expansions)
            for se in reversed(self.se)
        )
        return {option.name: option for option in options}

    @property
    def blocks(self) -> tuple[MBConvBlock, ...]:
        """The searched blocks, in order."""
        names = tuple(self.options)
        blocks: list[MBConvBlock] = []
        width_in = self.stem
        for stage in self.stages:
            for index in range(stage.blocks):
                first = index == 0
                blocks.append(
                    MBConvBlock(
                        width_in=width_in,
                        width=stage.width,
                        stride=stage.stride if first else 1,
                        options=names if first else (*names, SKIP),
                    )
                )
                width_in = stage.width
        return tuple(blocks)


def _stages(*stages: tuple[int, int, int]) -> tuple[MBConvStage, ...]:
    return tuple(
        MBConvStage(blocks=blocks, width=width, stride=stride) for blocks, width, stride in stages
    )


# Ours: MobileNetV3-like widths, at the two resolutions that latency tables are judged at.
MBCONV_SPACES: dict[str, MBConvSpec] = {
    spec.name: spec
    for spec in (
        MBConvSpec(
            name="mbconv-32",
            image_shape=(3, 32, 32),
            classes=10,
            stem=16,
            stem_stride=1,
            stages=_stages((2, 24, 1), (3, 40, 2), (3, 80, 2), (3, 112, 1), (3, 192, 2)),
        ),
        MBConvSpec(
            name="mbconv-224",
            image_shape=(3, 224, 224),
            classes=1000,
            stem=16,
            stem_stride=2,
            stages=_stages((2, 24, 2), (3, 40, 2), (3, 80, 2), (3, 112, 1), (3, 192, 2)),
        ),
    )
}
