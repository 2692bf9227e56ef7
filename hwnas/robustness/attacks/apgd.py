"""Auto-PGD: projected gradient ascent that sets its own step size.

Momentum, and steps that start at twice the radius and are halved, sample by sample, at checkpoints
where the loss rose too seldom; a halved sample goes back to its best point. No setting to tune.

What we depart from the reference in, none of which changes which samples are broken (but by
rounding: a batch of another size may be computed in another order): a sample leaves the batch once
it is broken, and the last point's gradient, which nothing uses, is not computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hwnas.robustness.attacks.ball import ball_around
from hwnas.robustness.attacks.losses import dlr_targeted, fooled, gradient_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hwnas.robustness.attacks.losses import AttackLoss, Forward
    from hwnas.robustness.threat import Norm

# Croce & Hein 2020, section 3: checkpoints at 22 % of the steps and ever closer, by 3 % down to
# 6 %; a step is halved where fewer than 75 % of the last ones raised the loss.
_FIRST_CHECKPOINT = 0.22
_CLOSER_BY = 0.03
_CLOSEST = 0.06
_RAISED_SHARE = 0.75
_MOMENTUM = 0.75


def apgd(
    model: Forward,
    images: Tensor,
    labels: Tensor,
    *,
    norm: Norm,
    eps: float,
    loss: AttackLoss,
    generator: torch.Generator,
    targets: Tensor | None = None,
    steps: int = 100,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """Attack a batch of samples from one random start.

    Args:
        model: Maps images to logits.
        images: (N, channels, height, width), pixels in [0, 1].
        labels: (N,), int64.
        norm: Norm of the ball.
        eps: Its radius.
        loss: What to raise.
        generator: Where the random start comes from; on the CPU.
        targets: (N,), the classes that a targeted loss aims at.
        steps: Gradient steps.
        tick: Called after each step.

    Returns:
        (N, channels, height, width): of a broken sample its first misclassified point; of another
        its point of the highest loss.

    References:
        Croce & Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
        Parameter-free Attacks", 2020, algorithm 1.
    """
    result = images.detach().clone()
    rows = torch.arange(len(images), device=images.device)
    targets = labels if targets is None else targets
    ball = ball_around(images, norm, eps)
    point = ball.random_point(generator)
    before = point  # where the last step started
    for step in range(steps + 1):
        last = step == steps
        logits, losses, gradient = _evaluate(model, point, labels, targets, loss, backward=not last)
        broken = fooled(logits, labels)
        result[rows[broken]] = point[broken]
        if step == 0:
            best, pace = _Best(point, gradient, losses), _Pace(losses, eps, steps)
        else:
            best.offer(point, gradient, losses)
            tick()
        if last:
            break
        if step and pace.at_checkpoint(losses):
            halved = pace.halve(best.losses)[:, None, None, None]
            point = torch.where(halved, best.points, point)
            gradient = torch.where(halved, best.gradients, gradient)
        if broken.any():
            kept = (~broken).nonzero()[:, 0]
            if not len(kept):
                return result
            rows, labels, targets, ball = rows[kept], labels[kept], targets[kept], ball.keep(kept)
            point, before, gradient = point[kept], before[kept], gradient[kept]
            best.keep(kept)
            pace.keep(kept)
        moved = ball.step(point, gradient, pace.sizes)
        # In place, in the reference's order: point + (moved - point) a + (point - before) (1 - a)
        share = _MOMENTUM if step else 1.0
        moved.sub_(point).mul_(share).add_(point).add_((point - before).mul_(1 - share))
        before, point = point, ball.project(moved)
    unbroken = ~broken
    result[rows[unbroken]] = best.points[unbroken]
    return result


def apgd_targeted(
    model: Forward,
    images: Tensor,
    labels: Tensor,
    *,
    norm: Norm,
    eps: float,
    generator: torch.Generator,
    classes: int = 9,
    steps: int = 100,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """Run `apgd` on the targeted ratio toward each of the `classes` likeliest wrong classes.

    The likeliest comes first; a sample that one run broke is left out of the next. All else is as
    in `apgd`.
    """
    result = images.detach().clone()
    with torch.no_grad():
        order = model(images).sort(dim=1).indices
    remaining = torch.arange(len(images), device=images.device)
    for rank in range(2, min(classes + 1, order.shape[1]) + 1):
        if not len(remaining):
            break
        points = apgd(
            model,
            images[remaining],
            labels[remaining],
            norm=norm,
            eps=eps,
            loss=dlr_targeted,
            generator=generator,
            targets=order[remaining, -rank],
            steps=steps,
            tick=tick,
        )
        result[remaining] = points
        with torch.no_grad():
            remaining = remaining[~fooled(model(points), labels[remaining])]
    return result


class _Best:
    """Each sample's point of the highest loss so far, with its gradient."""

    def __init__(self, points: Tensor, gradients: Tensor, losses: Tensor) -> None:
        self.points, self.gradients, self.losses = points, gradients, losses

    def offer(self, points: Tensor, gradients: Tensor, losses: Tensor) -> None:
        improved = losses > self.losses
        spread = improved[:, None, None, None]
        self.points = torch.where(spread, points, self.points)
        self.gradients = torch.where(spread, gradients, self.gradients)
        self.losses = torch.where(improved, losses, self.losses)

    def keep(self, rows: Tensor) -> None:
        self.points, self.gradients = self.points[rows], self.gradients[rows]
        self.losses = self.losses[rows]


