"""Where a stage sends the figures of its epochs."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.core.processes import is_first

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hwnas.core.metrics import MetricLog


@contextmanager
def logs_of(tensorboard: str, log: MetricLog | None) -> Iterator[MetricLog | None]:
    """Yield what takes a stage's figures, from its settings and its caller.

    Args:
        tensorboard: Folder for TensorBoard's event files; empty writes none.
        log: The caller's own.

    Raises:
        MissingDependencyError: TensorBoard is asked for and not installed.
    """
    if not tensorboard or not is_first():
        yield log
        return
    from hwnas.training.tensorboard import TensorBoardLog

    with TensorBoardLog(Path(tensorboard)) as board:
        yield board if log is None else _Both(board, log)


class _Both:
    def __init__(self, *logs: MetricLog) -> None:
        self._logs = logs

    def log(self, name: str, figures: Mapping[str, float], *, epoch: int) -> None:
        for each in self._logs:
            each.log(name, figures, epoch=epoch)
