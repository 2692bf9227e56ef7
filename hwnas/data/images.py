"""Images in memory: splits, batches and augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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

    def to(self, device: torch.device) -> Split:
        """Return the split on a device."""
        return Split(images=self.images.to(device), labels=self.labels.to(device))

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
    """Convert uint8 images to pixels in [0, 1], of torch's default type: float32 unless set."""
    return images.to(torch.get_default_dtype()) / 255.0


def batches(
    split: Split,
    batch: int,
    generator: torch.Generator,
    *,
    pad: int = 0,
    flip: bool = False,
    share: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Go through a split once, shuffled and augmented, with all images of a batch at once.

    A last batch of a single image is left out: batch normalization cannot train on it.

    Args:
        split: The images.
        batch: Images per batch.
        generator: Source of order and augmentation.
        pad: Shift each image by up to this many pixels each way, filled with zeros.
        flip: Mirror every other image, at random.
        share: Takes a process's part of a batch; all is drawn for the whole batch, so that the
            parts of several processes make up what one would have. None takes all of it.

    Yields:
        Pixels in [0, 1], (batch, channels, height, width), and labels, (batch,), where the split
        is.
    """
    take = share or (lambda whole: whole)
    device = split.images.device
    order = torch.randperm(len(split), generator=generator)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        count = len(chosen)
        if count == 1:
            continue
        chosen = take(chosen).to(device)
        images = split.images[chosen]
        if pad:
            places = torch.randint(2 * pad + 1, (2, count), generator=generator)
            top, left = (take(place).to(device) for place in places)
            images = _shifted(images, pad, top, left)
        if flip:
            mirrored = take(torch.rand(count, generator=generator) < 0.5).to(device)
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        # The layout that networks train in: see hwnas.space.memory_format.
        pixels = pixels_from_bytes(images).contiguous(memory_format=torch.channels_last)
        yield pixels, split.labels[chosen]


def batch_sizes(split: Split, batch: int) -> list[int]:
    """Return the sizes of the batches that `batches` yields, over all processes."""
    sizes = [min(batch, len(split) - start) for start in range(0, len(split), batch)]
    return [size for size in sizes if size > 1]


def _shifted(images: Tensor, pad: int, top: Tensor, left: Tensor) -> Tensor:
    """Crop each image at its own place out of its zero-padded self, as one gather."""
    _, channels, height, width = images.shape
    device = images.device
    padded = functional.pad(images, (pad, pad, pad, pad))
    rows = top[:, None] + torch.arange(height, device=device)  # (n, H)
    columns = left[:, None] + torch.arange(width, device=device)  # (n, W)
    image = torch.arange(len(images), device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
