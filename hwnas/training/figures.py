"""Accuracy on held-out images, while training and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hwnas.core.progress import SILENT, Progress
from hwnas.data.images import pixels_from_bytes
from hwnas.robustness.evaluate import Accuracy, evaluating, logits_from_module, predictions_of
from hwnas.robustness.pgd import attack_in_batches, fgsm, pgd
from hwnas.training.precision import in_precision

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from hwnas.data.images import Split
    from hwnas.robustness.threat import Eps, ThreatModel
    from hwnas.training.precision import TrainingPrecision

_BATCH = 256


@torch.no_grad()
def accuracy(
    network: nn.Module, pixels: Tensor, labels: Tensor, *, precision: TrainingPrecision = "fp32"
) -> float:
    """Return the share of images classified right, in eval mode; the mode is put back.

    Args:
        network: Takes pixels in [0, 1], gives (batch, classes).
        pixels: (n, channels, height, width)
        labels: (n,)
        precision: What it computes in.
    """
    forward = in_precision(network, precision)
    with evaluating(network):
        right = 0
        for start in range(0, len(labels), _BATCH):
            part = slice(start, start + _BATCH)
            right += int((forward(pixels[part]).argmax(1) == labels[part]).sum())
    return right / len(labels)


def fgsm_accuracy(
    network: nn.Module, split: Split, eps: Eps, *, precision: TrainingPrecision = "fp32"
) -> Accuracy:
    """Return the accuracy on FGSM examples, in eval mode; the mode is put back."""
    forward = in_precision(network, precision)
    return _attacked_accuracy(
        network, forward, split, lambda images, labels: fgsm(forward, images, labels, eps=eps)
    )


def pgd_accuracy(
    network: nn.Module,
    split: Split,
    eps: Eps,
    *,
    steps: int,
    seed: int,
    precision: TrainingPrecision = "fp32",
) -> Accuracy:
    """Return the accuracy on PGD examples, in eval mode; the mode is put back.

    For watching a training: few steps in low precision. Figures that are published are those of
    `accuracy_and_robustness` and of the attacks of `hwnas.robustness`.
    """
    forward = in_precision(network, precision)
    generator = torch.Generator().manual_seed(seed)
    return _attacked_accuracy(
        network,
        forward,
        split,
        lambda images, labels: pgd(
            forward, images, labels, eps=eps, steps=steps, generator=generator
        ),
    )


def accuracy_and_robustness(
    network: nn.Module,
    split: Split,
    threat: ThreatModel,
    *,
    seed: int,
    progress: Progress = SILENT,
) -> tuple[Accuracy, Accuracy]:
    """Return the accuracy on images as they are, and on PGD examples of a threat model."""
    images, labels = split.pixels().numpy(), split.labels.numpy()
    attacked = attack_in_batches(
        network, images, labels, threat, batch=_BATCH, seed=seed, progress=progress
    )
    clean, robust = (
        Accuracy.from_flags(
            predictions_of(logits_from_module(network, pixels, batch=_BATCH)) == labels
        )
        for pixels in (images, attacked)
    )
    return clean, robust


def _attacked_accuracy(
    network: nn.Module,
    forward: Callable[[Tensor], Tensor],
    split: Split,
    attack: Callable[[Tensor, Tensor], Tensor],
) -> Accuracy:
    right = 0
    with evaluating(network):
        for start in range(0, len(split), _BATCH):
            part = slice(start, start + _BATCH)
            labels = split.labels[part]
            attacked = attack(pixels_from_bytes(split.images[part]), labels)
            with torch.no_grad():
                right += int((forward(attacked).argmax(1) == labels).sum())
    return Accuracy.from_counts(right, len(split))
