"""The mbconv spaces as data: kernel, expansion, SE, width and depth are searched."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

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
    """A run of blocks at one resolution.

    Attributes:
        blocks: Blocks in the stage. All but the first may be skipped: the depth is searched.
        widths: Output channels that each block may have, the widest first.
        stride: Stride of the first.
    """

    blocks: int
    widths: tuple[int, ...]
    stride: int = 1

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ConfigError(f"a stage needs at least one block, not {self.blocks}")
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(f"a stage needs widths of at least 1, not {list(self.widths)}")
        if list(self.widths) != sorted(set(self.widths), reverse=True):
            raise ConfigError(f"widths go from the widest down, each once: {list(self.widths)}")
        if self.stride not in (1, 2):
            raise ConfigError(f"a stage's stride is 1 or 2, not {self.stride}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MBConvChoice:
    """One option of a searched block.

    Attributes:
        block: What it is; None for a skip.
        width: Its output channels.
    """

    block: MBConvOption | None
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MBConvBlock:
    """A searched block, less what is searched.

    Attributes:
        widths_in: Input channels that it may have, the widest first.
        widths: Output channels that it may have, the widest first.
        stride: Spatial stride.
        options: What it may be, by name, the largest first. Kernels go round slowest, then
            expansions, then squeeze-and-excitation, then widths; skips are last.
    """

    widths_in: tuple[int, ...]
    widths: tuple[int, ...]
    stride: int
    options: dict[str, MBConvChoice]


@dataclass(frozen=True, slots=True, kw_only=True)
class MBConvSpec(ChainSpec):
    """An mbconv space: each block chooses its kernel, expansion, SE and width, or is skipped.

    The activation is h-swish throughout. A skipped block of another width than the one before it
    keeps the first channels, or pads with channels of zeros.

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
        We depart in the widths: MnasNet has one per stage, here each block may have its own.
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
        """What a block may be other than skipped, less its width, by name, the largest first."""
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
        blocks: list[MBConvBlock] = []
        widths_in: tuple[int, ...] = (self.stem,)
        for stage in self.stages:
            for index in range(stage.blocks):
                first = index == 0
                blocks.append(
                    MBConvBlock(
                        widths_in=widths_in,
                        widths=stage.widths,
                        stride=stage.stride if first else 1,
                        options=self._choices(stage.widths, skip=not first),
                    )
                )
                widths_in = stage.widths
        return tuple(blocks)

    def _choices(self, widths: tuple[int, ...], *, skip: bool) -> dict[str, MBConvChoice]:
        blocks: dict[str, MBConvOption | None] = {**self.options}
        if skip:
            blocks[SKIP] = None
        # A name says what is searched: a width only where there is more than one.
        return {
            name if len(widths) == 1 else f"{name}-w{width}": MBConvChoice(block=block, width=width)
            for name, block in blocks.items()
            for width in widths
        }


_Stage: TypeAlias = tuple[int, tuple[int, ...], int]


def _spaces(suffix: str, *stages: _Stage) -> tuple[MBConvSpec, ...]:
    """Describe one space for images of 32 and one for images of 224 pixels.

    At 224 pixels the stem and the first stage halve the resolution too.
    """
    first, *others = (
        MBConvStage(blocks=blocks, widths=widths, stride=stride)
        for blocks, widths, stride in stages
    )
    small = MBConvSpec(
        name=f"mbconv-32{suffix}",
        image_shape=(3, 32, 32),
        classes=10,
        stem=16,
        stem_stride=1,
        stages=(first, *others),
    )
    large = MBConvSpec(
        name=f"mbconv-224{suffix}",
        image_shape=(3, 224, 224),
        classes=1000,
        stem=16,
        stem_stride=2,
        stages=(replace(first, stride=2), *others),
    )
    return small, large


# Ours: MobileNetV3-like widths, at the two resolutions that latency tables are judged at. Widths to
# choose from are about a fifth apart; every further one adds its square to a stage's operators.
MBCONV_SPACES: dict[str, MBConvSpec] = {
    spec.name: spec
    for spec in (
        *_spaces("", (2, (24,), 1), (3, (40,), 2), (3, (80,), 2), (3, (112,), 1), (3, (192,), 2)),
        *_spaces(
            "-widths",
            (2, (24, 16), 1),
            (3, (40, 32), 2),
            (3, (80, 64), 2),
            (3, (112, 96), 1),
            (3, (192, 160, 128), 2),
        ),
    )
}
