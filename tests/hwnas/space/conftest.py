"""How the tests of spaces count what networks do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable


def count_macs(module: nn.Module, inputs: torch.Tensor) -> int:
    """Count multiply-accumulates as they happen: every output value sums its kernel's products."""
    total = 0

    def count(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        total += output.numel() * layer.weight[0].numel()

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        module.eval()(inputs)
    return total


@pytest.fixture(scope="session")
def counted_macs() -> Callable[[nn.Module, torch.Tensor], int]:
    return count_macs
