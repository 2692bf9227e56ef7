"""Multiply-accumulates of any network, by watching it run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from torch import nn


def macs_of_network(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Count a network's multiply-accumulates per image: convolutions and linear layers.

    As `ChainSpace.macs`, for networks that are no chain of operators. The network is run once, in
    eval mode on the CPU; its own mode is left as it is.

    Args:
        network: Takes (batch, channels, height, width).
        image_shape: (channels, height, width).
    """
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, *image_shape))
    finally:
        for part, training in modes:
            part.training = training
    return int(counter.get_total_flops()) // 2
