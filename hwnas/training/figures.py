"""Accuracy on held-out images, while training and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hwnas.core.progress import SILENT, Progress
from hwnas.robustness.evaluate import Accuracy, evaluating, logits_from_module, predictions_of
from hwnas.robustness.pgd import attack_in_batches

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hwnas.data.images import Split
    from hwnas.robustness.threat import ThreatModel

_BATCH = 256


@torch.no_grad()
def accuracy(network: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """Return the share of images classified right, in eval mode; the mode is put back.

    Args:
        network: Takes pixels in [0, 1], gives (batch, classes).
        pixels: (n, channels, height, width)
        labels: (n,)
    """
    with evaluating(network):
        right = 0
        for start in range(0, len(labels), _BATCH):
            part = slice(start, start + _BATCH)
            right += int((network(pixels[part]).argmax(1) == labels[part]).sum())
    return right / len(labels)


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
