"""A small network that has learned something, and the images that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

CLASSES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A trained network with held-out data."""

    model: nn.Module
    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def tensors(self, count: int) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.images[:count]), torch.from_numpy(self.labels[:count])


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def quadrants(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Noise images with one brighter quadrant; the class is which."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    images = rng.uniform(0.2, 0.6, (count, 3, 8, 8))
    for index, label in enumerate(labels):
        row, column = divmod(int(label), 2)
        images[index, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.15
    return images.astype(np.float32), labels


@pytest.fixture(scope="session")
def problem() -> Problem:
    images, labels = quadrants(512, seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AvgPool2d(4),
            nn.Dropout(0.1),
            nn.Flatten(),
            nn.Linear(32, CLASSES),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(60):
            part = slice(64 * (step % 8), 64 * (step % 8) + 64)
            loss = functional.cross_entropy(
                model(torch.from_numpy(images[part])), torch.from_numpy(labels[part])
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    held_out, held_out_labels = quadrants(200, seed=2)
    return Problem(model=model.eval(), images=held_out, labels=held_out_labels)
