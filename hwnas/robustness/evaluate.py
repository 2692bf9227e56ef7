"""Logits in batches, predictions, and accuracies with their intervals."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from hwnas.core.errors import DataError
from hwnas.core.progress import SILENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import nn

    from hwnas.core.progress import Progress
    from hwnas_export.runner import Runner

NO_CLASS = -1
"""The prediction where logits are not finite: never a right answer."""

_Z_95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """A share of samples with its 95 % Wilson interval.

    Attributes:
        n: Samples.
        correct: Those that were right.
        value: correct / n.
        low: Lower end of the interval.
        high: Upper end of it.
    """

    n: int
    correct: int
    value: float
    low: float
    high: float

    @classmethod
    def from_counts(cls, correct: int, n: int) -> Self:
        """Make an accuracy from counts.

        Raises:
            DataError: There are no samples.

        >>> accuracy = Accuracy.from_counts(8, 10)
        >>> f"{accuracy.value} [{accuracy.low:.3f}, {accuracy.high:.3f}]"
        '0.8 [0.490, 0.943]'
        """
        if n < 1:
            raise DataError("an accuracy needs at least one sample")
        low, high = wilson_interval(correct, n)
        return cls(n=n, correct=correct, value=correct / n, low=low, high=high)

    @classmethod
    def from_flags(cls, correct: NDArray[np.bool_]) -> Self:
        """Make an accuracy from one flag per sample."""
        return cls.from_counts(int(np.count_nonzero(correct)), correct.size)


def wilson_interval(correct: float, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share.

    Unlike the normal approximation it holds for small n, and at 0 and n of n. `correct` may be the
    mean of several counts of the same samples.

    References:
        E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.
    """
    share, z_squared = correct / n, _Z_95**2
    center = (share + z_squared / (2 * n)) / (1 + z_squared / n)
    half_width = (
        _Z_95 / (1 + z_squared / n) * math.sqrt(share * (1 - share) / n + z_squared / (4 * n * n))
    )
    # Rounding would leave 1e-17 where the interval touches 0 or 1 exactly.
    low = 0.0 if correct == 0 else max(center - half_width, 0.0)
    high = 1.0 if correct == n else min(center + half_width, 1.0)
    return low, high


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """Hold a module in eval mode; each submodule gets back the mode that it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield module
    finally:
        for part, training in modes:
            part.training = training


def device_of(module: nn.Module) -> torch.device:
    """Return where a module's parameters live; the CPU where it has none."""
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def logits_from_module(
    module: nn.Module, images: NDArray[np.float32], *, batch: int, progress: Progress = SILENT
) -> NDArray[np.float32]:
    """Compute the logits of a module in eval mode; its own mode is left as it is.

    Args:
        module: Maps (batch, channels, height, width) to (batch, classes).
        images: float32, (N, channels, height, width).
        batch: Images per call.
        progress: Told of each image.

    Returns:
        float32, (N, classes)
    """
    device = device_of(module)
    parts = []
    with evaluating(module), torch.inference_mode(), progress.task("twin", len(images)) as task:
        for start in range(0, len(images), batch):
            part = torch.from_numpy(images[start : start + batch]).to(device)
            parts.append(module(part).float().cpu().numpy())
            task.advance(len(part))
    return np.concatenate(parts)


def logits_from_runner(
    runner: Runner, images: NDArray[np.float32], *, batch: int, progress: Progress = SILENT
) -> NDArray[np.float32]:
    """Compute the logits of an active runner, whether its batch is free or fixed.

    Args:
        runner: An active runner.
        images: float32, (N, channels, height, width).
        batch: Images per call, where the runner's batch is free.
        progress: Told of each image.

    Returns:
        float32, (N, classes)
    """
    fixed = runner.input_shape[0]
    size = fixed or batch
    parts = []
    with progress.task("engine", len(images)) as task:
        for start in range(0, len(images), size):
            part = images[start : start + size]
            count = len(part)
            if fixed and count < fixed:
                # A fixed batch must be full: the last image stands in, and is cut off again.
                part = np.concatenate([part, np.repeat(part[-1:], fixed - count, axis=0)])
            parts.append(runner.infer(np.ascontiguousarray(part))[:count])
            task.advance(count)
    return np.concatenate(parts)


def predictions_of(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the class of each row, `NO_CLASS` where a logit of it is NaN or infinite.

    Args:
        logits: (N, classes)
    """
    finite = np.isfinite(logits).all(axis=1)
    # argmax would name the NaN's own index, which may happen to be the label.
    return np.where(finite, logits.argmax(axis=1), NO_CLASS)
