"""A small convolutional network, briefly trained against FGSM on the digits, and held-out images.

So trained, attacks differ on it: some break samples that others do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hwnas.data.sources import DataConfig, load_data
from hwnas.robustness.pgd import perturb
from hwnas.robustness.threat import Eps
from hwnas.space.blocks import Normalize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from hwnas.robustness.threat import Norm

EPS: dict[Norm, float] = {"linf": 0.1, "l2": 0.7}


class SmallNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.normalize = Normalize(1)
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(256, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(self.normalize(images)).flatten(1))
        return logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    model: SmallNetwork
    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def tensors(self) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.images), torch.from_numpy(self.labels)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits() -> Digits:
    data = load_data(DataConfig(source="digits"))
    pixels, labels = data.train.pixels(), data.train.labels
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SmallNetwork()
    model.normalize.set_statistics(*data.pixel_statistics())
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(5):
        order = torch.randperm(len(pixels), generator=generator)
        for start in range(0, len(order), 64):
            chosen = order[start : start + 64]
            images = perturb(
                model,
                pixels[chosen],
                labels[chosen],
                eps=Eps(0.1),
                steps=1,
                step_size=0.12,
                generator=generator,
            )
            loss = functional.cross_entropy(model(images), labels[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    count = 64
    return Digits(
        model=model.eval(),
        images=data.test.pixels()[:count].numpy(),
        labels=data.test.labels[:count].numpy(),
    )
