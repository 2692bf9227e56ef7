"""The memory layout that networks train fastest in."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from torch import nn

N = TypeVar("N", bound="nn.Module")


def channels_last(network: N) -> N:
    """Lay a network's weights out channels last, in place; its results do not change.

    `data.images.batches` yields images in the same layout; benchmarks/memory_format.py measures
    what it gains.
    """
    # torch's type hints leave this overload of `to` out.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
