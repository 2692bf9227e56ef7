"""Square: random search with square-shaped changes, by scores alone.

A query changes one square of each image, all of them in the same place, and keeps the change where
it lowers the margin. It needs no gradient, so it also tells whether gradients were masked.

In l_inf a query here touches only the square: it is written into the points, asked about, and taken
back where it did not help. Random draws, and so points and margins, are those of AutoAttack's
reference code. In l_2 that code itself (pyautoattack) runs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from pyautoattack.square import SquareAttack

from hwnas.core.errors import ConfigError
from hwnas.robustness.attacks.losses import fooled, margin

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hwnas.robustness.attacks.losses import Forward

_FIRST_SHARE = 0.8  # of the image that the first squares cover
# Andriushchenko et al. 2020: the share is halved after each of these queries of 10,000.
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_SCHEDULE = 10_000
_L2_TILES = 5
# Far below the spacing of float32 (6e-8 relative), far above that of float64 (2e-16).
_TIE_STEP = 1e-13


def square_linf(
    model: Forward,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    queries: int,
    generator: torch.Generator,
    span: int = _SCHEDULE,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """Attack a batch of samples in l_inf.

    Args:
        model: Maps images to logits; asked under no_grad.
        images: (N, channels, height, width), pixels in [0, 1].
        labels: (N,), int64.
        eps: Radius.
        queries: The most queries per sample.
        generator: Where the squares come from; on the CPU.
        span: Queries over which the squares shrink to their smallest. AutoAttack: 10,000, though it
            asks 5,000.
        tick: Called after each query.

    Returns:
        (N, channels, height, width): of a broken sample its misclassified point; of another that of
        the smallest margin.

    References:
        Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via
        random search", 2020, algorithms 1 and 2.
    """
    count, channels, height, width = images.shape
    stripes = _signs((count, channels, 1, width), generator).to(images.device)
    point = (images + eps * stripes).clamp_(0.0, 1.0)
    low, high = (images - eps).clamp_(min=0.0), (images + eps).clamp_(max=1.0)
    result = point.clone()
    rows = torch.arange(count, device=images.device)
    with torch.no_grad():
        logits = model(point)
        loss, broken = -margin(logits, labels, labels), fooled(logits, labels)
        for query in range(queries):
            if broken.any():
                result[rows[broken]] = point[broken]
                kept = (~broken).nonzero()[:, 0]
                rows, point, low, high = rows[kept], point[kept], low[kept], high[kept]
                labels, loss = labels[kept], loss[kept]
            if not len(rows):
                return result
            side = _side(query, span, height, width)
            top, left = _place(height - side, generator), _place(width - side, generator)
            window = (..., slice(top, top + side), slice(left, left + side))
            change = 2.0 * eps * _signs((channels, 1, 1), generator).to(images.device)
            old = point[window].clone()
            new = torch.clamp(old + change, low[window], high[window])
            point[window] = new
            logits = model(point)
            tried, broken = -margin(logits, labels, labels), fooled(logits, labels)
            taken = (tried < loss) | broken
            loss = torch.where(taken, tried, loss)
            point[window] = torch.where(taken[:, None, None, None], new, old)
            tick()
        result[rows] = point
    return result


def square_l2(
    model: Forward,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    queries: int,
    seed: int,
    span: int = _SCHEDULE,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """Attack a batch of samples in l_2, by the reference's code. All else is as in `square_linf`.

    That code draws from torch's global generator: it is set to `seed`, and put back.

    Raises:
        ConfigError: Images below 5x5 pixels, which that code has no first squares for.
    """
    if min(images.shape[2:]) < _L2_TILES:
        raise ConfigError(
            f"Square in l_2 needs images of at least {_L2_TILES}x{_L2_TILES} pixels, "
            f"not {images.shape[2]}x{images.shape[3]}"
        )

    def share(query: int) -> float:
        tick()
        return _share(query, span)

    attack = SquareAttack(
        lambda points: _with_no_answer(model(points)),
        norm="L2",
        n_queries=queries,
        eps=eps,
        seed=seed,
        device=images.device,
    )
    attack.p_selection = share  # asked once for each query
    attack.init_hyperparam(images)
    # Its own `perturb` would also reseed every GPU, so its single run is called.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        _, points = attack.attack_single_run(images.contiguous(), labels)
    found: Tensor = points
    return found


def _with_no_answer(logits: Tensor) -> Tensor:
    """Return logits as the library can take them, float64, with a column for "no answer".

    That column is -inf, and wins where the model's logits are not finite. And as a margin of 0 ends
    the library's search, though argmax gives ties to the first class, the order that argmax uses
    is written into the logits.
    """
    wide = logits.double()
    finite = wide.isfinite().all(1, keepdim=True)
    wide = torch.where(finite, wide, 0.0)
    top = wide.abs().amax(1, keepdim=True).clamp(min=1e-30)
    order = torch.arange(wide.shape[1], device=wide.device)
    no_answer = torch.where(finite, -torch.inf, 1.0).double()
    return torch.cat([wide - _TIE_STEP * top * order, no_answer], dim=1)


def _side(query: int, span: int, height: int, width: int) -> int:
    """Return the square's side at a query."""
    return min(max(round(math.sqrt(_share(query, span) * height * width)), 1), height, width)


def _share(query: int, span: int) -> float:
    """Return the share of the image that a query changes."""
    position = int(query / span * _SCHEDULE)
    return _FIRST_SHARE * 0.5 ** sum(position > after for after in _HALVED_AFTER)


def _place(room: int, generator: torch.Generator) -> int:
    return int(room * torch.rand(1, generator=generator))


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.sign(2 * torch.rand(shape, generator=generator) - 1)
