"""What every bound is held against: points of the ball, drawn and attacked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest
import torch

from hwnas.robustness.bounds.certified import margins_of
from hwnas.robustness.pgd import perturb
from hwnas.robustness.threat import Eps

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class WorstFound(Protocol):
    """Finds the least margins of some points of the ball, (N, classes)."""

    def __call__(
        self,
        forward: Callable[[Any], Any],
        images: Tensor,
        labels: Tensor,
        eps: float,
        *,
        draws: int = 10,
        attack: bool = True,
    ) -> Tensor: ...


def least_margins(
    forward: Callable[[Any], Any],
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    draws: int = 10,
    attack: bool = True,
) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    points = [images]
    for draw in range(draws):
        noise = 2 * torch.rand(images.shape, generator=generator, dtype=images.dtype) - 1
        # Corners of the ball are where what is nearly linear is worst.
        points.append((images + eps * (noise.sign() if draw % 2 else noise)).clamp(0, 1))
    if attack and eps > 0:
        points += [
            perturb(forward, images, labels, eps=Eps(eps), steps=5, generator=generator, loss=loss)
            for loss in ("cross-entropy", "margin")
        ]
    with torch.no_grad():
        margins = torch.stack([margins_of(forward(point), labels) for point in points])
    return margins.amin(0)


@pytest.fixture(scope="session")
def worst_found() -> WorstFound:
    return least_margins
