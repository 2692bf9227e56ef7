"""Sampling categorical choices in a way that gradients pass."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def gumbel_softmax(
    logits: Tensor, temperature: float, generator: torch.Generator, *, hard: bool = False
) -> Tensor:
    """Draw relaxed one-hot samples along the last dimension.

    Unlike torch's own, the noise comes from a generator, so that a resumed run draws the same.

    Args:
        logits: (..., options)
        temperature: The lower, the closer to one-hot.
        generator: Source of the noise. It may be on another device than the logits are: noise of a
            CPU's generator is the same on every device.
        hard: Return exact one-hot vectors whose gradient is the relaxed sample's.

    References:
        Jang et al., "Categorical reparameterization with Gumbel-Softmax" (2017), eq. 2.
    """
    uniform = torch.rand(
        logits.shape, generator=generator, dtype=logits.dtype, device=generator.device
    )
    noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1.0 - 1e-7)))
    soft = torch.softmax((logits + noise.to(logits.device)) / temperature, dim=-1)
    if not hard:
        return soft
    winner = torch.zeros_like(soft).scatter_(-1, soft.argmax(dim=-1, keepdim=True), 1.0)
    # The difference is exactly 0; (winner + soft) - soft would be off by a rounding.
    return winner + (soft - soft.detach())


def temperature_at(epoch: int, epochs: int, *, start: float = 5.0, end: float = 0.055) -> float:
    """Anneal the temperature exponentially from `start` to `end` over a search.

    RNAS-CL anneals 5 exp(-0.045 epoch) over 100 epochs, to 0.058 in the last and 0.055 after it.
    Stated by its ends, the same schedule serves any number of epochs.
    """
    if epochs <= 1:
        return start
    return start * math.exp(math.log(end / start) * epoch / (epochs - 1))
