"""Projected gradient descent within an l_inf ball: to evaluate with, and to train with.

Two forms of one loop. `pgd` evaluates: it keeps the worst point that each sample has seen, over all
steps and restarts, and stops working on a sample once it is broken. `perturb` trains: no
bookkeeping, one start, the last point.

Both differentiate with respect to the images alone, so no gradient is added to a parameter, and
both leave the model's train or eval mode to the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch.nn import functional

from hwnas.core.errors import ConfigError
from hwnas.core.progress import SILENT
from hwnas.robustness.evaluate import device_of, evaluating
from hwnas.robustness.threat import Eps, check_images, default_step_size

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from hwnas.core.progress import Progress
    from hwnas.robustness.threat import ThreatModel

LogitLoss = Callable[["Tensor"], "Tensor"]
"""Maps the logits (N, classes) of a whole batch to one loss per sample (N,)."""

Loss = Literal["cross-entropy", "margin"] | LogitLoss
"""What an attack raises. "margin": the best wrong logit less the right one; it has a gradient where
a confident model's cross-entropy has underflowed."""


def perturb(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: Eps,
    steps: int,
    generator: torch.Generator,
    step_size: float | None = None,
    loss: Loss = "cross-entropy",
    noise: float = 1.0,
    project: bool = True,
) -> Tensor:
    """Perturb a batch, for the inner loop of adversarial training.

    Args:
        model: Maps images to logits. Its mode is left as it is.
        images: (N, channels, height, width), pixels in [0, 1].
        labels: (N,), int64. Not looked at where `loss` is a function.
        eps: The ball's radius in pixel units.
        steps: Gradient steps.
        generator: Where the random start comes from; it may live on the CPU.
        step_size: Length of a step in pixel units; None takes 2.5 eps / steps.
        loss: What to raise; a function gets the logits of the whole batch.
        noise: The start is uniform within `noise` times eps; 0 starts at the images.
        project: Stay in the ball. N-FGSM is noise=2, steps=1, step_size=eps, project=False.

    Returns:
        (N, channels, height, width), pixels in [0, 1], detached.

    Raises:
        DataError: Pixels outside [0, 1].

    References:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018.
        de Jorge et al., "Make Some Noise: Reliable and Efficient Single-Step Adversarial
        Training", 2022 (N-FGSM).
    """
    _check(images, steps=steps)
    step_size = default_step_size(eps, steps) if step_size is None else step_size
    raised = _loss_on_logits(loss, labels)
    low, high = _box(images, eps if project else Eps(1.0))
    point = _start(images, eps, noise, generator).clamp_(low, high)
    for _ in range(steps):
        with torch.enable_grad():
            point.requires_grad_()
            (gradient,) = torch.autograd.grad(raised(model(point)).sum(), point)
        point = torch.clamp(point.detach() + step_size * gradient.sign(), low, high)
    return point


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, *, eps: Eps) -> Tensor:
    """Take one step of length eps from the images. See `perturb` for the arguments.

    References:
        Goodfellow et al., "Explaining and Harnessing Adversarial Examples", 2015.
    """
    unused = torch.Generator()
    return perturb(
        model, images, labels, eps=eps, steps=1, step_size=eps, noise=0.0, generator=unused
    )


