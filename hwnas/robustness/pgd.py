"""Projected gradient descent within a ball: to evaluate with, and to train with.

Two forms of one loop. `pgd` evaluates: it keeps the worst point that each sample has seen, over all
steps and restarts, and stops working on a sample once it is broken (its loop is `attacks.pgd`).
`perturb` trains: no bookkeeping, one start, the last point, l_inf alone.

Both differentiate with respect to the images alone, so no gradient is added to a parameter, and
both leave the model's train or eval mode to the caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from hwnas.core.errors import ConfigError
from hwnas.core.progress import SILENT
from hwnas.robustness.attacks import pgd as attacks
from hwnas.robustness.attacks.pgd import LogitLoss as LogitLoss
from hwnas.robustness.attacks.pgd import Loss as Loss
from hwnas.robustness.attacks.pgd import loss_on_logits, random_start
from hwnas.robustness.evaluate import device_of, evaluating
from hwnas.robustness.threat import Eps, check_images, default_step_size

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from hwnas.core.progress import Progress
    from hwnas.robustness.attacks.losses import Forward as Forward
    from hwnas.robustness.threat import Norm, ThreatModel


def perturb(
    model: Forward,
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
    raised = loss_on_logits(loss, labels)
    low, high = _box(images, eps if project else Eps(1.0))
    point = random_start(images, eps, noise, generator).clamp_(low, high)
    for _ in range(steps):
        with torch.enable_grad():
            point.requires_grad_()
            (gradient,) = torch.autograd.grad(raised(model(point)).sum(), point)
        point = torch.clamp(point.detach() + step_size * gradient.sign(), low, high)
    return point


def fgsm(
    model: Forward, images: Tensor, labels: Tensor, *, eps: Eps, norm: Norm = "linf"
) -> Tensor:
    """Take one step of length eps from the images. See `attacks.pgd.fgsm`.

    Raises:
        DataError: Pixels outside [0, 1].
    """
    check_images(images)
    return attacks.fgsm(model, images, labels, eps=eps, norm=norm)


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
    stop_when_broken: bool = True,
) -> Tensor:
    """Attack a batch and keep each sample's worst point. See `attacks.pgd.pgd`.

    Raises:
        DataError: Pixels outside [0, 1].
    """
    check_images(images)
    return attacks.pgd(
        model,
        images,
        labels,
        eps=eps,
        steps=steps,
        generator=generator,
        step_size=step_size,
        restarts=restarts,
        loss=loss,
        noise=noise,
        norm=norm,
        stop_when_broken=stop_when_broken,
    )


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
        ConfigError: The threat model's protocol is not "pixel".
        DataError: Pixels outside [0, 1].
    """
    if threat.protocol != "pixel":
        raise ConfigError(
            f'protocol "{threat.protocol}" is there to compare with tables of papers, not to train '
            "or verify by",
            hint="leave it out here; `hwnas attack` knows it",
        )
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
                norm=threat.norm,
                generator=generator,
                stop_when_broken=stop_when_broken,
            )
            attacked[part] = points.cpu().numpy()
            task.advance(len(points))
    return attacked


def _check(images: Tensor, *, steps: int) -> None:
    if steps < 1:
        raise ConfigError(f"an attack needs at least 1 step, not {steps}")
    check_images(images)


def _box(images: Tensor, eps: Eps) -> tuple[Tensor, Tensor]:
    """Return the ball's lowest and highest pixels, cut to [0, 1], so that one clamp does both."""
    return (images - eps).clamp_(min=0), (images + eps).clamp_(max=1)
