"""A robustly trained digit network, as the twin of engines that are sound or damaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from hwnas.robustness.pgd import perturb
from hwnas.robustness.threat import ThreatModel
from hwnas.verify.verification import VerifySettings
from hwnas_export.onnx_export import onnx_from_module
from hwnas_export.precision import onnx_in_precision

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx
    from numpy.typing import NDArray
    from torch import Tensor


class Normalize(nn.Module):
    """The first layer of every model here: pixels in [0, 1] -> about zero mean and unit scale."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A twin with images that it was not trained on, and how to verify its engines."""

    twin: nn.Sequential
    calibration: NDArray[np.float32]
    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    threat: ThreatModel
    settings: VerifySettings


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def trained() -> Trained:
    pixels, targets = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)[order]
    labels = targets.astype(np.int64)[order]
    threat = ThreatModel(eps=0.1, steps=10)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        twin = nn.Sequential(
            Normalize(0.3, 0.35),
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )
        optimizer = torch.optim.Adam(twin.parameters(), lr=3e-3)
        for step in range(150):
            rows = torch.randint(0, 1400, (128,), generator=generator).numpy()
            clean, target = torch.from_numpy(images[rows]), torch.from_numpy(labels[rows])
            attacked = perturb(
                twin, clean, target, eps=threat.eps_pixels, steps=2, generator=generator
            )
            loss = functional.cross_entropy(twin(attacked), target)
            optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 150)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return Trained(
        twin=twin.eval(),
        calibration=images[:200],
        images=images[1400:1600],
        labels=labels[1400:1600],
        threat=threat,
        settings=VerifySettings(
            square_queries=100, square_samples=100, masking_samples=100, adaptive_steps=20
        ),
    )


@pytest.fixture(scope="session")
def model(trained: Trained) -> onnx.ModelProto:
    """The twin in ONNX, of a free batch. Copied before it is changed."""
    return onnx_from_module(trained.twin, (1, 1, 8, 8), dynamic_batch=True)


@pytest.fixture(scope="session")
def quantized(trained: Trained, model: onnx.ModelProto) -> onnx.ModelProto:
    """The same in int8, with a head in float. Copied before it is changed."""
    return onnx_in_precision(model, "int8", calibration=trained.calibration, float_head=True)
