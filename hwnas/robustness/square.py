"""Square on an array function: it asks for scores alone, so it can query a compiled engine itself.

The attack is that of `attacks.square`. A tie counts as argmax counts it, and NaN as a failure of
the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from hwnas.core.errors import ConfigError
from hwnas.core.progress import SILENT
from hwnas.robustness.attacks.square import square_l2, square_linf
from hwnas.robustness.evaluate import predictions_of
from hwnas.robustness.threat import check_images

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from hwnas.core.progress import Progress, Task
    from hwnas.robustness.threat import Eps, Norm

    Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]

# The attack holds several copies of its images at once; 512 CIFAR images are 6 MB a copy.
_SAMPLES_AT_ONCE = 512


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SquareResult:
    """What the attack found.

    Attributes:
        images: (N, channels, height, width): the broken samples perturbed; of the others, the
            point of the smallest margin.
        broken: (N,): misclassified, whether by the attack or from the start.
        queries: Images that the model was asked about.
    """

    images: NDArray[np.float32]
    broken: NDArray[np.bool_]
    queries: int


def square(
    predict: Predict,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    eps: Eps,
    queries: int,
    seed: int,
    norm: Norm = "linf",
    progress: Progress = SILENT,
) -> SquareResult:
    """Attack an array function by its scores alone.

    Args:
        predict: Maps float32 (n, channels, height, width) to logits (n, classes), for any n >= 1.
        images: (N, channels, height, width), pixels in [0, 1].
        labels: (N,)
        eps: The ball's radius in pixel units.
        queries: The most queries per sample.
        seed: Seed of the random squares.
        norm: The ball's norm.
        progress: Told of each query, of all samples together.

    Raises:
        DataError: Pixels outside [0, 1].

    References:
        Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via
        random search", 2020.
    """
    if queries < 1:
        raise ConfigError(f"Square needs at least 1 query, not {queries}")
    check_images(torch.from_numpy(images))
    attacked, total = images.copy(), len(images)
    broken = np.zeros(total, dtype=bool)
    for start in range(0, total, _SAMPLES_AT_ONCE):
        part = slice(start, start + _SAMPLES_AT_ONCE)
        broken[part] = predictions_of(predict(images[part])) != labels[part]
    asked = total
    right = np.flatnonzero(~broken)
    starts = range(0, len(right), _SAMPLES_AT_ONCE)
    with progress.task("Square", len(starts) * queries) as task:
        for number, start in enumerate(starts):
            rows = right[start : start + _SAMPLES_AT_ONCE]
            scores, ticks = _Scores(predict), _Ticks(task)
            chosen = torch.from_numpy(images[rows]), torch.from_numpy(labels[rows])
            begin = seed + number
            if norm == "linf":
                found = square_linf(
                    scores, *chosen, eps=eps, queries=queries, span=queries, tick=ticks,
                    generator=torch.Generator().manual_seed(begin),
                )  # fmt: skip
            else:
                found = square_l2(
                    scores, *chosen, eps=eps, queries=queries, span=queries, tick=ticks, seed=begin
                )
            points = found.numpy()
            attacked[rows] = points
            broken[rows] = predictions_of(predict(points)) != labels[rows]
            asked += scores.asked + len(rows)
            task.advance(queries - ticks.done)
    return SquareResult(images=attacked, broken=broken, queries=asked)


class _Scores:
    """An array function as the network that the attack asks; counts what it is asked."""

    def __init__(self, predict: Predict) -> None:
        self._predict = predict
        self.asked = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return torch.from_numpy(self._predict(images.numpy()).astype(np.float64))


class _Ticks:
    """Reports queries, and counts them: an attack that ends early owes the rest."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.done = 0

    def __call__(self) -> None:
        self.done += 1
        self._task.advance(1)
