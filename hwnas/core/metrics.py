"""Where the figures of a training go, besides its progress and its history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


class MetricLog(Protocol):
    """What is told each epoch's figures: a tracker of experiments, a file, a picture.

    `hwnas.training.tensorboard.TensorBoardLog` is one. A resumed run tells only of the epochs that
    it runs itself.
    """

    def log(self, name: str, figures: Mapping[str, float], *, epoch: int) -> None:
        """Take the figures of one epoch.

        Args:
            name: What trains: `teacher`, `search` or `train`.
            figures: By name, e.g. `loss`, `expected_ms`.
            epoch: Which epoch, from 1.
        """
        ...
