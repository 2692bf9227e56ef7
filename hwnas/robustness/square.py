"""Square: a score-based black-box attack, so it can query a compiled engine itself.

The attack is the kept library's (pyautoattack, the code of AutoAttack). What is added here: any
array function can be attacked, the global random state is not touched, ties are broken as argmax
breaks them, and NaN counts as a failure of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from pyautoattack.square import SquareAttack

from hwnas.core.errors import ConfigError
from hwnas.core.progress import SILENT
from hwnas.robustness.evaluate import predictions_of
from hwnas.robustness.threat import check_images

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from hwnas.core.progress import Progress, Task
    from hwnas.robustness.threat import Eps

    Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]

# The library holds several copies of what it attacks at once; 512 CIFAR images are 6 MB a copy.
_SAMPLES_AT_ONCE = 512
# Far below the spacing of float32 (6e-8 relative), far above that of float64 (2e-16).
_TIE_STEP = 1e-13


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
            scores = _Scores(predict, task, queries)
            points = _run(scores, images[rows], labels[rows], eps, queries, seed + number)
            # The library's clamps may leave the ball by a rounding.
            points = np.clip(points, images[rows] - eps, images[rows] + eps).clip(0, 1)
            attacked[rows] = points
            broken[rows] = predictions_of(predict(points)) != labels[rows]
            asked += scores.asked + len(rows)
            task.advance(queries - scores.reported)
    return SquareResult(images=attacked, broken=broken, queries=asked)


def _run(
    scores: _Scores,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    eps: Eps,
    queries: int,
    seed: int,
) -> NDArray[np.float32]:
    """Run the library's attack on samples that are all classified right."""
    attack = SquareAttack(
        scores, norm="Linf", n_queries=queries, eps=eps, seed=seed, device=torch.device("cpu")
    )
    pixels = torch.from_numpy(images)
    attack.init_hyperparam(pixels)
    # The library draws from torch's global CPU generator. Its own `perturb` would also reseed
    # every GPU, so its single run is called, and the generator is put back.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        _, points = attack.attack_single_run(pixels, torch.from_numpy(labels))
    found: NDArray[np.float32] = points.numpy()
    return found


class _Scores:
    """An array function as the model that the library asks.

    A column is added for "no answer": it is -inf, and wins where the model's logits are not finite.
    """

    def __init__(self, predict: Predict, task: Task, queries: int) -> None:
        self._predict = predict
        self._task = task
        self._queries = queries
        self.asked = 0
        self.reported = 0

    def __call__(self, images: Tensor) -> Tensor:
        # A fresh tensor each time: the library writes into the logits that it gets.
        logits = self._predict(images.numpy()).astype(np.float64)
        finite = np.isfinite(logits).all(axis=1)
        logits[~finite] = 0.0
        # A margin of 0 ends the library's search, though argmax gives ties to the first class.
        # Quantized engines tie often; so the order that argmax uses is written into the logits.
        top = np.abs(logits.max(axis=1, keepdims=True)).clip(min=1e-30)
        logits -= _TIE_STEP * top * np.arange(logits.shape[1])
        no_answer = np.where(finite, -np.inf, 1.0)[:, None]
        self.asked += len(images)
        if self.reported < self._queries:
            self.reported += 1
            self._task.advance(1)
        return torch.from_numpy(np.concatenate([logits, no_answer], axis=1))
