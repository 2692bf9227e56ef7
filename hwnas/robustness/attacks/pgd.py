"""FGSM, PGD and MI-FGSM: steps up the gradient, each sample's worst point kept.

PGD with the margin as its loss is also what tables call CW in l_inf.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional

from hwnas.core.errors import ConfigError
from hwnas.robustness.attacks.ball import ball_around
from hwnas.robustness.attacks.losses import fooled, gradient_of
from hwnas.robustness.attacks.losses import margin as margin_loss
from hwnas.robustness.threat import default_step_size

if TYPE_CHECKING:
    from torch import Tensor

    from hwnas.robustness.attacks.losses import Forward
    from hwnas.robustness.threat import Eps, Norm

LogitLoss = Callable[["Tensor"], "Tensor"]
"""Maps the logits (N, classes) of a whole batch to one loss per sample (N,)."""

Loss = Literal["cross-entropy", "margin"] | LogitLoss
"""What an attack raises. "margin": the best wrong logit less the right one; it has a gradient where
a confident model's cross-entropy has underflowed."""

# Where a gradient is 0 its mean is too; it stays 0.
_SMALLEST = 1e-30


def fgsm(
    model: Forward, images: Tensor, labels: Tensor, *, eps: Eps, norm: Norm = "linf"
) -> Tensor:
    """Take one step of length eps up the gradient, from the images. All else is as in `pgd`.

    In l_2 this is called the fast gradient method.

    References:
        Goodfellow et al., "Explaining and Harnessing Adversarial Examples", 2015.
    """
    point = images.detach().clone()
    with torch.enable_grad():
        point.requires_grad_()
        losses = functional.cross_entropy(model(point), labels, reduction="none")
        gradient = gradient_of(losses, point)
    return ball_around(images, norm, eps).step(point.detach(), gradient, eps)


