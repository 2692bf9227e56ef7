"""What attacks raise, from logits to one loss per sample; and when a sample counts as broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

Forward: TypeAlias = Callable[["Tensor"], "Tensor"]
"""Maps images (N, channels, height, width) to logits (N, classes)."""

AttackLoss: TypeAlias = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
"""Maps logits (N, classes), labels (N,) and target classes (N,) to losses (N,)."""

_TINY = 1e-12


def cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the labels; targets are not looked at."""
    return functional.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The best wrong logit less the right one: the objective f6 of Carlini & Wagner.

    Unlike cross-entropy it has a gradient where the model is confident. Targets are not looked at.
    """
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(1) - _pick(logits, labels)


def dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Difference of logits ratio: the margin over the distance of the first and the third logit.

    Neither a shift nor a scale of the logits changes it. Needs three classes.

    References:
        Croce & Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
        Parameter-free Attacks", 2020, eq. 6.
    """
    top, indices = logits.topk(3, dim=1)
    rival = torch.where(indices[:, 0] == labels, top[:, 1], top[:, 0])
    return (rival - _pick(logits, labels)) / (top[:, 0] - top[:, 2] + _TINY)


def dlr_targeted(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The ratio toward one target class. Needs four classes.

    References:
        Croce & Hein, 2020 (see `dlr`), eq. 7.
    """
    top = logits.topk(4, dim=1).values
    spread = top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + _TINY
    return (_pick(logits, targets) - _pick(logits, labels)) / spread


def fooled(logits: Tensor, labels: Tensor) -> Tensor:
    """Return where a model fails, (N,): another class wins, or a logit is no finite number."""
    failed: Tensor = (logits.argmax(1) != labels) | ~logits.isfinite().all(1)
    return failed


def gradient_of(losses: Tensor, points: Tensor) -> Tensor:
    """Return the gradient of the summed losses for the points; where it is no number, 0.

    A step along NaN would leave the image behind, and the model's answer to that says nothing.
    """
    (gradient,) = torch.autograd.grad(losses.sum(), points)
    return gradient.nan_to_num_(nan=0.0)


def _pick(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]  # (N, classes) -> (N,)
