"""Images in memory: splits, batches and augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Labeled images.

    Attributes:
        images: uint8, (n, channels, height, width).
        labels: int64, (n,).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self) -> Tensor:
        """Return all images as float32 in [0, 1], (n, channels, height, width)."""
        return pixels_from_bytes(self.images)

    def subset(self, count: int, generator: torch.Generator) -> Split:
        """Return a random subset, or the split itself where it is no larger than that."""
        if count >= len(self):
            return self
        chosen = torch.randperm(len(self), generator=generator)[:count]
        return Split(images=self.images[chosen], labels=self.labels[chosen])


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageData:
    """A data set in three parts. Only the final verification may see `test`.

    Attributes:
        name: What it is called.
        train: For weights.
        validation: For architecture and tutor choices, and for judging while training.
        test: For the final figures.
        class_names: One per class.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        channels, height, width = self.train.images.shape[1:]
        return (channels, height, width)

    def pixel_statistics(self) -> tuple[list[float], list[float]]:
        """Return the training images' mean and standard deviation per channel, in [0, 1]."""
        pixels = self.train.pixels()
        return pixels.mean(dim=(0, 2, 3)).tolist(), pixels.std(dim=(0, 2, 3)).tolist()


def pixels_from_bytes(images: Tensor) -> Tensor:
    """Convert uint8 images to float32 pixels in [0, 1]."""
    return images.to(torch.float32) / 255.0


def batches(
    split: Split,
    batch: int,
    generator: torch.Generator,
    *,
    pad: int = 0,
    flip: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Go through a split once, shuffled and augmented, with all images of a batch at once.

    A last batch of a single image is left out: batch normalization cannot train on it.

    Args:
        split: The images.
        batch: Images per batch.
        generator: Source of order and augmentation.
        pad: Shift each image by up to this many pixels each way, filled with zeros.
        flip: Mirror every other image, at random.

    Yields:
        Pixels in [0, 1], (batch, channels, height, width), and labels, (batch,).
    """
    order = torch.randperm(len(split), generator=generator)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        if len(chosen) == 1:
            continue
        images = split.images[chosen]
        if pad:
            images = _shifted(images, pad, generator)
        if flip:
            mirrored = torch.rand(len(images), generator=generator) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        # The layout that networks train in: see hwnas.space.memory_format.
        pixels = pixels_from_bytes(images).contiguous(memory_format=torch.channels_last)
        yield pixels, split.labels[chosen]


def _shifted(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Crop each image at its own place out of its zero-padded self, as one gather."""
    count, channels, height, width = images.shape
    padded = functional.pad(images, (pad, pad, pad, pad))
    top, left = torch.randint(2 * pad + 1, (2, count), generator=generator)
    rows = top[:, None] + torch.arange(height)  # (n, H)
    columns = left[:, None] + torch.arange(width)  # (n, W)
    image = torch.arange(count)[:, None, None, None]
    channel = torch.arange(channels)[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