def pgd(
    model: Forward,
    images: Tensor,
    labels: Tensor,
    *,
    eps: Eps,
    steps: int,
    generator: torch.Generator,
    step_size: float | None = None,
    restarts: int = 1,
    loss: Loss = "cross-entropy",
    noise: float = 1.0,
    norm: Norm = "linf",
    momentum: float = 0.0,
    stop_when_broken: bool = True,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """Attack a batch and keep each sample's worst point.

    The worst is a misclassified point before any other, then the point of the highest loss; the
    image itself counts as a point, so the attacked accuracy is never above the clean one.

    Args:
        model: Maps images to logits. Its mode is left as it is; eval mode is what attacks mean.
        images: (N, channels, height, width), pixels in [0, 1].
        labels: (N,), int64.
        eps: The ball's radius in pixel units.
        steps: Gradient steps of each restart.
        generator: Where the random starts come from; it may live on the CPU.
        step_size: Length of a step in pixel units; None takes 2.5 eps / steps.
        restarts: Random starts.
        loss: What to raise. A function knows the batch as a whole, so with one no sample is
            dropped on the way.
        noise: Starts are uniform within `noise` times eps; in l_2, at that distance.
        norm: Norm of the ball.
        momentum: Share of the running sum of gradients that joins the next one; 0 is plain PGD.
        stop_when_broken: Drop a sample once it is misclassified. Much faster, and enough for the
            model's own accuracy; but such a point lies just beyond the boundary. To replay the
            points on another model, go on.
        tick: Called after each step.

    Returns:
        (N, channels, height, width), pixels in [0, 1], detached.

    Raises:
        ConfigError: No steps.
    """
    if steps < 1:
        raise ConfigError(f"an attack needs at least 1 step, not {steps}")
    step_size = default_step_size(eps, steps) if step_size is None else step_size
    dropping = stop_when_broken and not callable(loss)
    worst = _Worst(images, labels)
    with torch.no_grad():
        logits = model(images)
        worst.offer(worst.everyone, images, logits, loss_on_logits(loss, labels)(logits))
    for _ in range(restarts):
        rows = worst.unbroken() if dropping else worst.everyone
        # Every restart draws for all samples: what one sample gets does not hang on the others.
        ball = ball_around(images, norm, eps)
        point = ball.project(random_start(images, eps, noise, generator, norm))[rows]
        ball, running = ball.keep(rows), torch.zeros_like(point)
        for step in range(steps + 1):
            if not len(rows):
                break
            last = step == steps  # the last point is judged, but starts no further step
            with torch.set_grad_enabled(not last):
                point.requires_grad_(not last)
                logits = model(point)
                losses = loss_on_logits(loss, labels[rows])(logits)
                if not last:
                    gradient = gradient_of(losses, point)
            point = point.detach()
            worst.offer(rows, point, logits.detach(), losses.detach())
            if last:
                break
            tick()
            if dropping:
                kept = (~worst.broken[rows]).nonzero()[:, 0]
                if len(kept) < len(rows):
                    rows, point, gradient = rows[kept], point[kept], gradient[kept]
                    ball, running = ball.keep(kept), running[kept]
            if momentum:
                size = gradient.abs().mean(dim=(1, 2, 3), keepdim=True)
                gradient = running = momentum * running + gradient / size.clamp(min=_SMALLEST)
            point = ball.step(point, gradient, step_size)
    return worst.points


def mi_fgsm(
    model: Forward,
    images: Tensor,
    labels: Tensor,
    *,
    eps: Eps,
    steps: int,
    norm: Norm = "linf",
    momentum: float = 1.0,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """Take steps of eps / steps along a running sum of gradients, from the images themselves.

    Of the sum the share `momentum` is kept at each step; each gradient joins it scaled to a mean
    size of 1. All else is as in `pgd`. We depart from the paper in what that does for all attacks:
    each sample keeps its worst point, and leaves the batch once it is broken.

    References:
        Dong et al., "Boosting Adversarial Attacks with Momentum", 2018, algorithm 1.
    """
    return pgd(
        model,
        images,
        labels,
        eps=eps,
        norm=norm,
        steps=steps,
        step_size=eps / steps,
        noise=0.0,
        momentum=momentum,
        generator=torch.Generator(),  # not asked: there is no noise
        tick=tick,
    )


def random_start(
    images: Tensor, eps: Eps, noise: float, generator: torch.Generator, norm: Norm = "linf"
) -> Tensor:
    """Return the images with random noise. Drawn where the generator lives."""
    if noise == 0:
        return images.detach().clone()
    drawn = torch.empty_like(images, device=generator.device)
    if norm == "linf":
        drawn.uniform_(-noise * eps, noise * eps, generator=generator)
    else:
        drawn.normal_(generator=generator)
        drawn *= noise * eps / drawn.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
    return images.detach() + drawn.to(images.device)


def loss_on_logits(loss: Loss, labels: Tensor) -> LogitLoss:
    """Return the loss per sample as a function of the logits alone."""
    if callable(loss):
        return loss
    if loss == "cross-entropy":
        return lambda logits: functional.cross_entropy(logits, labels, reduction="none")
    return lambda logits: margin_loss(logits, labels, labels)


class _Worst:
    """The worst point of each sample so far."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.points = images.detach().clone()
        self.everyone = torch.arange(len(images), device=images.device)
        self.broken = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self._losses = torch.full((len(images),), -torch.inf, device=images.device)
        self._labels = labels

    def unbroken(self) -> Tensor:
        """Return the rows of the samples that are still classified right."""
        return self.everyone[~self.broken]

    def offer(self, rows: Tensor, points: Tensor, logits: Tensor, losses: Tensor) -> None:
        """Take those points that are worse than what the samples in `rows` have."""
        broken = fooled(logits, self._labels[rows])
        had_broken, losses = self.broken[rows], losses.float()
        worse = (broken & ~had_broken) | ((broken == had_broken) & (losses > self._losses[rows]))
        taken = rows[worse]
        self.points[taken] = points[worse]
        self._losses[taken] = losses[worse]
        self.broken[taken] = broken[worse]
