"""Batch normalization of a network that was cut out of a supernet."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from hwnas.robustness.evaluate import evaluating

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


@torch.no_grad()
def recalibrate(network: nn.Module, pixels: Tensor, *, batch: int = 256) -> None:
    """Replace the running statistics of batch normalization by those of images, in place.

    Those that a supernet leaves are of the mix of networks that it ran, not of the one that is cut
    out: without this, that one may be far off in eval mode. The mode is put back.

    Args:
        network: Takes pixels in [0, 1].
        pixels: Training images as they are, (n, channels, height, width).
        batch: Images per step; the statistics are the mean over the steps.

    References:
        Yu and Huang, "Universally slimmable networks" (arXiv 1903.05134), 3.3; Cai et al.,
        Once-for-all (arXiv 1908.09791): both measure the statistics of each sub-network anew.
    """
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    with evaluating(network), _measuring(norms):
        for part in torch.split(pixels, batch):
            network(part)


@contextmanager
def _measuring(norms: list[nn.BatchNorm2d]) -> Iterator[None]:
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # the mean over all steps
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
