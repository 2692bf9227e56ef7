"""Weights better than the last ones: their running average, and those of the best epoch."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, final

import torch
from torch.optim.swa_utils import AveragedModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    _Tensors = tuple[Tensor, ...] | list[Tensor]


def averaged_model(network: nn.Module, decay: float) -> AveragedModel:
    """Make the exponential moving average of a network's weights, in eval mode.

    Call `update_parameters(network)` after each step; `.module` is the averaged network. Running
    statistics of batch normalization are averaged as the weights are: to measure them anew on clean
    images would be wrong for a network that was trained on adversarial ones.

    Args:
        network: The network; the average begins with its weights as they are.
        decay: What is kept of the average at each step, in [0, 1). The first steps keep less,
            (1 + t) / (10 + t) after t of them, so that the average of a short training is not
            still that of its beginning.

    References:
        Izmailov et al., "Averaging weights leads to wider optima" (2018); Rebuffi et al., "Data
        augmentation can improve robustness" (2021), 4.1: what it gains in adversarial training,
        with decay 0.995. The ramp is that of TensorFlow's ExponentialMovingAverage.
    """
    return AveragedModel(network, multi_avg_fn=_moving_average(decay), use_buffers=True).eval()


@final
class BestWeights:
    """A network's weights of the epoch with the highest score.

    Attributes:
        score: That score; minus infinity before the first.
        epoch: Index of its epoch.
        waited: Epochs since then.
    """

    def __init__(self) -> None:
        self.score = float("-inf")
        self.epoch = -1
        self.waited = 0
        self._weights: dict[str, Any] = {}

    def offer(self, network: nn.Module, score: float, epoch: int) -> None:
        """Take the weights where the score is above all before it."""
        self.waited = 0 if score > self.score else self.waited + 1
        if score > self.score:
            self.score, self.epoch = score, epoch
            self._weights = copy.deepcopy(dict(network.state_dict()))

    def load_into(self, network: nn.Module) -> None:
        """Give a network the best weights; it keeps its own where nothing was offered."""
        if self._weights:
            network.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep."""
        return {
            "score": self.score,
            "epoch": self.epoch,
            "waited": self.waited,
            "weights": self._weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what a checkpoint kept."""
        self.score, self.epoch, self.waited = state["score"], state["epoch"], state["waited"]
        self._weights = state["weights"]


def _moving_average(decay: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    @torch.no_grad()
    def update(averages: _Tensors, values: _Tensors, count: Tensor | int) -> None:
        steps = int(count)
        share = 1.0 - min(decay, (1.0 + steps) / (10.0 + steps))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, share)
        else:  # counts of batches, which nothing reads
            torch._foreach_copy_(averages, values)

    return update
