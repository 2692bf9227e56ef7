"""Robust training of a supernet's weights: attacks on the sampled mix of networks."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from hwnas.training.robust import robust_loss

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from hwnas.robustness.threat import Eps
    from hwnas.training.processes import Processes
    from hwnas.training.robust import RobustMethod, RobustSettings


class Pass(Protocol):
    """A pass of the supernet with the gates of a step."""

    def __call__(self, images: Tensor, *, trained: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute logits and, in the pass that is trained on, energies where they are asked for."""
        ...


def robust_pass(
    method: RobustMethod,
    run: Pass,
    supernet: nn.Module,
    images: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None,
    *,
    settings: RobustSettings,
    eps: Eps,
    generator: torch.Generator,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Attack the sampled mix of networks, and compute the robust loss of every image.

    The attack sees the batch's own statistics, as the mix that it attacks is another one at each
    step; running ones would be those of no network in particular. They are not moved by it.

    Args:
        method: How to train.
        run: A pass of the supernet, in training mode.
        supernet: The supernet.
        images: (N, channels, height, width), in [0, 1].
        labels: (N,), int64.
        teacher_logits: (N, classes), of the clean images; None where the method needs none.
        settings: Of the method.
        eps: The ball's radius in pixel units.
        generator: Source of the attack's starts.

    Returns:
        Losses, (N,), and energies, (N, height, width) each: of the clean images where the method
        runs them, else of the attacked ones.
    """
    trained = False
    energies: tuple[Tensor, ...] = ()

    def module_mode(training: bool) -> None:
        nonlocal trained
        trained = training

    def forward(points: Tensor) -> Tensor:
        nonlocal energies
        if trained:
            logits, energies = run(points, trained=True)
            return logits
        with held_statistics(supernet):
            return run(points, trained=False)[0]

    losses = robust_loss(
        method,
        forward,
        module_mode,
        images,
        labels,
        teacher_logits,
        settings=settings,
        eps=eps,
        generator=generator,
    )
    return losses, tuple(energy[: len(images)] for energy in energies)


@contextmanager
def held_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch normalization see statistics of batches without moving its running ones."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked


def attack_generator(
    seed: int, images: Tensor, total: int, processes: Processes
) -> torch.Generator:
    """Return the source of an attack's starts: of an image the same, however many processes.

    Args:
        seed: Drawn by all processes alike.
        images: This process's part of the batch.
        total: Images of the batch over all processes.
        processes: Those that share it.
    """
    generator = torch.Generator().manual_seed(seed)
    if len(images):
        before = int(processes.share(torch.arange(total))[0])
        # Uniform noise is drawn one number after the other: pass over that of earlier images.
        torch.empty(before, *images.shape[1:], dtype=images.dtype).uniform_(generator=generator)
    return generator