class _Pace:
    """Each sample's step size, (N, 1, 1, 1), and when it is halved."""

    def __init__(self, losses: Tensor, eps: float, steps: int) -> None:
        self.sizes = torch.full((len(losses), 1, 1, 1), 2.0 * eps, device=losses.device)
        self._window = max(int(_FIRST_CHECKPOINT * steps), 1)
        self._closer_by = max(int(_CLOSER_BY * steps), 1)
        self._closest = max(int(_CLOSEST * steps), 1)
        self._steps = 0  # since the last checkpoint
        self._rises = torch.zeros_like(losses)  # of these steps, those that raised the loss
        # The reference compares the first step's loss with a row of zeros, not with the start's.
        self._losses = torch.zeros_like(losses)
        self._best_losses = losses  # at the last checkpoint
        self._was_halved = torch.ones_like(losses, dtype=torch.bool)

    def at_checkpoint(self, losses: Tensor) -> bool:
        """Take note of a step's losses; return whether it ends a window."""
        self._rises = self._rises + (losses > self._losses)
        self._losses = losses
        self._steps += 1
        return self._steps == self._window

    def halve(self, best_losses: Tensor) -> Tensor:
        """Halve the steps that get nowhere and begin a new window; return whose, (N,)."""
        seldom = self._rises <= self._window * _RAISED_SHARE
        stuck = ~self._was_halved & (self._best_losses >= best_losses)
        halved = seldom | stuck
        self.sizes = torch.where(halved[:, None, None, None], self.sizes / 2.0, self.sizes)
        self._was_halved, self._best_losses = halved, best_losses
        self._rises = torch.zeros_like(self._rises)
        self._window = max(self._window - self._closer_by, self._closest)
        self._steps = 0
        return halved

    def keep(self, rows: Tensor) -> None:
        self.sizes, self._losses = self.sizes[rows], self._losses[rows]
        self._rises, self._was_halved = self._rises[rows], self._was_halved[rows]
        self._best_losses = self._best_losses[rows]


def _evaluate(
    model: Forward,
    points: Tensor,
    labels: Tensor,
    targets: Tensor,
    loss: AttackLoss,
    *,
    backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, losses and the gradient: one pass for the verdict and for the next step."""
    if not backward:
        with torch.no_grad():
            logits = model(points)
            return logits, loss(logits, labels, targets), points
    with torch.enable_grad():
        variable = points.detach().requires_grad_()
        logits = model(variable)
        losses = loss(logits, labels, targets)
    return logits.detach(), losses.detach(), gradient_of(losses, variable)