def pgd(
    model: nn.Module,
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
    stop_when_broken: bool = True,
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
        noise: Starts are uniform within `noise` times eps.
        stop_when_broken: Drop a sample once it is misclassified. Much faster, and enough for the
            model's own accuracy; but such a point lies just beyond the boundary. To replay the
            points on another model, go on.

    Returns:
        (N, channels, height, width), pixels in [0, 1], detached.

    Raises:
        DataError: Pixels outside [0, 1].
    """
    _check(images, steps=steps)
    step_size = default_step_size(eps, steps) if step_size is None else step_size
    dropping = stop_when_broken and not callable(loss)
    worst = _Worst(images, labels)
    with torch.no_grad():
        logits = model(images)
        worst.offer(worst.everyone, images, logits, _loss_on_logits(loss, labels)(logits))
    for _ in range(restarts):
        rows = worst.unbroken() if dropping else worst.everyone
        low, high = _box(images, eps)
        # Every restart draws for all samples: what one sample gets does not hang on the others.
        point = _start(images, eps, noise, generator).clamp_(low, high)
        point, low, high = point[rows], low[rows], high[rows]
        for step in range(steps + 1):
            if not len(rows):
                break
            last = step == steps  # the last point is judged, but starts no further step
            with torch.set_grad_enabled(not last):
                point.requires_grad_(not last)
                logits = model(point)
                losses = _loss_on_logits(loss, labels[rows])(logits)
                if not last:
                    (gradient,) = torch.autograd.grad(losses.sum(), point)
            point = point.detach()
            worst.offer(rows, point, logits.detach(), losses.detach())
            if last:
                break
            point = torch.clamp(point + step_size * gradient.sign(), low, high)
            if dropping:
                kept = ~worst.broken[rows]
                rows, point, low, high = rows[kept], point[kept], low[kept], high[kept]
    return worst.points


def attack_in_batches(
    model: nn.Module,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    threat: ThreatModel,
    *,
    batch: int,
    seed: int,
    stop_when_broken: bool = True,
    progress: Progress = SILENT,
) -> NDArray[np.float32]:
    """Attack a whole data set with `pgd`, the model in eval mode; its mode is given back.

    Args:
        model: Maps images to logits.
        images: (N, channels, height, width), pixels in [0, 1].
        labels: (N,)
        threat: The threat model.
        batch: Images at a time. The random starts depend on it.
        seed: Seed of the random starts.
        stop_when_broken: See `pgd`.
        progress: Told of each image.

    Returns:
        (N, channels, height, width)

    Raises:
        DataError: Pixels outside [0, 1].
    """
    device, generator = device_of(model), torch.Generator().manual_seed(seed)
    attacked = np.empty_like(images)
    with evaluating(model), progress.task(f"PGD-{threat.steps}", len(images)) as task:
        for start in range(0, len(images), batch):
            part = slice(start, start + batch)
            points = pgd(
                model,
                torch.from_numpy(images[part]).to(device),
                torch.from_numpy(labels[part]).to(device),
                eps=threat.eps_pixels,
                steps=threat.steps,
                step_size=threat.step_size_pixels,
                restarts=threat.restarts,
                generator=generator,
                stop_when_broken=stop_when_broken,
            )
            attacked[part] = points.cpu().numpy()
            task.advance(len(points))
    return attacked


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
        # A model that answers NaN has failed, whichever index argmax would name.
        broken = (logits.argmax(1) != self._labels[rows]) | ~logits.isfinite().all(1)
        had_broken, losses = self.broken[rows], losses.float()
        worse = (broken & ~had_broken) | ((broken == had_broken) & (losses > self._losses[rows]))
        taken = rows[worse]
        self.points[taken] = points[worse]
        self._losses[taken] = losses[worse]
        self.broken[taken] = broken[worse]


def _check(images: Tensor, *, steps: int) -> None:
    if steps < 1:
        raise ConfigError(f"an attack needs at least 1 step, not {steps}")
    check_images(images)


def _box(images: Tensor, eps: Eps) -> tuple[Tensor, Tensor]:
    """Return the ball's lowest and highest pixels, cut to [0, 1], so that one clamp does both."""
    return (images - eps).clamp_(min=0), (images + eps).clamp_(max=1)


def _start(images: Tensor, eps: Eps, noise: float, generator: torch.Generator) -> Tensor:
    """Return the images with uniform noise. Drawn where the generator lives."""
    if noise == 0:
        return images.detach().clone()
    drawn = torch.empty_like(images, device=generator.device)
    drawn.uniform_(-noise * eps, noise * eps, generator=generator)
    return images.detach() + drawn.to(images.device)


def _loss_on_logits(loss: Loss, labels: Tensor) -> LogitLoss:
    """Return the loss per sample as a function of the logits alone."""
    if callable(loss):
        return loss
    if loss == "cross-entropy":
        return lambda logits: functional.cross_entropy(logits, labels, reduction="none")

    def margin(logits: Tensor) -> Tensor:
        right = logits.gather(1, labels[:, None])  # (N, classes) -> (N, 1)
        others = logits.scatter(1, labels[:, None], -torch.inf)
        return others.amax(1) - right[:, 0]

    return margin
