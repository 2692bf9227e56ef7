"""Our own teacher: a residual network for small images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from hwnas.core.errors import ConfigError
from hwnas.space.blocks import Normalize

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSpec:
    """A residual network for small images.

    Attributes:
        image_shape: (channels, height, width).
        classes: Classes of the data set.
        width: Channels of the first stage; each further stage doubles them and halves the size.
        blocks: Residual blocks of each stage.
    """

    image_shape: tuple[int, int, int]
    classes: int
    width: int = 32
    blocks: tuple[int, ...] = (1, 1, 1)

    def __post_init__(self) -> None:
        if self.width < 1 or not self.blocks or min(self.blocks) < 1:
            raise ConfigError(
                f"a teacher needs a positive width and blocks in each stage, "
                f"not width {self.width} and blocks {list(self.blocks)}"
            )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2016), ReLU after each sum."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )
        self.second = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, channels, height, width) on."""
        return torch.relu(self.second(self.first(features)) + self.shortcut(features))


class TeacherNetwork(nn.Module):
    """The residual network of a `TeacherSpec`; takes pixels in [0, 1], gives logits."""

    def __init__(self, spec: TeacherSpec) -> None:
        super().__init__()
        self.normalize = Normalize(spec.image_shape[0])
        self.stem = nn.Sequential(
            nn.Conv2d(spec.image_shape[0], spec.width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(spec.width),
            nn.ReLU(),
        )
        blocks = []
        channels = spec.width
        for stage, count in enumerate(spec.blocks):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(ResidualBlock(channels, spec.width * 2**stage, stride))
                channels = spec.width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, channels, height, width) on."""
        features: Tensor = self.blocks(self.stem(self.normalize(images)))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits

    @property
    def tap_names(self) -> tuple[str, ...]:
        """The layers that may be tutors: every convolution, after its activation."""
        blocks = range(len(self.blocks))
        return ("stem", *(f"blocks.{i}{part}" for i in blocks for part in (".first", "")))
