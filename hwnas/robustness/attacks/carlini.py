"""CW in l_2: the smallest change that misclassifies, found by Adam, judged at eps.

Minimizes |change|^2 + c * max(right logit - best wrong logit, 0), with the image written as
(tanh(w) + 1) / 2, so that the box holds by itself, and with a binary search for each sample's c.

We depart from the paper in one thing: a sample leaves the batch once a misclassified point within
eps is known, as a still smaller change would not alter its verdict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hwnas.robustness.attacks.ball import sizes_of
from hwnas.robustness.attacks.losses import fooled, gradient_of, margin

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hwnas.robustness.attacks.losses import Forward

# The paper's: nine searches from c = 0.01 (its code: 0.001), times 10 until one is enough.
SEARCHES = 9
_FIRST_WEIGHT = 0.01
_LARGER = 10.0
_INSIDE = 1 - 1e-6  # atanh of the box's edge is infinite
_BETAS, _TINY = (0.9, 0.999), 1e-8  # Adam's


def cw_l2(
    model: Forward,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int,
    rate: float = 0.01,
    searches: int = SEARCHES,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """Attack a batch of samples.

    Args:
        model: Maps images to logits.
        images: (N, channels, height, width), pixels in [0, 1].
        labels: (N,), int64.
        eps: The largest l_2 change that counts.
        steps: Adam steps of each search.
        rate: Adam's learning rate.
        searches: Values of c for each sample.
        tick: Called after each step.

    Returns:
        (N, channels, height, width): of a broken sample a misclassified point within eps; of
        another the image itself.

    References:
        Carlini & Wagner, "Towards Evaluating the Robustness of Neural Networks", 2017, section 6.1.
    """
    result = images.detach().clone()
    rows = torch.arange(len(images), device=images.device)
    weight = torch.full((len(images),), _FIRST_WEIGHT, device=images.device)
    low, high = torch.zeros_like(weight), torch.full_like(weight, torch.inf)
    for _ in range(searches):
        if not len(rows):
            break
        points, broken, beyond = _search(
            model, images, labels, weight, eps=eps, steps=steps, rate=rate, tick=tick
        )
        result[rows[broken]] = points[broken]
        # Misclassified, but too far away: c is larger than needed. Not at all: it is too small.
        high = torch.where(beyond, weight.minimum(high), high)
        low = torch.where(beyond, low, weight)
        weight = torch.where(high.isinf(), weight * _LARGER, (low + high) / 2)
        kept = (~broken).nonzero()[:, 0]
        rows, images, labels = rows[kept], images[kept], labels[kept]
        weight, low, high = weight[kept], low[kept], high[kept]
    return result


def _search(
    model: Forward,
    images: Tensor,
    labels: Tensor,
    weight: Tensor,
    *,
    eps: float,
    steps: int,
    rate: float,
    tick: Callable[[], None],
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimize at one c each; return points, where broken within eps, where broken at all."""
    result = images.clone()
    found = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    beyond = found.clone()
    rows = torch.arange(len(images), device=images.device)
    variable = torch.atanh((2 * images - 1) * _INSIDE)
    first, second = torch.zeros_like(variable), torch.zeros_like(variable)
    for step in range(1, steps + 1):
        with torch.enable_grad():
            variable = variable.detach().requires_grad_()
            point = (torch.tanh(variable) + 1) / 2
            logits = model(point)
            change = (point - images).square().sum(dim=(1, 2, 3))
            short = (-margin(logits, labels, labels)).clamp(min=0)
            gradient = gradient_of(change + weight * short, variable)
        tick()
        with torch.no_grad():
            adversarial = fooled(logits.detach(), labels)
            broken = adversarial & (sizes_of(point - images, "l2") <= eps)
            beyond[rows[adversarial]] = True
            # By hand: torch's Adam cannot drop samples from its moments.
            first = _BETAS[0] * first + (1 - _BETAS[0]) * gradient
            second = _BETAS[1] * second + (1 - _BETAS[1]) * gradient.square()
            spread = (second / (1 - _BETAS[1] ** step)).sqrt().add_(_TINY)
            variable = variable - rate * first / (1 - _BETAS[0] ** step) / spread
            if broken.any():
                result[rows[broken]] = point[broken]
                found[rows[broken]] = True
                kept = (~broken).nonzero()[:, 0]
                if not len(kept):
                    break
                rows, images, labels, weight = rows[kept], images[kept], labels[kept], weight[kept]
                variable, first, second = variable[kept], first[kept], second[kept]
    return result, found, beyond
