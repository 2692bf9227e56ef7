"""What bounds prove of images: who is certified at which eps, and up to which radius.

A certificate is of the network as it is run, in float32, on float32 pixels. Three things make up
for what the bounds, which are of real numbers, do not know of:

- bounds are computed in float64, and lowered a little (`margin_lower_bounds`);
- the ball is wider by the rounding of a float32 pixel (`PIXEL_ROUNDING`);
- a margin counts only above a slack that the caller sets: by what the network's margins in float32
  were seen to differ from those in float64, with something to spare (`margin_slack`).

The last is measured, not proven: a proof of every rounding in a float32 convolution would be one of
the machine's code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hwnas.core.errors import ConfigError
from hwnas.robustness.bounds.margins import margin_lower_bounds
from hwnas.robustness.threat import Eps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from hwnas.robustness.bounds.margins import Method

    Forward = Callable[[Any], Any]

PIXEL_ROUNDING = 2.0**-24
"""How far rounding may carry a float32 pixel of [0, 1] out of a ball."""

_SPARE = 10.0
"""How much larger than the largest difference seen the slack is."""


def margins_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return logits[label] - logits[j], (N, classes)."""
    return logits.gather(1, labels[:, None]) - logits


def margin_slack(single: Tensor, double: Tensor, labels: Tensor) -> float:
    """Return by how much a margin must exceed 0, for the rounding of a network in float32.

    Args:
        single: Logits of some images in float32, (N, classes); best of attacked ones too.
        double: Logits of the same images in float64.
        labels: (N,).
    """
    apart = margins_of(single.double(), labels) - margins_of(double, labels)
    return _SPARE * float(apart.abs().max())


@torch.no_grad()
def is_certified(
    forward: Forward,
    images: Tensor,
    labels: Tensor,
    *,
    eps: Eps | Tensor,
    method: Method,
    slack: float = 0.0,
) -> Tensor:
    """Say which images are provably classified right in the whole ball around them.

    Args:
        forward: A network in eval mode, in float64.
        images: (N, channels, height, width), pixels in [0, 1]; converted to float64.
        labels: (N,).
        eps: The ball's radius in pixel units; or one for each image, (N,).
        method: How margins are bounded.
        slack: What a margin must exceed: see `margin_slack`.

    Returns:
        (N,), bool

    Raises:
        UnboundedOperationError: The network runs what has no sound bound.
    """
    wide = eps + PIXEL_ROUNDING
    bounds = margin_lower_bounds(
        forward, images.double(), labels, eps=wide if isinstance(wide, torch.Tensor) else Eps(wide),
        method=method,
    )  # fmt: skip
    others = torch.ones_like(bounds, dtype=torch.bool).scatter(1, labels[:, None], value=False)
    return ((bounds > slack) | ~others).all(1)


def certified_flags(
    forward: Forward,
    images: Tensor,
    labels: Tensor,
    *,
    eps: Sequence[Eps],
    method: Method,
    slack: float = 0.0,
    tried: Callable[[], None] = lambda: None,
) -> Tensor:
    """Say which images are certified at each of several radii.

    Who is not certified at one is not tried at a larger one: a proof for a ball is one for each
    within it.

    Args:
        forward: As of `is_certified`, as all but `eps`.
        images: (N, channels, height, width)
        labels: (N,)
        eps: Radii in pixel units, ascending.
        method: How margins are bounded.
        slack: What a margin must exceed.
        tried: Called after each radius that was tried.

    Returns:
        (radii, N), bool

    Raises:
        ConfigError: The radii do not ascend.
        UnboundedOperationError: The network runs what has no sound bound.
    """
    if list(eps) != sorted(set(eps)):
        raise ConfigError(f"radii ascend, each once: not {', '.join(f'{each:g}' for each in eps)}")
    flags = torch.zeros(len(eps), len(images), dtype=torch.bool, device=images.device)
    rows = torch.arange(len(images), device=images.device)
    for place, each in enumerate(eps):
        if len(rows):
            found = is_certified(
                forward, images[rows], labels[rows], eps=each, method=method, slack=slack
            )
            rows = rows[found]
            flags[place, rows] = True
            tried()
    return flags


def certified_radius(
    forward: Forward,
    images: Tensor,
    labels: Tensor,
    *,
    low: Tensor,
    high: Tensor,
    steps: int,
    method: Method,
    slack: float = 0.0,
    tried: Callable[[], None] = lambda: None,
) -> Tensor:
    """Find, by bisection, the largest radius at which each image is certified.

    What is returned was itself certified, so it is a lower bound of the distance to the nearest
    adversarial example, however the bounds grow with the radius.

    Args:
        forward: As of `is_certified`, as all but `low`, `high` and `steps`.
        images: (N, channels, height, width)
        labels: (N,)
        low: Radii that are certified; 0 for images that are not even classified right, (N,).
        high: Radii that are not known to be certified, (N,). Where it is `low`, nothing is tried.
        steps: Bisections: the radius is found to (high - low) / 2^steps.
        method: How margins are bounded.
        slack: What a margin must exceed.
        tried: Called after each bisection.

    Returns:
        (N,), float64, in pixel units

    Raises:
        UnboundedOperationError: The network runs what has no sound bound.
    """
    low, high = low.double().clone(), high.double().clone()
    rows = torch.nonzero(high > low).flatten()
    for _ in range(steps):
        if not len(rows):
            break
        middle = (low[rows] + high[rows]) / 2
        found = is_certified(
            forward, images[rows], labels[rows], eps=middle, method=method, slack=slack
        )
        low[rows[found]], high[rows[~found]] = middle[found], middle[~found]
        tried()
    return low
