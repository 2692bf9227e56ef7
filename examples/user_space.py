"""A network of one's own, with the places marked that hwnas shall search: docs/user-spaces.md.

Run it from the root of the repository: `hwnas run examples/user_space.toml --out runs/user`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hwnas.space.user.parts import Follows, Searched


class Conv(nn.Module):
    """Convolution, batch normalization, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, inputs, height, width) on."""
        return torch.relu(self.norm(self.conv(features)))


class Residual(nn.Module):
    """A bottleneck with a shortcut; its hidden width follows from the outer one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze = Conv(width, width // 2, 1)
        self.filter = Conv(width // 2, width // 2, 3)
        self.expand = nn.Conv2d(width // 2, width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, width, height, breadth) on; the shape stays."""
        return features + self.expand(self.filter(self.squeeze(features)))


class Attention(nn.Module):
    """Every pixel looks at every other, in heads of eight channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 8
        self.norm = nn.GroupNorm(1, width)
        # One layer each: a part of a narrower layer is then a part of the same kind.
        self.query = nn.Conv2d(width, width, 1)
        self.key = nn.Conv2d(width, width, 1)
        self.value = nn.Conv2d(width, width, 1)
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, width, height, breadth) on; the shape stays."""
        batch, width, height, breadth = features.shape
        normed = self.norm(features)

        def by_head(layer: nn.Module) -> Tensor:  # (B, C, H, W) -> (B, heads, HW, 8)
            return layer(normed).view(batch, self.heads, 8, height * breadth).transpose(2, 3)

        query, key, value = by_head(self.query), by_head(self.key), by_head(self.value)
        weights = torch.softmax(query @ key.transpose(2, 3) / 8**0.5, dim=-1)
        mixed = (weights @ value).transpose(2, 3).reshape(batch, width, height, breadth)
        return features + self.project(mixed)


class Head(nn.Module):
    """Mean over the pixels, and a classifier."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, width, height, breadth) to logits."""
        return self.classifier(features.mean(dim=(2, 3)))


def network(image_shape: tuple[int, int, int] = (1, 16, 16), classes: int = 10) -> nn.Sequential:
    """Return the network; hwnas passes the shape and the classes of the images."""
    return nn.Sequential(
        Conv(image_shape[0], 16, 3),  # not searched: any module
        Searched(  # which kernel, and how many channels
            {"conv5": lambda i, o: Conv(i, o, 5, 2), "conv3": lambda i, o: Conv(i, o, 3, 2)},
            widths=(32, 24, 16),
        ),
        Searched({"residual": lambda i, o: Residual(i), "skip": None}),  # keeps the width
        Searched({"conv3": lambda i, o: Conv(i, o, 3, 2)}, widths=(48, 32)),
        Searched(
            {
                "attention": lambda i, o: Attention(i),
                "residual": lambda i, o: Residual(i),
                "skip": None,
            }
        ),
        Follows(lambda width: Head(width, classes)),  # not searched, but as wide as it must be
    )
